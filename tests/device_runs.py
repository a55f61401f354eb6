"""What a fine-tuning has to do on every device, for the tests of each backend."""

import numpy as np
import pytest
import torch
from potentials import random_deltas, relative, with_gradients
from sample_frames import splits, structures
from tolerances import close

from e3sparse.errors import Interrupted
from e3sparse.frames.evaluation import errors, predict
from e3sparse.frames.reading import LabelKeys, read_frames
from e3sparse.potentials.backends import load_potential
from e3sparse.symmetry import PotentialSubject
from e3sparse.training.config import make_config
from e3sparse.training.module import FineTuning
from e3sparse.training.run import finetune

METHODS = {
    "budget": {"target_sparsity": 0.8},
    "fixed_mask": {"score": "fisher", "target_sparsity": 0.8},
    "full": {},
}


def assert_the_same_as_on_the_cpu(model, device):
    """Compare outputs and gradients of a patched model, evaluated in both ways, in float64."""
    found = {}
    for where in ("cpu", device):
        for accelerate in (True, False):
            potential = load_potential(str(model), device=where, dtype=torch.float64)
            potential.accelerate = accelerate
            adapter = random_deltas(potential, "everything")
            frames = [atoms for atoms in structures() if atoms.pbc.all()]
            parts = with_gradients_on(potential, frames, adapter.parameters())
            found[where, accelerate] = [part.detach().cpu().numpy() for part in parts]
    for other in found.values():
        for one, two in zip(found["cpu", False], other, strict=True):
            assert np.abs(one - two).max() <= 1e-9 * max(1e-6, np.abs(one).max())


def with_gradients_on(potential, frames, parameters):
    """Do what `with_gradients` does, on the potential's device."""
    collate = potential.collate
    potential.collate = lambda graphs: collate(graphs).to(potential.device)
    return with_gradients(potential, frames, parameters)


def config(model, folder, device, method, **values):
    """Return the settings of a short run in float64."""
    data = splits(folder)
    return make_config(
        {
            "model": str(model), "device": device, "dtype": "float64", "method": method,
            "method_settings": METHODS[method], "out": folder / "run", "batch_size": 4,
            "epochs": 4, **data, **values,
        }
    )  # fmt: skip


def assert_a_run_leaves_what_it_says(model, folder, device, method, **values):
    """Train on a device; the file that is left says on the CPU what the run's table says."""
    made = config(model, folder, device, method, **values)
    table = finetune(made).table
    assert table.loc["train after", "forces_mae"] != table.loc["train before", "forces_mae"]
    (written,) = (folder / "run").glob("model.*")
    potential = load_potential(str(written), device="cpu")
    frames = read_frames(
        made.test, LabelKeys(), known=potential.species.numbers, cutoff=potential.cutoff
    )
    found = errors(frames, predict(potential, frames))
    for name in ("energy_mae", "forces_mae"):
        # SevenNet reads its files in float32, whatever they hold.
        assert found[name] == close(name, table.loc["test after", name], torch.float32)


def assert_resumed_is_uninterrupted(model, folder, device, monkeypatch, **values):
    """Stop a run, go on with it, and compare with one that was not stopped."""
    (folder / "a").mkdir()
    (folder / "b").mkdir()
    whole = finetune(config(model, folder / "a", device, "budget", **values)).table
    original = FineTuning.training_step

    def interrupted(self, batch, index):
        if self.trainer.global_step == 7:
            raise KeyboardInterrupt
        return original(self, batch, index)

    made = config(model, folder / "b", device, "budget", **values)
    with monkeypatch.context() as patched:
        patched.setattr(FineTuning, "training_step", interrupted)
        with pytest.raises(Interrupted):
            finetune(made)
    resumed = finetune(made, resume=True).table
    assert resumed.loc["test after", "forces_mae"] == pytest.approx(
        whole.loc["test after", "forces_mae"], rel=1e-6
    )


def assert_symmetries_hold(model, device):
    """Compare a structure with its mirror image and a turned one, on the device."""
    potential = load_potential(str(model), device=device, dtype=torch.float64)
    (water, _) = structures()
    turned = water.copy()
    turned.rotate(50, (1, 2, 3))
    one, two = PotentialSubject(potential).evaluate([water, turned])
    assert two.energy == pytest.approx(one.energy, rel=1e-10)
    assert relative(
        np.linalg.norm(two.forces, axis=1), np.linalg.norm(one.forces, axis=1)
    ) < 1e-9  # fmt: skip
