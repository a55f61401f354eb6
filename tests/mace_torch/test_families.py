"""The architectures of MACE's foundation models: species, targets, heads, charges, saved files."""

import copy

import numpy as np
import pytest
import torch
from ase.build import molecule
from e3nn import o3
from e3sparse_mace.backend import MACEBackend, MACEPotential
from families import FAMILIES, small
from mace.calculators import MACECalculator
from mace_models import TARGETS, load, tiny
from potentials import assert_accelerated_the_same, evaluate, random_deltas, relative
from test_acceleration import every_element

import e3sparse
from e3sparse.adapter.targets import candidates, select
from e3sparse.errors import ConfigError, TargetError
from e3sparse.potentials.calculator import PotentialCalculator
from e3sparse.potentials.trust import look
from e3sparse.symmetry import CHECKS, PotentialSubject

LINEAR_SELF_CONNECTIONS = ("mh-0", "mh-1", "omol", "embedded")
"""Families without a fully connected tensor product, with a radial network of torch's layers."""


def potential_of(family, dtype=torch.float64, head=0):
    model = copy.deepcopy(small(family, dtype))
    return MACEPotential(family, model, device="cpu", dtype=None, head=model.heads[head])


@pytest.fixture(params=FAMILIES)
def family(request):
    return request.param


# Species -------------------------------------------------------------------------------------


def test_the_layers_that_run_over_elements(family):
    potential = potential_of(family)
    blocks = range(len(potential.module.interactions))
    expected = {"node_embedding.linear": 0}
    for k in blocks:
        if family in LINEAR_SELF_CONNECTIONS:
            expected[f"interactions.{k}.source_embedding"] = 0
            expected[f"interactions.{k}.target_embedding"] = 0
        else:
            expected[f"interactions.{k}.skip_tp"] = 1
    products = {
        path
        for path, module in potential.module.named_modules()
        if type(module).__name__ == "Contraction" and family != "mh-1"  # agnostic
    }
    assert potential.species.axes == expected | dict.fromkeys(products, 0)
    candidates(potential.module, potential.species)


def test_what_elements_see_depends_on_their_own_rows_only(family):
    """A delta in the rows of absent elements changes nothing where these are absent."""
    potential = potential_of(family)
    before = evaluate(potential)
    adapter = random_deltas(potential, list(potential.species.axes))
    present = {1, 8, 11, 17}  # of the structures that `evaluate` takes
    indices = [i for i, z in enumerate(potential.species.numbers) if z in present]
    with torch.no_grad():
        for path, delta in adapter.deltas().items():
            (weight,) = delta.parameters()
            weight[adapter.layouts[path].species_rows(indices)] = 0.0
            assert weight.any()
    np.testing.assert_array_equal(evaluate(potential), before)
    with torch.no_grad():
        for path, delta in adapter.deltas().items():
            (weight,) = delta.parameters()
            weight[adapter.layouts[path].species_rows(indices[:1])] = 0.1
    assert relative(evaluate(potential), before) > 1e-6


@pytest.mark.parametrize("method", ["soft_threshold", "budget"])
def test_elements_that_were_not_trained_keep_their_rows(family, method):
    potential = potential_of(family)
    adapter = potential.patch("everything", method, seed=1)
    absent = adapter.freeze_absent_species([1, 8])
    with torch.no_grad():
        for delta in adapter.deltas().values():
            for parameter in delta.parameters():
                if parameter.ndim:
                    parameter.add_(0.3)
    rows = [i for i, z in enumerate(potential.species.numbers) if z in absent]
    for path, values in adapter.values().items():
        held = adapter.layouts[path].species_rows(rows)
        if path in potential.species.axes:
            assert not values[held].any(), path
            assert values[~held].all(), path
        else:
            assert held is None, path
            assert values.all(), path  # no output channel is taken for an element


# Targets -------------------------------------------------------------------------------------


@pytest.mark.parametrize("targets", TARGETS)
def test_merged_is_patched(family, targets, tmp_path):
    potential = potential_of(family)
    if targets == "fctp" and family in LINEAR_SELF_CONNECTIONS:
        with pytest.raises(TargetError) as error:
            potential.patch(targets)
        held = select(potential.module, "everything").layers.values()
        linear = sum(layout.kind == "linear" for layout in held)
        assert "targets='fctp' matches no layer" in str(error.value)
        assert f"holds {linear} linear, " in str(error.value)
        assert "Did you mean" not in str(error.value)
        return
    before = evaluate(potential)
    adapter = random_deltas(potential, targets)
    patched = evaluate(potential)
    assert relative(patched, before) > 1e-4
    folder = adapter.save_pretrained(tmp_path / "adapter")
    adapter.merge()
    assert relative(evaluate(potential), patched) < 1e-12
    fresh = potential_of(family)
    fresh.load_adapter(folder)
    assert relative(evaluate(fresh), patched) < 1e-12
    adapter.restore()
    np.testing.assert_array_equal(evaluate(potential), before)


def test_all_is_linear_and_fully_connected(family):
    potential = potential_of(family)
    layers = select(potential.module, potential.resolve("all"), potential.species).layers
    found = {
        path
        for path, module in potential.module.named_modules()
        if isinstance(module, o3.Linear | o3.FullyConnectedTensorProduct)
    }
    assert set(layers) == found


def test_last_needs_no_gradient_of_an_earlier_interaction(family):
    potential = potential_of(family)
    layers = select(potential.module, potential.resolve("last"), potential.species).layers
    last = len(potential.module.interactions) - 1
    places = {path.rpartition(".")[0] for path in layers}
    assert {f"interactions.{last}", f"products.{last}"} <= places
    assert any(place.startswith("readouts") for place in places)
    assert not places & {"interactions.0", "products.0", "node_embedding"}
    assert {layout.kind for layout in layers.values()} == {"linear"}
    assert not set(layers) & set(potential.species.axes)


def test_patched_and_merged_in_float32(family):
    potential = potential_of(family, torch.float32)
    random_deltas(potential, "everything")
    patched = evaluate(potential)
    e3sparse.merge(potential.module)
    assert relative(evaluate(potential), patched) < 1e-5


# Evaluation ----------------------------------------------------------------------------------


def test_acceleration(family):
    potential = potential_of(family)
    adapter = random_deltas(potential, "everything")
    numbers = potential.species.numbers[:12]
    assert_accelerated_the_same(potential, every_element(numbers), adapter.parameters(), 1e-10)
    batch = potential.collate([potential.graph(atoms) for atoms in every_element(numbers)])
    potential.module.eval()
    potential.accelerate = True
    fast = potential.forward(batch)
    potential.accelerate = False
    slow = potential.forward(batch)
    for one, two in zip(fast[:2], slow[:2], strict=True):
        assert float((one - two).detach().abs().max() / two.detach().abs().max()) < 1e-12


@pytest.mark.parametrize("check", ["rotation", "inversion", "permutation", "forces"])
@pytest.mark.parametrize("merged", [False, True], ids=["adapted", "merged"])
def test_symmetry(family, check, merged):
    potential = potential_of(family)
    random_deltas(potential, "everything")
    if merged:
        e3sparse.merge(potential.module)
    result = CHECKS[check](PotentialSubject(potential), max_atoms=6, examples=4)
    assert result.status == "passed", str(result)


def test_from_scratch(family):
    potential = potential_of(family)
    before = evaluate(potential)
    potential.reinitialize(3)
    assert relative(evaluate(potential), before) > 1e-6


# Heads ---------------------------------------------------------------------------------------


def test_a_head_is_kept_and_the_others_change_with_the_trunk(tmp_path):
    trained, other = potential_of("mh-0", head=1), potential_of("mh-0", head=2)
    before, others_before = evaluate(trained), evaluate(other)
    random_deltas(trained, "interactions.1.linear_2")
    trained.shift_energies({8: 1.0})
    e3sparse.merge(trained.module)
    trained.save(tmp_path / "merged.model")
    again = load(tmp_path / "merged.model", head="omol")
    assert again.heads == list(FAMILIES["mh-0"]["heads"])
    np.testing.assert_array_equal(evaluate(again), evaluate(trained))
    assert relative(evaluate(trained), before) > 1e-3
    # What the heads have in common was trained: the others say something else, too.
    others = evaluate(load(tmp_path / "merged.model", head="matpes"))
    assert relative(others, others_before) > 1e-3
    energies = again.module.atomic_energies_fn.atomic_energies
    assert torch.equal(energies[2], other.module.atomic_energies_fn.atomic_energies[2])
    assert not torch.equal(energies[1], energies[2])


# Charge and spin -----------------------------------------------------------------------------


def with_info(**info):
    atoms = molecule("OH")
    atoms.info.update(info)
    return atoms


def energy(potential, **info):
    return PotentialSubject(potential)(with_info(**info)).energy


@pytest.mark.parametrize("name", ["omol", "embedded"])
def test_charge_and_spin_are_those_of_the_frame(name, tmp_path):
    potential = potential_of(name)
    path = tmp_path / "omol.model"
    potential.save(path)
    calculator = MACECalculator(str(path), device="cpu", default_dtype="float64")
    said = []
    for info in ({}, {"charge": -1}, {"spin": 2}, {"charge": 1, "spin": 3}):
        atoms = with_info(**info)
        atoms.calc = calculator
        calculator.reset()
        said.append(energy(potential, **info))
        assert said[-1] == pytest.approx(atoms.get_potential_energy(), abs=1e-9)
    assert len(set(np.round(said, 6))) == 4
    assert energy(potential, total_charge=-1) == said[1]
    assert energy(potential, charge=0, spin=1) == said[0]


def test_frames_of_one_batch_have_charges_of_their_own():
    potential = potential_of("embedded")
    frames = [with_info(charge=-1), with_info(charge=1, spin=2)]
    together = potential.forward(potential.collate([potential.graph(f) for f in frames])).energy
    for one, frame in zip(together.tolist(), frames, strict=True):
        assert one == pytest.approx(energy(potential, **frame.info), abs=1e-9)


@pytest.mark.parametrize(
    ("info", "says"),
    [
        ({"charge": 6}, r"charge = 6, and embedded knows whole numbers from -5 to 5"),
        ({"charge": 0.5}, r"charge = 0.5, and embedded knows whole numbers"),
        ({"spin": "high"}, r"spin = high, and embedded knows whole numbers from 0 to 5"),
        ({"charge": 1, "total_charge": 0}, r"charge = 1 and total_charge = 0, which are two names"),
    ],
)
def test_charges_that_the_model_does_not_know(info, says):
    potential = potential_of("embedded")
    with pytest.raises(ConfigError, match=says):
        potential.graph(with_info(**info))
    potential_of("omol").graph(with_info(charge=6, spin=60))
    # Other models do not read them.
    potential_of("off23").graph(with_info(**info))


def test_an_input_that_has_no_default():
    specs = {
        "pressure": {"type": "continuous", "per": "graph", "in_dim": 1, "emb_dim": 3},
        "tag": {
            "type": "categorical",
            "per": "atom",
            "num_classes": 3,
            "emb_dim": 2,
            "key": "kind",
        },
    }
    potential = MACEPotential(
        "mine", tiny.__wrapped__(embedding_specs=specs), device="cpu", dtype=None, head=None
    )
    atoms = with_info(pressure=0.5)
    with pytest.raises(ConfigError, match=r"mine reads 'tag'.*no such array.*'kind' or 'tag'"):
        potential.graph(atoms)
    atoms.set_array("kind", np.array([0, 2]))
    low = PotentialSubject(potential)(atoms).energy
    atoms.info["pressure"] = 2.5
    assert PotentialSubject(potential)(atoms).energy != low


def test_the_calculator_sees_a_change_of_charge():
    potential = potential_of("embedded")
    atoms = with_info(charge=0)
    atoms.calc = PotentialCalculator(potential)
    neutral = atoms.get_potential_energy()
    atoms.info["charge"] = -1
    assert atoms.get_potential_energy() == pytest.approx(energy(potential, charge=-1), abs=1e-9)
    assert atoms.get_potential_energy() != neutral


# Saved files ---------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
def test_saving_is_idempotent(family, dtype, tmp_path):
    """Also where a file of float32 is used in float64: it holds the constants that it held."""
    base, written = tmp_path / "base.model", tmp_path / "written.model"
    torch.save(small(family, torch.float32), base)
    head = small(family, torch.float32).heads[0]
    potential = load(base, dtype, head=head)
    before = evaluate(potential)
    random_deltas(potential, "linear")
    e3sparse.merge(potential.module)
    e3sparse.adapters(potential.module)
    potential.save(tmp_path / "merged.model")
    again = load(base, dtype, head=head)
    again.save(written)
    np.testing.assert_array_equal(evaluate(again), before)
    states = [
        torch.load(path, weights_only=False).to(dtype).state_dict()
        for path in (base, written, tmp_path / "merged.model")
    ]
    parameters = {name for name, _ in small(family, torch.float32).named_parameters()}
    for name, values in states[0].items():
        assert torch.equal(values, states[1][name]), name
        if name not in parameters:
            assert torch.equal(values, states[2][name]), name
    assert any(not torch.equal(states[0][n], states[2][n]) for n in parameters)


@pytest.mark.parametrize("family", FAMILIES)
def test_their_files_hold_nothing_but_layers_and_data(family, tmp_path):
    torch.save(small(family), tmp_path / "model")
    look(tmp_path / "model", MACEBackend.layers, MACEBackend.pickled)
