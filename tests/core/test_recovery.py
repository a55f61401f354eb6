"""A training that leaves all bounds goes back, and one that does not is left alone."""

import numpy as np
import pytest
import torch
from ase.build import molecule
from torch import nn

pytest.importorskip("lightning")

from lightning import LightningModule, Trainer
from schedulefree import AdamWScheduleFree

from e3sparse.errors import DivergedError
from e3sparse.frames.reading import Frame
from e3sparse.frames.references import offsets_left
from e3sparse.training.recovery import Recovery, no_worse

pytestmark = pytest.mark.any_e3nn

CURVATURE = torch.tensor([1.0, 0.3, 0.01], dtype=torch.float64)
START = torch.tensor([1.0, -2.0, 3.0], dtype=torch.float64)
STEPS, VALID = 120, 40


def loss_of(w):
    return 0.5 * (CURVATURE * w.square()).sum()


class Bowl(LightningModule):
    """Minimises a quadratic form by SGD, which is stable up to a rate of 2."""

    def __init__(self, make, spoil=None):
        super().__init__()
        self.w = nn.Parameter(START.clone())
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))
        self.make, self.spoil = make, spoil
        self.rates, self.losses = [], []

    def configure_optimizers(self):
        return self.make([self.w])

    def training_step(self, batch, index):
        (optimizer,) = self.trainer.optimizers
        self.rates.append(optimizer.param_groups[0]["lr"])
        self.count += 1
        loss = loss_of(self.w)
        if self.spoil is not None:
            loss = self.spoil(loss, self.trainer.global_step)
        self.losses.append(float(loss))
        return loss

    def on_train_start(self):
        self._train(True)

    def on_validation_start(self):
        self._train(False)

    def on_validation_end(self):
        self._train(True)

    def _train(self, on):
        (optimizer,) = self.trainer.optimizers
        if isinstance(optimizer, AdamWScheduleFree):
            optimizer.train() if on else optimizer.eval()

    def validation_step(self, batch, index):
        self.log("valid/loss", loss_of(self.w))


def sgd(lr):
    return lambda params: torch.optim.SGD(params, lr=lr)


def schedule_free(lr):
    return lambda params: AdamWScheduleFree(params, lr=lr)


def trained(make, recovery, tmp_path, spoil=None, accumulate=1):
    module = Bowl(make, spoil)
    batches = [torch.zeros(1)] * VALID
    trainer = Trainer(
        accelerator="cpu",
        max_steps=STEPS,
        accumulate_grad_batches=accumulate,
        callbacks=[] if recovery is None else [recovery],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        default_root_dir=tmp_path,
    )
    trainer.fit(module, batches, batches[:1])
    return module


BASE = float(loss_of(START))


@pytest.mark.parametrize("lr", [2.5, 4.0, 20.0, 200.0])
@pytest.mark.parametrize("base", [BASE, None], ids=["base", "no_base"])
def test_past_stability_the_rate_falls_until_it_is_stable(lr, base, tmp_path):
    # Without a base model, ten losses have to be known before one can be too high.
    if base is None and lr > 4:
        pytest.skip("the first ten losses are beyond all measure")
    left_alone = trained(sgd(lr), None, tmp_path)
    assert not loss_of(left_alone.w) < 1e6 * BASE
    recovery = Recovery(lr, base)
    module = trained(sgd(lr), recovery, tmp_path)
    assert loss_of(module.w) < BASE
    assert recovery.setbacks
    factors = [setback["rate"] for setback in recovery.setbacks]
    assert factors == [0.5**n for n in range(1, len(factors) + 1)]
    assert module.rates[-1] == pytest.approx(lr * factors[-1])
    assert all(s["back_to"] < s["step"] for s in recovery.setbacks)


@pytest.mark.parametrize("make", [sgd(0.5), schedule_free(0.05)], ids=["sgd", "schedule_free"])
@pytest.mark.parametrize("base", [BASE, None], ids=["base", "no_base"])
def test_a_training_in_which_nothing_is_noticed_is_the_same_to_the_bit(make, base, tmp_path):
    recovery = Recovery(0.5, base)
    alone, watched = trained(make, None, tmp_path), trained(make, recovery, tmp_path)
    assert not recovery.setbacks
    assert alone.losses == watched.losses
    assert torch.equal(alone.w, watched.w)


@pytest.mark.parametrize("make", [sgd(0.5), schedule_free(0.05)], ids=["sgd", "schedule_free"])
def test_weights_buffers_and_the_optimizer_go_back_together(make, tmp_path):
    def thrown(loss, step):  # three steps whose losses say nothing of the weights
        return loss + 1e3 if 70 <= step < 73 else loss

    recovery = Recovery(0.5, BASE)
    module = trained(make, recovery, tmp_path, thrown)
    (setback,) = recovery.setbacks
    assert setback["step"] == 73
    again = module.losses[73]  # the first after the return
    assert again == module.losses[setback["back_to"]]
    assert int(module.count) == STEPS - (setback["step"] - setback["back_to"])
    assert module.rates[73] == 0.5 * module.rates[72]


@pytest.mark.parametrize("steps", [1, 2])
def test_a_batch_or_two_of_other_frames_are_no_reason(steps, tmp_path):
    def odd(loss, step):
        return loss + 1e3 if 70 <= step < 70 + steps else loss

    recovery = Recovery(0.5, BASE)
    trained(sgd(0.5), recovery, tmp_path, odd)
    assert not recovery.setbacks


@pytest.mark.parametrize("accumulate", [1, 3])
def test_losses_are_those_of_batches_however_many_make_a_step(accumulate, tmp_path):
    recovery = Recovery(0.1, BASE)
    losses = trained(sgd(0.1), recovery, tmp_path, accumulate=accumulate).losses
    seen = list(recovery._losses)
    assert seen == pytest.approx(losses[-len(seen) :], rel=1e-6)


def test_a_validation_far_above_the_base_is_noticed(tmp_path):
    # The losses of the steps are 0, whatever their gradients; only the validation tells.
    recovery = Recovery(3.0, BASE)
    trained(sgd(3.0), recovery, tmp_path, lambda loss, step: loss - loss.detach())
    assert "validation loss" in recovery.setbacks[0]["why"]


@pytest.mark.parametrize("returns", [0, 8])
def test_what_nothing_helps_ends_with_an_error(returns, tmp_path):
    recovery = Recovery(0.5, BASE, returns=returns)
    with pytest.raises(DivergedError, match=r"diverged at a rate of 0\.5.*lower --lr"):
        trained(sgd(0.5), recovery, tmp_path, lambda loss, step: loss * np.nan)
    assert len(recovery.setbacks) == returns


def test_a_resumed_training_knows_its_setbacks(tmp_path):
    recovery = Recovery(4.0, BASE)
    trained(sgd(4.0), recovery, tmp_path)
    resumed = Recovery(4.0, BASE)
    resumed.load_state_dict(recovery.state_dict())
    assert resumed.setbacks == recovery.setbacks
    assert resumed.state_dict() == recovery.state_dict()


@pytest.mark.parametrize("loss", [np.nan, np.inf, 1.03])
def test_what_is_worse_than_the_base_is_known(loss):
    assert not no_worse(loss, 1.0)
    assert no_worse(0.99, 1.0)
    assert no_worse(0.0, 0.0)


# References after training ------------------------------------------------------------------


def frames_of(names):
    return [Frame(molecule(name), 0.0, np.zeros((len(molecule(name)), 3)), None) for name in names]


def energies(frames, shifts):
    return np.array([sum(shifts[int(z)] for z in f.atoms.numbers) for f in frames])


SHIFTS = {1: 0.004, 6: -0.003, 8: 0.011}
VARIED = ["CH4", "H2O", "CH3OH", "C2H6", "CO2", "CH3CH2OH", "H2CO", "C2H4"] * 3


def test_shifts_that_the_frames_tell_are_found_in_spite_of_bad_ones():
    frames = frames_of(VARIED)
    left = energies(frames, SHIFTS)
    left[[2, 11]] += [50.0, -8.0]
    left[5] = np.nan
    found = offsets_left(frames, left)
    assert found == pytest.approx(SHIFTS, abs=1e-5)


def test_one_composition_gets_one_offset():
    frames = frames_of(["CH3OH"] * 9)
    left = np.full(9, 0.06)
    found = offsets_left(frames, left)
    assert energies(frames, found) == pytest.approx(left)
    assert max(map(abs, found.values())) <= 0.02


def test_fixed_elements_get_none():
    frames = frames_of(VARIED)
    left = energies(frames, {1: 0.0, 6: -0.003, 8: 0.011})
    assert offsets_left(frames, left, fixed=[1]) == pytest.approx({6: -0.003, 8: 0.011}, abs=1e-6)
    assert offsets_left(frames, left, fixed=[1, 6, 8]) == {}
    assert offsets_left(frames, np.full(len(frames), np.nan)) == {}
