"""Deltas are where their weights are, and say the same on every device."""

import copy

import pytest
import torch
from devices import on_each_device
from networks import (
    DTYPES,
    FOLD_INTO,
    SPECIES,
    atoms,
    bits,
    difference,
    network,
    patch,
    random_adapter,
    weights,
)

import e3sparse
from e3sparse.deltas import METHODS

pytestmark = on_each_device


def fresh(dtype=torch.float64):
    """Return a model all of whose parts can be moved."""
    return copy.deepcopy(network(dtype))


def features(model, device):
    """Return what the model says of four atoms on a device."""
    positions, species = atoms(model.readout.bias.dtype)
    with torch.device(device):  # the network makes indices of its own
        return model.features(positions.to(device), species.to(device))


def trained(adapter, model, device, steps=6):
    """Train on the squared output by AdamW; returns the losses."""
    optimizer = torch.optim.AdamW(adapter.param_groups(1e-2))
    losses = []
    for n in range(steps):
        loss = features(model, device).square().sum()
        optimizer.zero_grad()
        loss.backward(inputs=adapter.parameters())
        optimizer.step()
        adapter.step((n + 1) / steps, optimizer=optimizer)
        losses.append(float(loss.detach()))
    return losses


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("method", METHODS)
def test_a_delta_is_made_trained_merged_and_taken_out_on_the_device(method, dtype, device):
    model = fresh(dtype).to(device)
    before, base = features(model, device).detach(), weights(model)
    adapter = patch(model, method=method)
    assert {p.device.type for p in model.parameters()} == {device}
    assert {b.device.type for b in model.buffers()} == {device}
    if adapter.method.calibrated:
        adapter.calibrate([features(model, device).square().sum()])
    adapter.freeze_absent_species([1, 6])
    losses = trained(adapter, model, device)
    assert losses[-1] < losses[0]
    assert not adapter.values()["embedding"].reshape(3, 4)[2].any()
    patched = features(model, device).detach()
    assert difference(patched, before) > 1e-4
    e3sparse.merge(model)
    tolerance = 1e-4 if dtype == torch.float32 else 1e-12
    assert difference(features(model, device), patched) < tolerance
    adapter.restore()
    assert weights(model) == base


@pytest.mark.parametrize("method", METHODS)
def test_the_start_does_not_depend_on_the_device(method, device):
    here = patch(fresh(), method=method).parameters()
    there = patch(fresh().to(device), method=method).parameters()
    assert [bits(p) for p in here] == [bits(p) for p in there]


@pytest.mark.parametrize("method", METHODS)
def test_an_adapter_moves_with_its_model_and_through_a_file(method, device, tmp_path):
    model = fresh()
    adapter = random_adapter(model, method=method)
    said = features(model, "cpu").detach()
    model.to(device)
    assert difference(features(model, device).cpu(), said) < 1e-12
    adapter.save_pretrained(tmp_path / "adapter")
    loaded = fresh().to(device)
    again = e3sparse.load(loaded, tmp_path / "adapter", species=SPECIES, fold_into=FOLD_INTO)
    assert {v.device.type for v in again.values().values()} == {device}
    assert difference(features(loaded, device).cpu(), said) < 1e-12
    model.to("cpu")
    assert difference(features(model, "cpu"), said) < 1e-14


def test_a_budget_keeps_the_same_entries_on_every_device(device):
    kept = []
    for where in ("cpu", device):
        model = fresh().to(where)
        adapter = patch(model, method="budget", target_sparsity=0.9)
        trained(adapter, model, where)
        kept.append({path: (v != 0).cpu() for path, v in adapter.values().items()})
    assert all(torch.equal(kept[0][path], kept[1][path]) for path in kept[0])
