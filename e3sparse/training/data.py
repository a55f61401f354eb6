"""The order of training frames, and a Lightning data module over them."""

from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any

from lightning import LightningDataModule
from torch.utils.data import DataLoader, DistributedSampler

from e3sparse.frames.batches import FrameDataset, loader
from e3sparse.potentials.backends import Potential


class ResumableSampler(DistributedSampler[Any]):
    """An order of frames that depends on the seed and the number of steps done, and nothing else.

    A resumed run goes on where it stopped, within an epoch too. Lightning counts epochs
    otherwise where the training ends after a number of steps, and begins an epoch anew.

    Parameters
    ----------
    dataset, ranks, rank, seed
        As of `DistributedSampler`.
    batch_size, accumulate
        Frames in a batch of each rank, and batches in a step.
    steps
        Returns the number of steps done.
    """

    def __init__(
        self,
        dataset: FrameDataset,
        *,
        ranks: int,
        rank: int,
        seed: int,
        batch_size: int,
        steps: Callable[[], int],
        accumulate: int = 1,
    ) -> None:
        super().__init__(dataset, num_replicas=ranks, rank=rank, seed=seed)
        self.batch_size, self.accumulate = batch_size, accumulate
        self.steps = steps

    @property
    def steps_per_epoch(self) -> int:
        """Steps in which every frame is seen once."""
        return -(-len(self) // (self.batch_size * self.accumulate))

    def __iter__(self) -> Iterator[Any]:
        self.epoch, done = divmod(self.steps(), self.steps_per_epoch)
        return islice(super().__iter__(), done * self.accumulate * self.batch_size, None)

    def set_epoch(self, epoch: int) -> None:
        """Do nothing: Lightning's count is not ours."""


class Frames(LightningDataModule):
    """Training and validation frames, the former in the order of `ResumableSampler`."""

    def __init__(
        self,
        potential: Potential,
        train: FrameDataset,
        valid: FrameDataset,
        *,
        batch_size: int,
        valid_batch_size: int,
        seed: int,
        workers: int = 0,
        accumulate: int = 1,
    ) -> None:
        super().__init__()
        self.accumulate = accumulate
        self.workers = workers
        self.potential = potential
        self.train, self.valid = train, valid
        self.batch_size, self.valid_batch_size = batch_size, valid_batch_size
        self.seed = seed

    def sampler(self) -> ResumableSampler:
        """Return the order of training frames."""
        trainer = self.trainer
        return ResumableSampler(
            self.train,
            ranks=trainer.world_size if trainer else 1,
            rank=trainer.global_rank if trainer else 0,
            seed=self.seed,
            batch_size=self.batch_size,
            steps=lambda: trainer.global_step if trainer else 0,
            accumulate=self.accumulate,
        )

    def train_dataloader(self) -> DataLoader[Any]:
        return loader(self.train, self.potential, self.batch_size, self.sampler(), self.workers)

    def begin_step_anew(self, checkpoint: dict[str, Any]) -> None:
        """Have Lightning forget the batches of a step that was not made, as the sampler does.

        The gradients that they had added up are in no checkpoint.
        """
        done = checkpoint["global_step"] % self.sampler().steps_per_epoch * self.accumulate
        if self.accumulate == 1 or (done == 0 and not self._within_epoch(checkpoint)):
            return
        progress = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]
        whole = {"ready": done + 1, "started": done + 1, "processed": done, "completed": done}
        progress["total"].update(whole)
        progress["current"].update(whole)
        progress["is_last_batch"] = False

    def _within_epoch(self, checkpoint: dict[str, Any]) -> bool:
        progress = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]["current"]
        return bool(progress["processed"] < self.accumulate)

    def val_dataloader(self) -> DataLoader[Any]:
        return loader(self.valid, self.potential, self.valid_batch_size, workers=self.workers)
