"""The SevenNet backend says what SevenNet says, patched, merged, saved and loaded again."""

import copy

import numpy as np
import pytest
import torch
from potentials import accelerated_layers, assert_accelerated_the_same, random_deltas
from sample_frames import structures
from sevenn.calculator import SevenNetCalculator
from support import load
from tolerances import close, rounding

import e3sparse
from e3sparse import Budget, Dense, FixedMask, LowRank
from e3sparse.errors import AdapterFileError, ConfigError, PatchError
from e3sparse.potentials.calculator import PotentialCalculator

TARGETS = ("linear", "fctp", "tp", "mlp", "all")


def evaluate(potential):
    potential.module.eval()
    out = potential.forward(potential.collate([potential.graph(a) for a in structures()]))
    return torch.cat([part.detach().reshape(-1) for part in out[:3]])


def randomize(adapter, scale=0.3):
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in adapter.parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.add_(scale * noise.to(parameter))


def relative(a, b):
    return float((a - b).norm() / b.norm())


@pytest.mark.parametrize(
    ("name", "head"), [("7net-0", None), ("7net-l3i5", None), ("7net-mf-0", "PBE")]
)
def test_agrees_with_sevennets_own_calculator(name, head, tmp_path):
    potential = load(name, head=head)
    saved = tmp_path / "again.pth"
    potential.save(saved)
    own = SevenNetCalculator(name, device="cpu", modal=head)
    again = SevenNetCalculator(str(saved), device="cpu", modal=head)
    for atoms in structures():
        results = []
        for calculator in (PotentialCalculator(potential), own, again):
            atoms.calc = calculator
            stress = atoms.get_stress() if atoms.pbc.all() else np.zeros(6)
            results.append((atoms.get_potential_energy(), atoms.get_forces(), stress))
        for energy, forces, stress in results[1:]:
            assert results[0][0] == close("energy", energy, torch.float32)
            assert results[0][1] == close("forces", forces, torch.float32)
            assert results[0][2] == close("stress", stress, torch.float32)


@pytest.mark.parametrize(
    ("name", "head"), [("7net-0", None), ("7net-l3i5", None), ("7net-mf-0", "PBE")]
)
def test_the_faster_evaluation_says_the_same(name, head):
    potential = load(name, dtype=torch.float64, head=head)
    adapter = random_deltas(potential, "all")
    assert accelerated_layers(potential) >= 3
    assert_accelerated_the_same(potential, structures(), list(adapter.parameters()))
    potential.accelerate = False
    assert accelerated_layers(potential) == 0


def test_the_version_of_an_old_file_would_permute_the_weights(tmp_path):
    # The control of the test above: what `save` guards against does happen.
    potential = load("7net-0")
    potential.save(tmp_path / "good.pth")
    checkpoint = torch.load(tmp_path / "good.pth", weights_only=False)
    checkpoint["config"]["version"] = "0.9.1"
    torch.save(checkpoint, tmp_path / "old.pth")
    assert relative(evaluate(load(tmp_path / "old.pth")), evaluate(potential)) > 1e-2


@pytest.mark.parametrize("targets", TARGETS)
@pytest.mark.parametrize(
    "method", [Budget(), Dense(), LowRank(), FixedMask(target_sparsity=0.5)], ids=lambda m: m.name
)
def test_step_zero_is_the_base_model_bit_for_bit(tiny, targets, method):
    before = evaluate(tiny)
    adapter = tiny.patch(targets, method, total_steps=10)
    assert torch.equal(evaluate(tiny), before)
    randomize(adapter)
    assert not torch.equal(evaluate(tiny), before)


@pytest.mark.parametrize("targets", TARGETS)
def test_merged_saved_and_loaded_equal_patched(tiny, targets, tmp_path):
    base = evaluate(tiny)
    keys = list(tiny.module.state_dict())
    adapter = tiny.patch(targets, "dense")
    randomize(adapter)
    patched = evaluate(tiny)
    adapter.save_pretrained(tmp_path / "adapter")
    adapter.merge()
    tolerance = 1e-12 if tiny.dtype == torch.float64 else 1e-6
    assert relative(evaluate(tiny), patched) < tolerance
    assert relative(base, patched) > 1e-3
    assert list(tiny.module.state_dict()) == keys
    tiny.save(tmp_path / "merged.pth")
    # SevenNet reads every checkpoint into a float32 model.
    again = evaluate(load(tmp_path / "merged.pth", tiny.dtype))
    assert relative(again, evaluate(tiny)) <= (0 if tiny.dtype == torch.float32 else 1e-6)
    adapter.restore()
    assert torch.equal(evaluate(tiny), base)
    loaded = tiny.load_adapter(tmp_path / "adapter")
    assert torch.equal(evaluate(tiny), patched)
    loaded.remove()
    assert torch.equal(evaluate(tiny), base)


def test_7net0_merged_equals_patched_in_float64(tmp_path):
    potential = load("7net-0", torch.float64)
    base = evaluate(potential)
    adapter = potential.patch("all", "budget", total_steps=10)
    randomize(adapter)
    adapter.step(1.0)
    patched = evaluate(potential)
    adapter.save_pretrained(tmp_path / "adapter")
    adapter.merge()
    assert relative(evaluate(potential), patched) < 1e-12
    assert relative(base, patched) > 1e-3
    adapter.restore()
    assert torch.equal(evaluate(potential), base)


def test_adapter_file_is_a_tenth_of_the_checkpoint(tmp_path):
    potential = load("7net-0")
    adapter = potential.patch("linear", "budget", total_steps=10)
    randomize(adapter)
    adapter.step(1.0)
    assert adapter.sparsity().layerwise == pytest.approx(0.97, abs=1e-5)
    adapter.save_pretrained(tmp_path / "adapter")
    adapter.merge()
    potential.save(tmp_path / "model.pth")
    size = sum(file.stat().st_size for file in (tmp_path / "adapter").iterdir())
    assert 0 < size <= (tmp_path / "model.pth").stat().st_size / 10


def test_absent_elements_keep_their_weights(tiny):
    base = copy.deepcopy(tiny.module.state_dict())
    adapter = tiny.patch("all", "soft_threshold")
    absent = adapter.freeze_absent_species([1, 8])
    assert absent == [6, 7, 11, 17]
    randomize(adapter)
    adapter.merge()
    now = tiny.module.state_dict()
    rows = [tiny.species.numbers.index(z) for z in absent]
    others = [tiny.species.numbers.index(z) for z in (1, 8)]
    embedding = "onehot_to_feature_x.linear.weight"
    views = [state[embedding].reshape(len(tiny.species.numbers), -1) for state in (base, now)]
    assert torch.equal(views[0][rows], views[1][rows])
    assert not torch.equal(views[0][others], views[1][others])
    mul = 4
    key = "0_self_connection_intro.fc_tensor_product.weight"
    first = [state[key][: mul * 6 * 8].reshape(mul, 6, 8) for state in (base, now)]
    assert torch.equal(first[0][:, rows], first[1][:, rows])
    assert not torch.equal(first[0][:, others], first[1][:, others])


def test_a_patched_model_is_not_saved_as_a_checkpoint(tiny, tmp_path):
    tiny.patch("linear")
    with pytest.raises(PatchError, match="merge"):
        tiny.save(tmp_path / "model.pth")
    assert not list(tmp_path.iterdir())


def test_energy_shifts_go_into_the_checkpoint(tiny, tmp_path):
    before = evaluate(tiny)
    tiny.shift_energies({1: 0.5, 8: -2.0})
    after = evaluate(tiny)
    size = float(before[0].abs())
    assert float(after[0] - before[0]) == close("energy", 2 * 0.5 - 2.0, tiny.dtype, scale=size)
    assert after[2:].numpy() == close("forces", before[2:].numpy(), tiny.dtype)
    tiny.save(tmp_path / "shifted.pth")
    assert torch.equal(evaluate(load(tmp_path / "shifted.pth", tiny.dtype)), after)


def test_shifts_of_one_level_of_theory_leave_the_other_alone():
    pbe, scan = load("7net-mf-0", head="PBE"), load("7net-mf-0", head="R2SCAN")
    before = evaluate(pbe), evaluate(scan)
    pbe.shift_energies({1: 1.0})
    scan.module.load_state_dict(pbe.module.state_dict())
    size = float(before[0][0].abs())
    moved = float(evaluate(pbe)[0] - before[0][0])
    assert moved == close("energy", 2.0, torch.float32, scale=size)
    assert evaluate(scan).numpy() == close("forces", before[1].numpy(), torch.float32)


def test_reinitialized_weights_are_others_and_seeded(tiny):
    before = copy.deepcopy(tiny.module.state_dict())
    tiny.reinitialize(1)
    drawn = copy.deepcopy(tiny.module.state_dict())
    assert not torch.equal(
        drawn["0_self_interaction_1.linear.weight"], before["0_self_interaction_1.linear.weight"]
    )
    assert torch.equal(drawn["rescale_atomic_energy.shift"], before["rescale_atomic_energy.shift"])
    tiny.reinitialize(1)
    assert all(
        torch.equal(a, b)
        for a, b in zip(tiny.module.state_dict().values(), drawn.values(), strict=True)
    )


def test_an_adapter_is_refused_by_another_model(tmp_path, tiny_checkpoint):
    load(tiny_checkpoint).patch("linear").save_pretrained(tmp_path / "adapter")
    other = load(tiny_checkpoint)
    with torch.no_grad():
        other.module.get_parameter("reduce_hidden_to_energy.linear.weight")[0] += 1
    with pytest.raises(AdapterFileError, match="fingerprint"):
        other.load_adapter(tmp_path / "adapter")
    with pytest.raises(AdapterFileError, match="another model"):
        load("7net-0").load_adapter(tmp_path / "adapter")


@pytest.mark.parametrize(
    ("model", "head", "says"),
    [
        ("7net0", None, "Did you mean '7net-0'"),
        ("7net-mf-0", None, "--head R2SCAN | PBE"),
        ("7net-mf-0", "SCAN", "Did you mean 'R2SCAN'"),
        ("7net-0", "PBE", "leave --head out"),
        ("7net-omni", None, "could not be downloaded"),
    ],
)
def test_models_that_cannot_be_loaded(model, head, says, monkeypatch):
    monkeypatch.setattr("sevenn.util.download_checkpoint", _no_network)
    with pytest.raises(ConfigError, match=says.replace("|", r"\|")):
        load(model, head=head)


def _no_network(*args):
    raise OSError("no network")


def test_a_file_that_is_no_checkpoint(tmp_path):
    path = tmp_path / "notes.pth"
    path.write_text("not a model")
    with pytest.raises(ConfigError, match="cannot be loaded"):
        load(path)
    torch.save({"weights": torch.ones(3)}, path)
    with pytest.raises(ConfigError, match="not a SevenNet checkpoint"):
        load(path)


def test_copies_of_a_patched_model_are_independent(tiny):
    adapter = tiny.patch("all", "dense")
    randomize(adapter)
    patched = evaluate(tiny)
    twin = copy.copy(tiny)
    twin.module = copy.deepcopy(tiny.module)
    e3sparse.merge(twin.module)
    assert torch.equal(evaluate(tiny), patched)
    assert relative(evaluate(twin), patched) < rounding("forces", tiny.dtype)
