"""Tests of magnetic potentials that hold for every backend; each backend's file imports them.

A backend's file brings the fixture `load_tiny`, a function of a precision that loads its tiny model
anew.
"""

import json

import numpy as np
import pytest
import torch
from ase.build import bulk, molecule
from e3nn import o3
from magnetic_cases import LeakyBlock, PolarBlock, broken, magnetic
from potentials import assert_accelerated_the_same, random_deltas
from tolerances import close

import e3sparse
from e3sparse import magnetism, symmetry
from e3sparse.errors import AdapterFileError
from e3sparse.potentials.calculator import PotentialCalculator
from e3sparse.symmetry import PotentialSubject

CLAIMED = (
    "translation",
    "permutation",
    "rotation",
    "inversion",
    "time reversal",
    "spin rotation",
    "batch",
    "cross-frame gradients",
    "conservation",
    "cutoff",
    "forces",
    "stress",
    "magnetic forces",
)
OF_SPINS = ("rotation", "inversion", "time reversal", "spin rotation", "magnetic forces")
STATES = ("base", "adapted", "merged", "reloaded")


def in_state(load_tiny, state, spin_orbit, folder, dtype=torch.float64):
    """Return a magnetic potential whose backbone is in a state of an adapter's life."""
    potential = magnetic(load_tiny(dtype), spin_orbit)
    if state == "base":
        return potential
    adapter = random_deltas(potential, "linear")
    if state == "merged":
        e3sparse.merge(potential.backbone.module)
    if state == "reloaded":
        adapter.save_pretrained(folder / "adapter")
        magnetism.save(potential, folder / "spins", {1, 8})
        backbone = load_tiny(dtype)
        backbone.load_adapter(folder / "adapter")
        potential = magnetism.load(backbone, folder / "spins")
        potential.magnetic_forces = True
    return potential


@pytest.fixture(scope="module")
def subjects(load_tiny, tmp_path_factory):
    """Return a function that makes the subject of a state, once."""
    made = {}

    def get(state, spin_orbit):
        if (state, spin_orbit) not in made:
            folder = tmp_path_factory.mktemp("magnetic")
            potential = in_state(load_tiny, state, spin_orbit, folder)
            made[state, spin_orbit] = PotentialSubject(potential)
        return made[state, spin_orbit]

    return get


def test_the_faster_evaluation_of_the_backbone_says_the_same(load_tiny):
    potential = magnetic(load_tiny(torch.float64), True)
    adapter = random_deltas(potential, "linear")
    atoms = molecule("H2O")
    atoms.arrays["spin"] = np.eye(3)
    parameters = [*adapter.parameters(), *potential.fresh_parameters()]
    assert potential.accelerate
    assert_accelerated_the_same(potential, [atoms], parameters)
    assert not potential.backbone.accelerate


def _cases():
    # What does not depend on the weights is tried in one state.
    for state in STATES:
        yield from ((state, check) for check in (CLAIMED if state == "adapted" else OF_SPINS))


@pytest.mark.parametrize(("state", "check"), _cases())
@pytest.mark.parametrize("spin_orbit", [False, True], ids=["scalar", "spin_orbit"])
def test_symmetry(state, spin_orbit, check, subjects):
    result = symmetry.CHECKS[check](subjects(state, spin_orbit), examples=4, max_atoms=5)
    if check == "spin rotation" and spin_orbit:
        assert result.status == "skipped"
    else:
        assert result.status == "passed", str(result)


@pytest.mark.parametrize("block", [PolarBlock, LeakyBlock])
def test_time_reversal_finds_a_broken_block(block, load_tiny, few_shrinks):
    backbone = load_tiny(torch.float64)
    if block is LeakyBlock and o3.Irreps(backbone.node_irreps).lmax == 0:
        pytest.skip("Its node features are scalars: no irrep is in both streams.")
    subject = PotentialSubject(broken(backbone, block))
    assert symmetry.check_time_reversal(subject, examples=10, max_atoms=6).status == "failed"
    assert symmetry.check_translation(subject, examples=5, max_atoms=6).status == "passed"


def test_spin_rotation_finds_a_hidden_spin_orbit_coupling(load_tiny, few_shrinks):
    subject = PotentialSubject(magnetic(load_tiny(torch.float64), True))
    subject.spin_orbit = False
    assert symmetry.check_spin_rotation(subject, examples=10, max_atoms=6).status == "failed"


def structures():
    """A molecule and a crystal with spins, some of them zero."""
    water, salt = molecule("H2O"), bulk("NaCl", "rocksalt", a=5.6, cubic=True)
    for seed, atoms in enumerate((water, salt)):
        atoms.rattle(0.05, seed=seed)
        spins = np.random.default_rng(seed).normal(size=(len(atoms), 3))
        spins[0] = 0.0
        atoms.set_array(magnetism.SPINS, spins)
    return [water, salt]


def without_spins():
    """The same structures without the array."""
    bare = structures()
    for atoms in bare:
        del atoms.arrays[magnetism.SPINS]
    return bare


def raw(potential, frames):
    """Return the energies, forces and stresses of a batch."""
    potential.module.eval()
    batch = potential.collate([potential.graph(atoms) for atoms in frames])
    out = potential.forward(batch)
    return [out.energy.detach(), out.forces.detach(), out.stress.detach()]


@pytest.mark.parametrize("state", STATES)
def test_without_spins_the_backbone_answers_bit_for_bit(state, load_tiny, tmp_path):
    potential = in_state(load_tiny, state, False, tmp_path, torch.float32)
    for one, two in zip(
        raw(potential, without_spins()), raw(potential.backbone, without_spins()), strict=True
    ):
        assert torch.equal(one, two)
    changed = raw(potential, structures())[0] - raw(potential, without_spins())[0]
    assert changed.abs().min() > 1e-4


def test_frames_without_spins_among_frames_with_spins_keep_the_energy_of_the_backbone(load_tiny):
    potential = magnetic(load_tiny(torch.float64), False)
    mixed = [structures()[0], without_spins()[1]]
    energy = raw(potential, mixed)[0][1]
    torch.testing.assert_close(energy, raw(potential, without_spins())[0][1], rtol=1e-12, atol=1e-9)


@pytest.mark.parametrize("state", ["base", "merged"])
def test_new_layers_leave_the_energy_as_it_was(state, load_tiny):
    backbone = load_tiny(torch.float64)
    fresh = magnetism.add_spins(backbone)
    one, two = raw(fresh, structures()), raw(backbone, structures())
    for value, expected in zip(one, two, strict=True):
        torch.testing.assert_close(value, expected, rtol=1e-9, atol=1e-9)


def test_calculator_gives_moments_and_notices_that_a_spin_has_changed(load_tiny):
    potential = magnetic(load_tiny(torch.float64), False)
    atoms = structures()[1]
    atoms.calc = PotentialCalculator(potential)
    first = atoms.get_potential_energy()
    moments = atoms.calc.results["magmoms"]
    assert moments.shape == (len(atoms), 3)
    atoms.arrays[magnetism.SPINS] = -atoms.arrays[magnetism.SPINS]
    np.testing.assert_allclose(atoms.get_magnetic_moments(), -moments, atol=1e-9)
    atoms.arrays[magnetism.SPINS][1] = [0.0, 0.0, 0.7]
    assert abs(atoms.get_potential_energy() - first) > 1e-6


def test_initial_moments_are_spins_where_there_is_no_array(load_tiny):
    potential = magnetic(load_tiny(torch.float64), False)
    atoms = structures()[1]
    expected = PotentialSubject(potential)(atoms).energy
    atoms.set_initial_magnetic_moments(atoms.arrays.pop(magnetism.SPINS))
    assert PotentialSubject(potential)(atoms).energy == expected


@pytest.fixture
def saved(load_tiny, tmp_path):
    """A backbone's adapter and the layers on top, on disk."""
    in_state(load_tiny, "reloaded", False, tmp_path)
    return tmp_path


def test_layers_are_refused_on_another_backbone(saved, load_tiny):
    with pytest.raises(AdapterFileError, match="not the backbone"):
        magnetism.load(load_tiny(torch.float64), saved / "spins")


def test_layers_are_loaded_onto_the_merged_model_in_another_precision(saved, load_tiny):
    backbone = load_tiny(torch.float64)
    backbone.load_adapter(saved / "adapter")
    whole = magnetism.load(backbone, saved / "spins")
    backbone = load_tiny(torch.float32)
    backbone.load_adapter(saved / "adapter").merge()
    merged = magnetism.load(backbone, saved / "spins")
    one, two = raw(whole, structures()), raw(merged, structures())
    assert one[1].numpy() == close("forces", two[1].numpy(), torch.float32)


def test_layers_come_back_to_the_bit(load_tiny, tmp_path):
    made, again = (
        in_state(load_tiny, state, False, tmp_path).layers.state_dict()
        for state in ("adapted", "reloaded")
    )
    assert made.keys() == again.keys()
    for name, values in made.items():
        assert torch.equal(values, again[name]), name
    # Weights that float32 holds would show nothing.
    assert any((values != values.float().double()).any() for values in made.values())


def _cut_off(folder):
    path = folder / "spin_model.safetensors"
    path.write_bytes(path.read_bytes()[:-20])


def _not_finite(folder):
    from safetensors.torch import load_file, save_file

    path = folder / "spin_model.safetensors"
    tensors = load_file(path)
    tensors[min(tensors)][:] = torch.nan
    save_file(tensors, path)


def _lacking(folder):
    from safetensors.torch import load_file, save_file

    path = folder / "spin_model.safetensors"
    tensors = load_file(path)
    del tensors[min(tensors)]
    save_file(tensors, path)


def _edit(**changes):
    def damage(folder):
        path = folder / "spin_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return damage


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (_cut_off, "cut off or damaged"),
        (_not_finite, "is not as it was written"),
        (_lacking, "is not as it was written"),
        (lambda folder: (folder / "spin_config.json").write_text("{"), "not valid JSON"),
        (lambda folder: (folder / "spin_config.json").unlink(), "holds no spin-aware layers"),
        (lambda folder: (folder / "spin_model.safetensors").unlink(), "has no spin_model"),
        (_edit(format_version=99), "upgrade e3sparse"),
        (_edit(settings={}), "no config of spin-aware layers"),
        (_edit(clebsch_gordan=[0.5] * 3), "is not as it was written"),
    ],
)
def test_damaged_layers_are_refused(damage, sentence, saved, load_tiny):
    backbone = load_tiny(torch.float64)
    backbone.load_adapter(saved / "adapter")
    magnetism.load(backbone, saved / "spins")
    damage(saved / "spins")
    with pytest.raises(AdapterFileError, match=sentence):
        magnetism.load(backbone, saved / "spins")
