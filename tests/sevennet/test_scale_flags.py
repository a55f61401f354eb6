"""`--scale` of `e3sparse merge` and `evaluate`."""

import json

import torch
from potentials import random_deltas
from support import load
from tolerances import close

import e3sparse


def test_merge_and_evaluate_take_a_scale(run, data_files, tiny_checkpoint, tmp_path):
    potential = load(tiny_checkpoint)
    folder = random_deltas(potential, "linear").save_pretrained(tmp_path / "adapter")
    base = load(tiny_checkpoint).module.state_dict()
    whole = e3sparse.merge(potential.module).state_dict()
    added = ["--adapter", folder]
    scaled = {
        "one": [*added, "--scale", 0.75],
        "two": [*added * 2, "--scale", 0.5, "--scale", 0.25],
    }
    for name, given in scaled.items():
        code, out, err = run("merge", tiny_checkpoint, *given, "--out", tmp_path / f"{name}.pth")
        assert code == 0, err
        assert " times 0.75:" in out or " times 0.25:" in out
        now = load(tmp_path / f"{name}.pth").module.state_dict()
        for key, value in whole.items():
            torch.testing.assert_close(now[key], base[key] + 0.75 * (value - base[key]))
    for given, says in (
        ((*added * 3, "--scale", 1, "--scale", 2), "3 adapters and 2 scales"),
        ((*added, "--scale", "nan"), "finite number, not nan"),
    ):
        code, _, err = run("merge", tiny_checkpoint, *given, "--out", tmp_path / "no.pth")
        assert (code, says in err) == (2, True), err
    errors = []
    for given in ((tmp_path / "one.pth",), (tiny_checkpoint, *added, "--scale", 0.75)):
        to = tmp_path / "e.json"
        assert run("evaluate", *given, "--data", data_files["test"], "--json", to)[0] == 0
        errors.append(json.loads(to.read_text())[str(data_files["test"])]["forces_mae"])
    assert errors == close("forces_mae", [errors[0]] * 2, torch.float32)
    code, _, err = run("evaluate", tiny_checkpoint, "--data", data_files["test"], "--scale", 0.5)
    assert (code, "give --adapter too" in err) == (2, True)
