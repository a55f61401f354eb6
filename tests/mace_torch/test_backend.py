"""MACE models through the backend: what MACE says, what it can be given back, what is refused."""

import copy
import io

import numpy as np
import pytest
import torch
from e3nn.util import jit
from e3sparse_mace import MACEBackend
from mace.calculators import LAMMPS_MACE, MACECalculator
from mace_architectures import random_model
from mace_models import NUMBERS, SHARED, TARGETS, load, tiny
from potentials import evaluate, random_deltas, relative, tolerance
from replayed import drifts
from sample_frames import structures
from tolerances import close

import e3sparse
from e3sparse.adapter.targets import select
from e3sparse.errors import ConfigError, PatchError, TargetError
from e3sparse.potentials.backends import load_potential
from e3sparse.symmetry import PotentialSubject

# Counts --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("architecture", "linear", "parameters", "share"),
    [("off23-medium", 331_152, 1_428_368, 0.2318), ("mp-0b3-medium", 341_264, 9_063_204, 0.0377)],
)
def test_the_linear_layers_are_the_share_that_the_paper_gives(
    architecture, linear, parameters, share
):
    model = random_model(architecture, torch.float32)
    layers = select(model, "linear").layers
    assert sum(layout.numel for layout in layers.values()) == linear
    assert sum(p.numel() for p in model.parameters()) == parameters
    assert linear / parameters == pytest.approx(share, abs=5e-5)


def test_everything_is_every_parameter_and_the_paths_of_the_convolutions(potential):
    layers = select(potential.module, "everything", potential.species).layers
    held = {f"{path}.{name}" for path, layout in layers.items() for name in layout.parameters}
    zeroed = {
        name for name, p in potential.module.named_parameters() if "weights" in name and not p.any()
    }
    assert held == {name for name, _ in potential.module.named_parameters()} - zeroed
    assert {path for path, layout in layers.items() if layout.external} == set(potential.fold_into)


def test_products_are_species_by_path_by_channel(potential):
    layers = select(potential.module, "products", potential.species).layers
    for path, layout in layers.items():
        module = potential.module.get_submodule(path)
        assert {block.shape[0] for block in layout.blocks} == {len(NUMBERS)}
        assert {block.shape[2] for block in layout.blocks} == {module.num_features}
        assert {block.species_axis for block in layout.blocks} == {0}
    outputs = [layout.irreps_out for layout in layers.values()]
    assert outputs == ["4x0e", "4x1o", "4x0e"]
    rows = next(iter(layers.values())).species_rows([1])
    path = next(iter(layers))
    only_carbon = {0: False, 1: True}
    for part in next(iter(layers.values())).split(rows).values():
        assert {int(k): bool(v) for k, v in enumerate(part[:2, 0, 0])} == only_carbon, path


# What MACE says ------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_agrees_with_maces_own_calculator(tiny_file, dtype):
    potential = load(tiny_file, getattr(torch, dtype))
    calculator = MACECalculator(str(tiny_file), device="cpu", default_dtype=dtype)
    for atoms in structures():
        ours = PotentialSubject(potential)(atoms)
        atoms.calc = calculator
        # In float64 ours has the coefficients to 16 digits, MACE's those of the file.
        assert ours.energy == close("energy", atoms.get_potential_energy(), torch.float32)
        assert ours.forces == close("forces", atoms.get_forces(), torch.float32)
        if atoms.pbc.all():
            assert ours.stress == close("stress", atoms.get_stress(voigt=False), torch.float32)


@pytest.mark.parametrize("name", ["mace_spice_small", "mace_gst"])
def test_pretrained_files(name):
    path = SHARED / "models" / f"{name}.model"
    if not path.is_file():
        pytest.skip(f"{path} is not here")
    potential = load_potential(str(path))
    assert potential.framework.keys() == {"mace-torch"}
    atoms = structures()[0]
    atoms.numbers[:] = potential.species.numbers[:3]
    atoms.positions *= 2.0
    before = PotentialSubject(potential)(atoms)
    random_deltas(potential, "everything")
    patched = PotentialSubject(potential)(atoms)
    e3sparse.merge(potential.module)
    merged = PotentialSubject(potential)(atoms)
    assert np.abs(patched.forces - before.forces).max() > 1e-3
    assert merged.forces == close("forces", patched.forces, potential.dtype)


def test_energies_keep_the_digits_that_float32_would_lose(tiny_file):
    potentials = [load(tiny_file, dtype) for dtype in (torch.float32, torch.float64)]
    for potential in potentials:
        potential.shift_energies(dict.fromkeys(NUMBERS, -70_000.0))
    single, double = (PotentialSubject(p)(structures()[0]).energy for p in potentials)
    assert single == close("energy", double, torch.float32, scale=12.0)  # without the cores
    assert abs(double) > 2e5


# Merged --------------------------------------------------------------------------------------


@pytest.mark.parametrize("targets", TARGETS)
def test_merged_is_an_ordinary_model(potential, tiny_file, targets, tmp_path):
    before, keys = evaluate(potential), list(potential.module.state_dict())
    flags = {name: p.requires_grad for name, p in potential.module.named_parameters()}
    classes = [type(module) for module in potential.module.modules()]
    adapter = random_deltas(potential, targets)
    patched = evaluate(potential)
    assert relative(patched, before) > 1e-3
    folder = adapter.save_pretrained(tmp_path / "adapter")
    adapter.merge()
    assert relative(evaluate(potential), patched) < tolerance(potential)
    assert list(potential.module.state_dict()) == keys
    assert {name: p.requires_grad for name, p in potential.module.named_parameters()} == flags
    assert [type(module) for module in potential.module.modules()] == classes
    potential.save(tmp_path / "merged.model")
    again = load(tmp_path / "merged.model")
    assert again.dtype == potential.dtype
    assert relative(evaluate(again), patched) < tolerance(potential)
    fresh = load(tiny_file, potential.dtype)
    fresh.load_adapter(folder)
    assert relative(evaluate(fresh), patched) < tolerance(potential)
    adapter.restore()
    np.testing.assert_array_equal(evaluate(potential), before)


def test_a_merged_file_in_maces_calculator_and_in_lammps(potential, tmp_path):
    random_deltas(potential, "everything")
    expected = evaluate(potential)
    e3sparse.merge(potential.module)
    potential.save(tmp_path / "merged.model")
    dtype = str(potential.dtype).removeprefix("torch.")
    calculator = MACECalculator(str(tmp_path / "merged.model"), device="cpu", default_dtype=dtype)
    atoms = structures()[0]
    atoms.calc = calculator
    # MACE's calculator has coefficients of 7 digits.
    assert atoms.get_potential_energy() == close("energy", expected[0], torch.float32)
    module = torch.load(tmp_path / "merged.model", weights_only=False)
    compiled = jit.compile(LAMMPS_MACE(module))
    assert isinstance(compiled, torch.jit.ScriptModule)


# Patched -------------------------------------------------------------------------------------


def test_a_patched_model_is_copied_and_pickled(potential):
    random_deltas(potential, "everything")
    patched = evaluate(potential)
    buffer = io.BytesIO()
    torch.save(potential.module, buffer)
    buffer.seek(0)
    twins = [torch.load(buffer, weights_only=False), copy.deepcopy(potential.module)]
    original = potential.module
    for twin in twins:
        potential.module = twin
        np.testing.assert_array_equal(evaluate(potential), patched)
        e3sparse.merge(twin)
        assert relative(evaluate(potential), patched) < tolerance(potential)
        potential.module = original
        np.testing.assert_array_equal(evaluate(potential), patched)


def test_the_state_dict_of_a_patched_model_goes_into_another(potential, tiny_file):
    adapter = random_deltas(potential, "everything")
    state = potential.module.state_dict()
    other = load(tiny_file, potential.dtype)
    other.patch("everything", "dense")
    other.module.load_state_dict(state)
    np.testing.assert_array_equal(evaluate(other), evaluate(potential))
    base = load(tiny_file, potential.dtype)
    assert set(base.module.state_dict()) == set(state) - {
        key for key in state if ".e3sparse." in key
    }
    adapter.remove()


def test_a_patched_model_is_neither_saved_nor_compiled(potential, tmp_path):
    random_deltas(potential, "products")
    with pytest.raises(PatchError, match="merge the adapter first"):
        potential.save(tmp_path / "patched.model")
    assert not list(tmp_path.iterdir())
    with pytest.raises(PatchError, match="merge the adapter first"):
        jit.compile(LAMMPS_MACE(potential.module))


@pytest.mark.parametrize("targets", TARGETS)
def test_absent_elements_stay_as_they_are(potential, targets):
    adapter = potential.patch(targets, "budget", target_sparsity=0.5, total_steps=1)
    adapter.freeze_absent_species([1, 6, 8])
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    adapter.step(1.0)
    before = {name: p.detach().clone() for name, p in potential.module.named_parameters()}
    adapter.merge()
    absent = [NUMBERS.index(z) for z in (7, 11, 17)]
    for path in ("products.0.symmetric_contractions.contractions.0.weights_max",):
        after = dict(potential.module.named_parameters())[path]
        assert torch.equal(after[absent], before[path][absent])
        if targets in ("products", "everything"):
            assert not torch.equal(after, before[path])


def test_last_needs_no_gradient_of_the_first_interaction(potential):
    layers = select(potential.module, potential.resolve("last")).layers
    assert all("interactions.0" not in path and "products.0" not in path for path in layers)
    assert {"interactions.1.linear", "products.1.linear", "readouts.1.linear_2"} <= set(layers)
    with pytest.raises(TargetError, match="Did you mean 'products'"):
        potential.patch("product")


# Heads, energies -----------------------------------------------------------------------------


@pytest.fixture
def two_heads(tmp_path):
    path = tmp_path / "two.model"
    torch.save(tiny(heads=("pbe", "r2scan")), path)
    return path


def test_a_head_has_to_be_chosen(two_heads, tiny_file):
    with pytest.raises(ConfigError, match=r"several heads: choose --head pbe \| r2scan"):
        load(two_heads)
    with pytest.raises(ConfigError, match=r"no head 'r2scn'. Did you mean 'r2scan'"):
        load(two_heads, head="r2scn")
    with pytest.raises(ConfigError, match=r"no head 'pbe'.* It has: Default"):
        load(tiny_file, head="pbe")


def test_heads_have_energies_of_their_own(two_heads):
    pbe, r2scan = (load(two_heads, head=head) for head in ("pbe", "r2scan"))
    assert relative(evaluate(pbe), evaluate(r2scan)) > 1e-4
    before = evaluate(r2scan)[0]
    r2scan.shift_energies({8: 1.5})
    assert evaluate(r2scan)[0] == pytest.approx(before + 1.5)
    energies = r2scan.module.atomic_energies_fn.atomic_energies
    assert torch.equal(energies[0], pbe.module.atomic_energies_fn.atomic_energies[0])


def test_models_from_before_heads(tmp_path):
    old = copy.deepcopy(tiny())
    del old.heads
    old.atomic_energies_fn.atomic_energies = old.atomic_energies_fn.atomic_energies[0]
    torch.save(old, tmp_path / "old.model")
    potential = load(tmp_path / "old.model")
    before = evaluate(potential)[0]
    potential.shift_energies({1: 2.0})
    assert evaluate(potential)[0] == pytest.approx(before + 4.0)


def test_scratch_keeps_energies_and_draws_the_weights(potential):
    before = {k: v.clone() for k, v in potential.module.state_dict().items()}
    potential.reinitialize(3)
    first = evaluate(potential)
    after = potential.module.state_dict()
    names = {name for name, _ in potential.module.named_parameters()}
    assert all(torch.equal(after[k], v) for k, v in before.items() if k not in names)
    assert not torch.equal(
        after["node_embedding.linear.weight"], before["node_embedding.linear.weight"]
    )
    potential.reinitialize(3)
    np.testing.assert_array_equal(evaluate(potential), first)


# What is refused -----------------------------------------------------------------------------


def test_names_that_have_to_be_downloaded(monkeypatch):
    def no_network(*arguments, **options):
        raise OSError("Network is unreachable")

    monkeypatch.setattr("urllib.request.urlopen", no_network)
    for name in ("medium-0b3", "medium-off", "extra_large-omol", "polar-1-s", "mh-1"):
        with pytest.raises(ConfigError, match=f"'{name}' is not in MACE's cache and could not be"):
            load(name)
    with pytest.raises(ConfigError, match=r"Did you mean 'medium-0b3'\?"):
        load("medium-0b33")


def test_a_cached_download_is_used(monkeypatch, tmp_path, tiny_file):
    monkeypatch.setattr("mace.calculators.foundations_models.get_cache_dir", lambda: str(tmp_path))
    content = tiny_file.read_bytes()
    (tmp_path / "macemp0b3mediummodel").write_bytes(content)
    (tmp_path / "MACE-OFF23_medium.model").write_bytes(content)
    for name in ("medium-0b3", "medium-off"):
        assert load_potential(name).species.numbers == NUMBERS


def test_files_that_are_no_model(tmp_path, tiny_file):
    cut = tmp_path / "cut.model"
    cut.write_bytes(tiny_file.read_bytes()[:3000])
    with pytest.raises(ConfigError, match=r"cut.model' (cannot be loaded|is no file)"):
        load(cut)
    other = tmp_path / "other.model"
    torch.save(torch.nn.Linear(1, 1), other)
    with pytest.raises(ConfigError, match="holds a Linear, not a MACE model"):
        load(other)
    assert not MACEBackend().recognises(other)
    assert MACEBackend().recognises(tiny_file)
    compiled = tmp_path / "compiled.model"
    torch.jit.save(torch.jit.script(torch.nn.Linear(1, 1)), compiled)
    with pytest.raises(ConfigError, match="compiled with TorchScript"):
        load(compiled)


def test_replay_sees_a_changed_delta_and_no_other(potential):
    fresh, changed = drifts(potential)
    assert fresh < 1e-9
    assert changed > 1e-4
