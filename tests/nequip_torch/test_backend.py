"""NequIP and Allegro models through the backend: packages and checkpoints in, packages out."""

import subprocess
import sys
import zipfile

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, molecule
from commands import shell
from e3sparse_nequip import NequIPPotential
from nequip.data import AtomicDataDict
from nequip.integrations.ase import NequIPCalculator
from nequip.model.saved_models.package import data_dict_from_package
from nequip_models import MODELS, TYPES, built
from potentials import (
    accelerated_layers,
    assert_accelerated_the_same,
    evaluate,
    random_deltas,
    relative,
    tolerance,
)
from replayed import drifts
from sample_frames import structures

import e3sparse
from e3sparse.adapter.targets import candidates, select
from e3sparse.errors import ConfigError, PatchError, TargetError
from e3sparse.potentials.backends import load_potential
from e3sparse.symmetry import PotentialSubject

TARGETS = {
    "nequip": ("linear", "fctp", "mlp", "tp", "embedding", "all"),
    "allegro": ("mlp", "tp", "embedding", "all"),
}
CASES = [(framework, targets) for framework in TARGETS for targets in TARGETS[framework]]


@pytest.fixture(params=["float64", "float32"])
def precision(request):
    return request.param


# Layers --------------------------------------------------------------------------------------


@pytest.mark.parametrize("framework", MODELS)
def test_all_is_every_parameter(framework):
    potential = built(framework)
    layers = select(potential.module, "all", potential.species).layers
    held = {f"{path}.{name}" for path, layout in layers.items() for name in layout.parameters}
    assert held == {name for name, _ in potential.module.named_parameters()}
    assert {path for path, layout in layers.items() if layout.external} == set(potential.fold_into)


@pytest.mark.parametrize("framework", MODELS)
def test_types_have_a_row_of_their_own_in_the_embeddings(framework):
    potential = built(framework)
    layers = candidates(potential.module, potential.species).layers
    axes = {path for path, layout in layers.items() if layout.species_rows([0]) is not None}
    assert axes == {path for path, layout in layers.items() if layout.kind == "embedding"}
    assert potential.species.numbers == (1, 6, 8, 11, 17)


@pytest.mark.parametrize("framework", MODELS)
def test_the_faster_evaluation_says_the_same(framework):
    potential = built(framework)
    adapter = random_deltas(potential, "all")
    # Allegro has no e3nn layer.
    assert (accelerated_layers(potential) > 0) == (framework == "nequip")
    assert_accelerated_the_same(potential, structures(), list(adapter.parameters()))


def test_allegro_says_what_it_holds_where_it_has_no_linear_layer():
    with pytest.raises(TargetError, match=r"no layer that can be patched.*11 mlp, 2 tp \(try"):
        built("allegro").patch("linear")


@pytest.mark.parametrize("coupling", [True, False])
def test_the_blocks_of_a_contracter_are_its_paths(coupling):
    potential = built("allegro", tp_path_channel_coupling=coupling)
    layers = select(potential.module, "tp").layers
    for path, layout in layers.items():
        module = potential.module.get_submodule(path)
        assert len(layout.blocks) == module.num_paths
        for number, (block, view) in enumerate(layout.views(module.weights)):
            assert torch.equal(view[..., 0], module.weights[..., number])
            left, right = (str(b).partition("x")[2] for b in (block.irreps_in, block.irreps_in2))
            w3j = module.w3j[number]
            i, k = (torch.nonzero(w3j)[:, axis] for axis in (0, -1))
            ones = [f"{ir}" for _, ir in module.irreps_in1 for _ in range(ir.dim)]
            outs = [f"{ir}" for _, ir in module.irreps_out for _ in range(ir.dim)]
            assert {ones[x] for x in i} == {left}
            assert {outs[x] for x in k} == {block.irreps_out.partition("x")[2]}
            assert right in {str(ir) for _, ir in module.irreps_in2}


def test_linear_layers_without_a_nonlinearity_between_them():
    changes = {"readout_mlp_hidden_layers_depth": 2, "readout_mlp_hidden_layers_width": 4}
    potential = built("nequip", readout_mlp_nonlinearity=None, **changes)
    (path,) = [
        path
        for path, layout in candidates(potential.module).layers.items()
        if layout.kind == "mlp" and layout.parts
    ]
    before = evaluate(potential)
    random_deltas(potential, path)
    patched = evaluate(potential)
    assert relative(patched, before) > 1e-3
    e3sparse.merge(potential.module)
    assert relative(evaluate(potential), patched) < tolerance(potential)


# Evaluation ----------------------------------------------------------------------------------


def test_agrees_with_nequips_own_calculator(base):
    for file in base:
        potential = load_potential(str(file), backend="nequip")
        calculator = NequIPCalculator._from_saved_model(
            str(file), chemical_species_to_atom_type_map=True
        )
        for atoms in structures():
            ours = PotentialSubject(potential)(atoms)
            atoms.calc = calculator
            assert ours.energy == pytest.approx(atoms.get_potential_energy(), rel=1e-12)
            np.testing.assert_allclose(ours.forces, atoms.get_forces(), atol=1e-12)
            if atoms.pbc.all():
                stress = atoms.get_stress(voigt=False)
                np.testing.assert_allclose(ours.stress, stress, atol=1e-12)


@pytest.mark.parametrize("framework", MODELS)
def test_a_model_in_the_other_precision(framework, precision):
    expected = evaluate(built(framework, model_dtype=precision))
    other = {"float32": torch.float64, "float64": torch.float32}[precision]
    converted = NequIPPotential(
        "again", built(framework, model_dtype=precision).module, dtype=other
    )
    assert {p.dtype for p in converted.module.parameters()} == {other}
    assert converted.dtype == other
    assert 1e-15 < relative(evaluate(converted), expected) < 1e-5
    before = evaluate(converted)[0]
    converted.shift_energies({1: 1e6 / 3})
    assert evaluate(converted)[0] - before == pytest.approx(2e6 / 3, rel=1e-12)


# Merged --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("framework", "targets"), CASES)
def test_merged_is_an_ordinary_model(framework, targets, precision, tmp_path):
    potential = built(framework, model_dtype=precision)
    before, keys = evaluate(potential), list(potential.module.state_dict())
    classes = [type(module) for module in potential.module.modules()]
    adapter = random_deltas(potential, targets)
    patched = evaluate(potential)
    assert relative(patched, before) > 1e-4
    folder = adapter.save_pretrained(tmp_path / "adapter")
    adapter.merge()
    assert relative(evaluate(potential), patched) < tolerance(potential)
    assert list(potential.module.state_dict()) == keys
    assert all(p.requires_grad for p in potential.module.parameters())
    assert [type(module) for module in potential.module.modules()] == classes
    fresh = built(framework, model_dtype=precision)
    fresh.load_adapter(folder)
    assert relative(evaluate(fresh), patched) < tolerance(potential)
    adapter.restore()
    np.testing.assert_array_equal(evaluate(potential), before)


LOADS = """
import importlib.metadata, sys, numpy
real = importlib.metadata.entry_points
importlib.metadata.entry_points = lambda **which: (
    () if which.get("group") == "nequip.extension" else real(**which)
)
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.startswith("e3sparse"):
            raise ImportError(f"{name} is not installed here")
sys.meta_path.insert(0, Refuse())
from ase import Atoms
from ase.build import bulk, molecule
from nequip.data import AtomicDataDict
from nequip.data import AtomicDataDict
from nequip.integrations.ase import NequIPCalculator
atoms = molecule("H2O")
load = NequIPCalculator._from_saved_model
atoms.calc = load(sys.argv[1], chemical_species_to_atom_type_map=True)
print(repr(atoms.get_potential_energy()))
"""


def test_the_package_of_a_merged_model_needs_no_e3sparse(base, tmp_path):
    for file in base:
        potential = load_potential(str(file), backend="nequip")
        adapter = random_deltas(potential, "all")
        patched = evaluate(potential)
        with pytest.raises(PatchError, match="merge the adapter first"):
            potential.save(tmp_path / "patched.nequip.zip")
        adapter.merge()
        merged = tmp_path / f"{file.name}.nequip.zip"
        potential.save(merged)
        assert not [n for n in zipfile.ZipFile(merged).namelist() if "e3sparse" in n]
        again = load_potential(str(merged))
        assert relative(evaluate(again), patched) < 1e-12
        assert all(p.requires_grad for p in again.module.parameters())
        command = [sys.executable, "-W", "ignore", "-c", LOADS, str(merged)]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        expected = PotentialSubject(again)(molecule("H2O")).energy
        assert float(said.split("(")[-1].rstrip(")\n")) == pytest.approx(expected, rel=1e-9)
        info = shell("nequip-package", "info", merged, cwd=tmp_path)
        assert "available_models" in info


@pytest.mark.parametrize(
    "atoms", [Atoms("H"), molecule("H2O"), bulk("Na", "bcc", a=4.3)], ids=["H", "H2O", "Na"]
)
def test_a_package_from_a_checkpoint_and_a_small_structure(atoms, base_of, tmp_path):
    potential = load_potential(str(base_of("nequip")[0]), backend="nequip")
    with pytest.raises(ConfigError, match="evaluate a structure first"):
        potential.save(tmp_path / "early.nequip.zip")
    assert not list(tmp_path.iterdir())
    expected = PotentialSubject(potential)(atoms)
    potential.save(tmp_path / "saved.nequip.zip")
    again = PotentialSubject(load_potential(str(tmp_path / "saved.nequip.zip")))(atoms)
    assert again.energy == pytest.approx(expected.energy, rel=1e-12)
    example = data_dict_from_package(str(tmp_path / "saved.nequip.zip"))
    assert AtomicDataDict.num_nodes(example) > 3
    assert torch.linalg.det(example[AtomicDataDict.CELL_KEY]).abs().min() > 1.0
    assert AtomicDataDict.num_edges(example) > 3


def test_energy_references_are_folded_into_the_shifts():
    potential = built()
    before = evaluate(potential)[0]
    potential.shift_energies({1: 0.5, 8: -2.0})
    assert evaluate(potential)[0] == pytest.approx(before - 1.0)
    with pytest.raises(ConfigError, match=r"no energy shift of each.*--e0s keep"):
        built(per_type_energy_shifts=None).shift_energies({1: 1.0})
    with pytest.raises(ConfigError, match=r"no energy shift of each.*--e0s keep"):
        built(per_type_energy_shifts=-3.0).shift_energies({1: 1.0})


def test_absent_elements_stay_as_they_are():
    potential = built()
    adapter = potential.patch("embedding", "budget", target_sparsity=0.5, total_steps=1)
    assert adapter.freeze_absent_species([1, 6, 8]) == [11, 17]
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter.normal_()
    adapter.step(1.0)
    (path,) = adapter.layouts
    before = dict(potential.module.named_parameters())[f"{path}.weight"].detach().clone()
    adapter.merge()
    after = potential.module.get_parameter(f"{path}.weight")
    absent = [TYPES.index(name) for name in ("Na", "Cl")]
    assert torch.equal(after[absent], before[absent])
    assert not torch.equal(after, before)


# What is refused -----------------------------------------------------------------------------


def test_what_cannot_be_loaded(tmp_path, monkeypatch, base_of):
    cut = tmp_path / "cut.nequip.zip"
    cut.write_bytes(base_of("nequip")[1].read_bytes()[:5000])
    with pytest.raises(ConfigError, match="no archive that torch could load, or is cut short"):
        load_potential(str(cut))
    with pytest.raises(ConfigError, match=r"neither a file nor a name of the form nequip.net:"):
        load_potential("oam-l", backend="nequip")
    with pytest.raises(ConfigError, match="one level of theory only"):
        load_potential(str(base_of("nequip")[1]), head="pbe")

    def no_network(*arguments, **options):
        raise ConnectionError("Network is unreachable")

    monkeypatch.setattr("requests.Session.get", no_network)
    with pytest.raises(ConfigError, match=r"not in NequIP's cache and could not be downloaded"):
        load_potential("nequip.net:mir-group/NequIP-OAM-L:0.1")


@pytest.mark.parametrize("framework", MODELS)
def test_replay_sees_a_changed_delta_and_no_other(framework):
    fresh, changed = drifts(built(framework))
    assert fresh < 1e-9
    assert changed > 1e-4
