"""What the tests of all backends do with a potential."""

import numpy as np
import pytest
import torch
from sample_frames import structures
from tolerances import rounding

from e3sparse.adapter.targets import candidates
from e3sparse.symmetry import PotentialSubject


def gate_or_night(states, gate):
    """Return states or models as parameters; those not of the gate are tried at night."""
    return [
        state if state in gate else pytest.param(state, marks=pytest.mark.nightly)
        for state in states
    ]


def assert_the_states_are_two_models(subject_in):
    """Compare what the suite is not run on in the gate with what it is run on.

    A delta that was loaded gives the model that it was saved from, and one that was taken out
    leaves the base, both to the bit; merged is adapted to rounding. So what the suite says of one
    it says of the other.

    Parameters
    ----------
    subject_in
        Returns the subject of a state.
    """

    def said(state):
        found = subject_in(state).evaluate(structures())
        return np.concatenate([np.append(f.forces.ravel(), f.energy) for f in found])

    base, adapted = said("base"), said("adapted")
    assert relative(adapted, base) > 1e-3
    np.testing.assert_array_equal(said("loaded"), adapted)
    np.testing.assert_array_equal(said("restored"), base)
    assert relative(said("merged"), adapted) < rounding("forces", subject_in("merged").dtype)


def evaluate(potential):
    """Return energies, forces and stresses of a few structures as one array."""
    found = PotentialSubject(potential).evaluate(structures())
    parts = [[np.array([f.energy]), f.forces.ravel()] for f in found]
    stresses = [f.stress.ravel() for f in found if f.stress is not None]
    return np.concatenate([x for pair in parts for x in pair] + stresses)


def random_deltas(potential, targets, seed=1, **options):
    """Patch with a dense ΔW of a fifth of the spread of the weights."""
    adapter = potential.patch(targets, "dense", **options)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in adapter.parameters():
            drawn = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.copy_(0.2 * drawn)
    return adapter


def relative(a, b):
    """Return the largest difference in units of the largest entry of b."""
    return np.abs(a - b).max() / np.abs(b).max()


def tolerance(potential):
    """Return what rounding may do to `relative`."""
    return rounding("forces", potential.dtype)


def accelerated_layers(potential):
    """Return how many e3nn layers run in the way that is differentiated faster."""
    with potential.accelerated():
        return sum("forward" in vars(module) for module in potential.module.modules())


def with_gradients(potential, frames, parameters):
    """Return energies, forces, and the gradients of a loss on both by the parameters."""
    potential.module.train()
    out = potential.forward(potential.collate([potential.graph(atoms) for atoms in frames]))
    loss = out.energy.square().sum() + out.forces.square().sum()
    grads = torch.autograd.grad(loss, parameters, allow_unused=True, materialize_grads=True)
    return [out.energy.detach(), out.forces.detach(), *grads]


def assert_accelerated_the_same(potential, frames, parameters, bound=1e-11):
    """Compare outputs and gradients of the faster evaluation with those of the framework's own."""
    potential.accelerate = True
    fast = with_gradients(potential, frames, parameters)
    potential.accelerate = False
    slow = with_gradients(potential, frames, parameters)
    assert any(grad.any() for grad in slow[2:])
    for one, two in zip(fast, slow, strict=True):
        scale = max(1e-6, float(two.abs().max()))
        assert float((one - two).abs().max()) / scale < bound


def said_of(potential, atoms):
    """Return energy, forces and stress of one structure as one array."""
    found = PotentialSubject(potential)(atoms)
    stress = [] if found.stress is None else found.stress.ravel()
    return np.concatenate([[found.energy], found.forces.ravel(), stress])


def assert_only_trained_elements_change(load, reload, tmp_path):
    """Train H and O by `targets="species"`: salt keeps the base's numbers to the last digit.

    Parameters
    ----------
    load, reload
        Make the base potential; and read it from the file that it has been saved to.
    """
    water, salt = structures()
    shifts = {1: 0.3, 8: -0.2}
    bases = [said_of(load(), atoms) for atoms in (water, salt)]

    def states():
        potential = load()
        adapter = random_deltas(potential, "species")
        adapter.freeze_absent_species(shifts)
        yield "patched", potential
        assert set(shifts).isdisjoint(adapter.untouched_species())
        assert {11, 17} <= set(adapter.untouched_species())
        adapter.energy_references.update(shifts)
        folder = adapter.save_pretrained(tmp_path / "species")
        adapter.merge()
        potential.shift_energies(adapter.energy_references)
        yield "merged", potential
        fresh = load()
        loaded = fresh.load_adapter(folder)
        yield "loaded", fresh
        assert loaded.untouched_species() == adapter.untouched_species()
        saved = tmp_path / f"species{potential.suffix}"
        potential.save(saved)
        yield "reloaded", reload(saved)

    for name, potential in states():
        found = [said_of(potential, atoms) for atoms in (water, salt)]
        assert relative(found[0], bases[0]) > 1e-3, name
        np.testing.assert_array_equal(found[1], bases[1], err_msg=name)

    shared = load()  # the control: layers that all elements share
    adapter = random_deltas(shared, "linear" if "linear" in kinds(shared) else "mlp")
    adapter.freeze_absent_species(shifts)
    assert adapter.untouched_species() == []
    assert not np.array_equal(said_of(shared, salt), bases[1])


def kinds(potential):
    """Return the layer kinds of a potential."""
    return {layout.kind for layout in candidates(potential.module).layers.values()}
