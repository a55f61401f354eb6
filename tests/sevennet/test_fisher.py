"""Fisher information of the base model: what it is, where it is read from, what it holds back."""

import numpy as np
import pytest
import safetensors.torch
import torch
from ase.build import molecule
from rich.console import Console
from support import load

from e3sparse.adapter.targets import candidates
from e3sparse.errors import ConfigError
from e3sparse.frames.batches import FrameDataset, collate
from e3sparse.frames.evaluation import predict
from e3sparse.frames.reading import Frame
from e3sparse.training import fisher
from e3sparse.training.config import make_config
from e3sparse.training.fisher import base_fisher, checked_for, fisher_for, penalty, prices_of
from e3sparse.training.losses import Loss
from e3sparse.training.run import finetune

WEIGHTS = 0.7, 2.0
"""Of energies and forces."""


@pytest.fixture
def potential(tiny_checkpoint):
    return load(tiny_checkpoint, torch.float64)


def frame_of(atoms, potential):
    """Return a structure with the labels of the base model."""
    blank = Frame(atoms, 0.0, np.zeros(0), None)
    said = predict(potential, [blank])
    return Frame(atoms, float(said.energy[0]), said.forces[0], None)


def water(potential):
    atoms = molecule("H2O")
    atoms.rattle(0.05, seed=1)
    return frame_of(atoms, potential)


def test_it_is_the_sum_of_squared_derivatives(potential, monkeypatch):
    """Signs from the columns of a Hadamard matrix make the mean over projections exact."""
    rows = torch.ones(1, 1, dtype=torch.float64)
    for _ in range(4):
        rows = torch.cat([torch.cat([rows, rows], 1), torch.cat([rows, -rows], 1)])
    numbers = iter(range(2 * len(rows)))

    def signs(like, rng):
        number = next(numbers)
        row = rows[number // 2]
        return (row[:1] if number % 2 == 0 else row[1:10]).reshape(like.shape)

    monkeypatch.setattr(fisher, "_signs", signs)
    frame = water(potential)
    found = base_fisher(potential, [frame], "linear", weights=WEIGHTS, seed=0, draws=16)
    adapter = potential.patch("linear", "dense")
    held = adapter.parameters()
    potential.module.train()
    batch = collate(potential, [FrameDataset([frame], potential, {})[0]])
    said = potential.forward(batch.inputs)
    outputs = [(WEIGHTS[0] ** 0.5 / 3) * said.energy[0]]
    outputs += [(WEIGHTS[1] / 9) ** 0.5 * x for x in said.forces.reshape(-1)]
    expected = [torch.zeros_like(p) for p in held]
    for output in outputs:
        grads = torch.autograd.grad(output, held, retain_graph=True, allow_unused=True)
        expected = [e if g is None else e + g**2 for e, g in zip(expected, grads, strict=True)]
    for one, two in zip(found.values(), expected, strict=True):
        torch.testing.assert_close(one, two.reshape(one.shape), rtol=1e-9, atol=1e-14)


def test_half_of_it_times_a_square_is_the_loss_of_a_small_change(potential):
    frame = water(potential)
    loss = Loss(energy=WEIGHTS[0], forces=WEIGHTS[1], stress=0.0)
    found = base_fisher(potential, [frame], "linear", weights=WEIGHTS, seed=0, draws=300)
    adapter = potential.patch("linear", "dense")
    batch = collate(potential, [FrameDataset([frame], potential, {})[0]])
    for path, delta in adapter.deltas().items():
        (values,) = delta.parameters()
        index = int(found[path].argmax())
        with torch.no_grad():
            values.view(-1)[index] = step = 1e-4
        changed = float(loss(potential.forward(batch.inputs), batch))
        cost = float(penalty(found, adapter))
        assert changed == pytest.approx(cost, rel=0.35), path  # 300 draws scatter by 8 %
        assert cost == pytest.approx(0.5 * float(found[path].max()) * step**2)
        with torch.no_grad():
            values.zero_()
    assert float(penalty(found, adapter)) == 0


def test_the_model_is_as_it_was(potential):
    frame = water(potential)
    before = {n: (t.clone(), type(t)) for n, t in potential.module.state_dict().items()}
    wanted = [p.requires_grad for p in potential.module.parameters()]
    potential.module.eval()
    base_fisher(potential, [frame], "linear", weights=WEIGHTS, seed=0)
    assert not potential.module.training
    assert [p.requires_grad for p in potential.module.parameters()] == wanted
    now = potential.module.state_dict()
    assert list(now) == list(before)
    assert all(torch.equal(now[n], t) for n, (t, _) in before.items())


def file_of(potential, folder, kind, change=lambda tensors: None):
    tensors = {
        f"{path}.weight": torch.full(layout.shape, 2.0)
        for path, layout in candidates(potential.module).layers.items()
        if layout.kind == "linear"
    }
    change(tensors)
    file = folder / f"fisher.{kind}"
    (safetensors.torch.save_file if kind == "safetensors" else torch.save)(tensors, file)
    return file


@pytest.mark.parametrize("kind", ["safetensors", "pt"])
def test_a_file_by_parameter_name(kind, potential, tmp_path, data_files):
    file = file_of(potential, tmp_path, kind)
    said = {"model": "m", "train": data_files["train"], "fisher": str(file)}
    asked = make_config(said)
    read = fisher_for(asked, potential, Console(quiet=True))
    adapter = potential.patch("linear", "dense")
    assert set(read) == set(adapter.layouts)
    assert all(bool((value == 2).all()) for value in checked_for(read, adapter).values())
    assert asked.files()["--fisher"] == file


def negative(tensors):
    next(iter(tensors.values()))[0] = -1


def infinite(tensors):
    next(iter(tensors.values()))[0] = torch.inf


def of_another(tensors):
    name = next(iter(tensors))
    tensors[name] = tensors[name][:-1].clone()


def renamed(tensors):
    for name in list(tensors):
        tensors[f"model.{name}"] = tensors.pop(name)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (negative, "negative or not finite"),
        (infinite, "negative or not finite"),
        (of_another, "it is of another model"),
        (renamed, "no values for a layer of this model; it has 'model"),
        (dict.clear, "no values for a layer of this model; it has 'nothing'"),
    ],
)
def test_a_file_that_does_not_fit(change, says, potential, tmp_path):
    file = file_of(potential, tmp_path, "pt", change)
    with pytest.raises(ConfigError, match=says):
        fisher.read_fisher(file, candidates(potential.module).layers)


@pytest.mark.parametrize("content", [b"", b"no tensors", None])
def test_a_file_that_is_none(content, potential, tmp_path):
    file = tmp_path / "fisher.pt"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(ConfigError, match=r"fisher\.pt"):
        fisher.read_fisher(file, candidates(potential.module).layers)


def test_a_layer_without_values_is_not_trained_unheld(potential, tmp_path):
    read = fisher.read_fisher(
        file_of(potential, tmp_path, "pt"), candidates(potential.module).layers
    )
    adapter = potential.patch(["linear", "fctp"], "dense")
    with pytest.raises(ConfigError, match=r"no Fisher information of layer .*fc_tensor"):
        checked_for(read, adapter)


def test_a_budget_keeps_what_is_cheap(potential):
    kept = {}
    for power in (0.0, 1.0, 2.0):
        adapter = potential.patch("linear", "budget", target_sparsity=0.9, total_steps=1)
        generator = torch.Generator().manual_seed(0)
        needed = {}
        for path, delta in adapter.deltas().items():
            with torch.no_grad():
                delta.v.uniform_(0.5, 1.0, generator=generator)
            needed[path] = torch.rand(delta.v.shape, generator=generator, dtype=torch.float64) ** 4
        if power:
            adapter.set_prices(prices_of(needed, power))
        adapter.step(1.0)
        kept[power] = float(penalty(needed, adapter))
        assert adapter.sparsity().layerwise == pytest.approx(0.9, abs=1e-2)
        adapter.remove()
    assert kept[0.0] > 5 * kept[1.0] >= 5 * kept[2.0]


def test_a_training_is_held_back(tiny_checkpoint, data_files, tmp_path):
    """What it costs the base model is less than without, the control."""
    costs = {}
    for name, given in {
        "free": {},
        "held": {"fisher": "auto", "fisher_weight": 100.0, "fisher_price": 1.0},
    }.items():
        settings = {
            "model": str(tiny_checkpoint), "out": tmp_path / name, **data_files, "max_steps": 12,
            "batch_size": 4, "device": "cpu", "dtype": "float64", "allow_worse": True,
            "method_settings": {"target_sparsity": 0.5},
            **(given | {"fisher_structures": 8} if given else {}),
        }  # fmt: skip
        asked = make_config(settings)
        result = finetune(asked)
        if given:
            needed = fisher_for(asked, load(tiny_checkpoint, torch.float64), Console(quiet=True))
        columns = (tmp_path / name / "metrics.csv").read_text().splitlines()[0]
        assert ("fisher_penalty" in columns) == bool(given)
        costs[name] = result.adapter
    free, held = (float(penalty(needed, costs[name])) for name in ("free", "held"))
    assert 0 < held < 0.3 * free


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"fisher_weight": 1.0}, "fisher_weight has no effect without fisher"),
        ({"fisher": "auto", "method": "full"}, "method full trains none"),
        ({"fisher": "auto", "fisher_price": 1.0, "method": "dense"}, "chooses none"),
        ({"fisher": "auto", "magnetic": True}, "together with magnetic"),
    ],
)
def test_settings_that_would_do_nothing(given, says):
    with pytest.raises(ConfigError, match=says):
        make_config({"model": "m", "train": "t.xyz", **given})
