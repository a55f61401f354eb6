"""One rank of `mace-run-train --distributed` on CPUs; writes the ΔW that it has trained."""

import sys

import torch
from torch import distributed
from torch.nn.parallel import DistributedDataParallel

torch.serialization.add_safe_globals([slice])
distributed.init_process_group("gloo")

from e3sparse_mace.run_train import SparseTraining, main  # noqa: E402
from mace.cli import run_train  # noqa: E402


def noted(self, train, options):
    trained(self, train, options)
    torch.save(self.adapter.values(), f"rank{options['rank']}.pt")


trained, SparseTraining.train = SparseTraining.train, noted
run_train.DDP = lambda model, device_ids: DistributedDataParallel(model)
main([*sys.argv[1:], "--distributed", "--launcher", "torchrun"])
