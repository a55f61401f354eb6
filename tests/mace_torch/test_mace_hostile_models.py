"""No command runs what is in a MACE file."""

import torch
from hostile_models import assert_no_command_runs_it, saved_beside
from mace_models import load


def test_no_command_runs_what_is_in_a_model_file(tiny_file, data_files, tmp_path):
    def make(path, payload):
        model = torch.load(tiny_file, weights_only=False)
        return saved_beside(model, path.with_suffix(".model"), payload)

    assert_no_command_runs_it(make, load(tiny_file), data_files, tmp_path)
