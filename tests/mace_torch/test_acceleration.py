"""The faster evaluation says what MACE's own says, and leaves nothing behind."""

import copy
import io

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import molecule
from e3sparse_mace.backend import MACEPotential
from mace_architectures import ARCHITECTURES, random_model
from mace_models import NUMBERS, TARGETS, tiny
from potentials import assert_accelerated_the_same
from test_backend import evaluate, random_deltas

import e3sparse

LARGE = {"mp-0b3-medium"}  # the elements of the Materials Project: 20 s


def potential_of(module):
    return MACEPotential("test", module, device="cpu", dtype=None, head=None)


def small(**changes):
    return potential_of(copy.deepcopy(tiny(**changes)))


def every_element(numbers, seed=0):
    """Return structures in which each element of a table occurs."""
    rng = np.random.default_rng(seed)
    order = rng.permutation(np.repeat(numbers, 2))
    return [
        Atoms(chunk, positions=rng.uniform(0, 2.2 * len(chunk) ** (1 / 3) + 1, (len(chunk), 3)))
        for chunk in np.array_split(order, max(1, len(order) // 12))
    ]


@pytest.mark.parametrize(
    "architecture",
    [pytest.param(name, marks=pytest.mark.slow if name in LARGE else ()) for name in ARCHITECTURES],
)
def test_every_element_of_the_published_architectures(architecture):
    potential = potential_of(random_model(architecture, torch.float64))
    frames = every_element(potential.species.numbers)
    batch = potential.collate([potential.graph(atoms) for atoms in frames])
    potential.module.eval()
    fast = potential.forward(batch)
    potential.accelerate = False
    slow = potential.forward(batch)
    assert set(np.concatenate([atoms.numbers for atoms in frames])) == set(
        potential.species.numbers
    )
    for one, two in zip(fast[:2], slow[:2], strict=True):
        assert float((one - two).detach().abs().max() / two.detach().abs().max()) < 1e-12


@pytest.mark.parametrize("targets", TARGETS)
def test_gradients_by_the_deltas(targets):
    potential = small()
    adapter = random_deltas(potential, targets)
    assert_accelerated_the_same(potential, every_element(NUMBERS), adapter.parameters())


def test_gradients_by_all_weights():
    potential = small()
    weights = [p for p in potential.module.parameters() if p.requires_grad]
    assert_accelerated_the_same(potential, every_element(NUMBERS), weights)


@pytest.mark.parametrize(
    "changes",
    [
        {"correlation": 1},
        {"correlation": 2},
        {"correlation": 4, "max_ell": 1},
        {"use_agnostic_product": True},
        {"num_interactions": 1},
        {"num_interactions": 3},
        {"heads": ("a",)},
    ],
    ids=str,
)
def test_other_architectures(changes):
    potential = small(**changes)
    adapter = random_deltas(potential, "linear")
    assert_accelerated_the_same(potential, every_element(NUMBERS), adapter.parameters())


def test_what_is_trained_is_evaluated_anew():
    potential = small()
    before = evaluate(potential)
    adapter = random_deltas(potential, "products")
    patched = evaluate(potential)
    assert np.abs(patched - before).max() > 1e-3
    adapter.merge()
    np.testing.assert_allclose(evaluate(potential), patched, rtol=1e-10, atol=1e-12)
    adapter.restore()
    np.testing.assert_array_equal(evaluate(potential), before)
    with torch.no_grad():
        potential.module.products[0].symmetric_contractions.contractions[0].weights_max.mul_(2.0)
    assert np.abs(evaluate(potential) - before).max() > 1e-3


def test_the_control_sees_coefficients_of_another_element():
    potential = small()
    before = evaluate(potential)
    folded = potential._acceleration.contractions[0].known
    folded[NUMBERS.index(1)], folded[NUMBERS.index(8)] = (
        folded[NUMBERS.index(8)],
        folded[NUMBERS.index(1)],
    )
    assert np.abs(evaluate(potential) - before).max() > 1e-3


def forwards_of_their_own(module):
    return [
        path
        for path, part in module.named_modules()
        if "forward" in vars(part) and not isinstance(part, torch.jit.ScriptModule)
    ]


def test_nothing_is_left_in_the_model(monkeypatch):
    potential = small()
    evaluate(potential)
    assert forwards_of_their_own(potential.module) == []
    torch.save(potential.module, io.BytesIO())
    batch = potential.collate([potential.graph(molecule("H2O"))])
    seen = []

    def fail(*arguments, **options):
        seen.extend(forwards_of_their_own(potential.module))
        raise KeyboardInterrupt

    monkeypatch.setattr(potential.module.readouts[0], "forward", fail)
    with pytest.raises(KeyboardInterrupt):
        potential.forward(batch)
    monkeypatch.undo()
    assert "interactions.0.skip_tp" in seen
    assert "products.1.symmetric_contractions" in seen
    assert forwards_of_their_own(potential.module) == []


def test_a_merge_of_all_adapters_keeps_it_exact():
    potential = small()
    for seed, targets in enumerate(("linear", "fctp", "products")):
        random_deltas(potential, targets, seed=seed, name=targets)
    e3sparse.merge(potential.module)
    weights = [p for p in potential.module.parameters() if p.requires_grad]
    assert_accelerated_the_same(potential, every_element(NUMBERS), weights)
