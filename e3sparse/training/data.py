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
    batch_size
        Frames that each rank takes in a step.
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
    ) -> None:
        super().__init__(dataset, num_replicas=ranks, rank=rank, seed=seed)
        self.batch_size = batch_size
        self.steps = steps

    def __iter__(self) -> Iterator[Any]:
        per_epoch = -(-len(self) // self.batch_size)
        self.epoch, done = divmod(self.steps(), per_epoch)
        return islice(super().__iter__(), done * self.batch_size, None)

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
    ) -> None:
        super().__init__()
        self.workers = workers
        self.potential = potential
        self.train, self.valid = train, valid
        self.batch_size, self.valid_batch_size = batch_size, valid_batch_size
        self.seed = seed

    def train_dataloader(self) -> DataLoader[Any]:
        trainer = self.trainer
        sampler = ResumableSampler(
            self.train,
            ranks=trainer.world_size if trainer else 1,
            rank=trainer.global_rank if trainer else 0,
            seed=self.seed,
            batch_size=self.batch_size,
            steps=lambda: trainer.global_step if trainer else 0,
        )
        return loader(self.train, self.potential, self.batch_size, sampler, self.workers)

    def val_dataloader(self) -> DataLoader[Any]:
        return loader(self.valid, self.potential, self.valid_batch_size, workers=self.workers)
