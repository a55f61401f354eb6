"""No command runs what is in a checkpoint or a package of NequIP's."""

import pickle

import torch
from hostile_models import assert_no_command_runs_it, saved_beside, with_pickle

from e3sparse.potentials.backends import load_potential


def test_no_command_runs_what_is_in_a_checkpoint(base_of, data_files, tmp_path):
    checkpoint, package = base_of("nequip")

    def make(path, payload):
        found = torch.load(checkpoint, weights_only=False)
        return saved_beside(found, path.with_suffix(".ckpt"), payload)

    assert_no_command_runs_it(make, load_potential(str(package)), data_files, tmp_path)


def test_no_command_runs_what_is_in_a_package(base_of, data_files, tmp_path):
    _, package = base_of("nequip")

    def make(path, payload):
        return with_pickle(
            package, path.with_suffix(".nequip.zip"), "model/eager_model.pkl", pickle.dumps(payload)
        )

    assert_no_command_runs_it(make, load_potential(str(package)), data_files, tmp_path)
