"""`finetune` on a MACE file, as from the shell: what it leaves is an ordinary MACE file."""

import json
import sys

import ase.io
import numpy as np
import pytest
import torch
from ase.build import molecule
from e3nn import o3
from families import FAMILIES, small
from mace.calculators import MACECalculator
from mace.modules import blocks
from mace_models import NUMBERS, load
from sample_frames import isolated, structures, with_isolated
from tolerances import close

from e3sparse.cli import main
from e3sparse.symmetry import PotentialSubject


@pytest.fixture
def run(monkeypatch, capsys):
    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["e3sparse", *map(str, arguments)])
        with pytest.raises(SystemExit) as exit_:
            main()
        printed = capsys.readouterr()
        return exit_.value.code, printed.out, " ".join(printed.err.split())

    return call


@pytest.fixture
def finetune(run, tiny_file, data_files, tmp_path):
    def call(*arguments, out="run"):
        return run(
            "finetune", "--model", tiny_file, "--train", data_files["train"],
            "--valid", data_files["valid"], "--test", data_files["test"], "--device", "cpu",
            "--out", tmp_path / out, "--max-steps", 30, "--batch-size", 4, "--lr", 4e-2,
            *arguments,
        )  # fmt: skip

    return call


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("targets", ["linear", "everything"])
def test_from_the_shell_to_maces_calculator(finetune, data_files, tmp_path, targets, dtype):
    code, printed, errors = finetune("--targets", targets, "--dtype", dtype, "--e0s", "fit")
    assert code == 0, printed + errors
    rows = json.loads((tmp_path / "run" / "results.json").read_text())["errors"]
    assert rows["test after"]["forces_mae"] < rows["test before"]["forces_mae"]
    frames = ase.io.read(data_files["test"], index=":")
    calculator = MACECalculator(
        str(tmp_path / "run" / "model.model"), device="cpu", default_dtype=dtype
    )
    off = []
    for atoms in frames:
        labels = atoms.arrays["REF_forces"]
        atoms.calc = calculator
        off.append(atoms.get_forces() - labels)
    measured = 1000 * np.abs(np.concatenate(off)).mean()
    # Whatever its precision, the calculator has coefficients of 7 digits.
    assert measured == close("forces_mae", rows["test after"]["forces_mae"], torch.float32)


def test_the_adapter_on_the_base_is_the_merged_file(finetune, run, tiny_file, tmp_path):
    assert finetune("--targets", "all", "--dtype", "float64")[0] == 0
    code, *_ = run(
        "merge", tiny_file, "--adapter", tmp_path / "run" / "adapter",
        "--out", tmp_path / "merged.model",
    )  # fmt: skip
    assert code == 0
    water = molecule("H2O")
    both = [
        PotentialSubject(load(path, torch.float64))(water)
        for path in (tmp_path / "run" / "model.model", tmp_path / "merged.model")
    ]
    # The file that `merge` leaves is of float32, as its base is.
    assert both[0].energy == close("energy", both[1].energy, torch.float32)
    assert both[0].forces == close("forces", both[1].forces, torch.float32)


def test_elements_that_no_frame_contains_are_untouched(finetune, tiny_file, tmp_path):
    assert finetune("--targets", "everything")[0] == 0
    before, after = (load(path).module for path in (tiny_file, tmp_path / "run" / "model.model"))
    present = [NUMBERS.index(z) for z in (1, 6, 8)]
    absent = [k for k in range(len(NUMBERS)) if k not in present]
    for name, old in before.named_parameters():
        if ".weights" in name:
            new = dict(after.named_parameters())[name]
            assert torch.equal(new[absent], old[absent])
    top = "products.0.symmetric_contractions.contractions.0.weights_max"
    old, new = (dict(m.named_parameters())[top] for m in (before, after))
    assert not torch.equal(old[present], new[present])


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_what_holds_no_trained_element_has_the_numbers_of_the_base(
    finetune, run, tiny_file, tmp_path, dtype
):
    """To the last digit, in the precision of the file, with layers of each element's own trained.

    No constant is computed anew and stored.
    """
    own = ("interactions.*.skip_tp", "products", "node_embedding")
    targets = [x for name in own for x in ("--targets", name)]
    code, printed, errors = finetune(*targets, "--dtype", dtype, "--e0s", "fit", "--allow-worse")
    assert code == 0, printed + errors
    written, merged = tmp_path / "run" / "model.model", tmp_path / "merged.model"
    adapter = tmp_path / "run" / "adapter"
    assert run("merge", tiny_file, "--adapter", adapter, "--out", merged)[0] == 0
    _, salt = structures()
    (base, *others), water = (
        [
            PotentialSubject(load(path, torch.float32))(atoms)
            for path in (tiny_file, written, merged)
        ]
        for atoms in (salt, molecule("H2O"))
    )
    for other in others:
        assert other.energy == base.energy
        np.testing.assert_array_equal(other.forces, base.forces)
    assert water[1].energy != water[0].energy


@pytest.mark.parametrize("targets", ["linear", "everything"])
def test_isolated_atoms_have_the_energy_of_their_label(
    finetune, tiny_file, data_files, tmp_path, targets
):
    # Without edges this model is its E0s, whatever a delta does to it.
    labels = {"H": -13.7, "N": -54.2, "O": -75.1}
    files = with_isolated(data_files, tmp_path, **labels)
    flags = [x for name, path in files.items() for x in (f"--{name}", path)]
    code, printed, errors = finetune("--targets", targets, *flags)
    assert code == 0, printed + errors
    base, merged = (load(path) for path in (tiny_file, tmp_path / "run" / "model.model"))
    calculator = MACECalculator(
        str(tmp_path / "run" / "model.model"), device="cpu", default_dtype="float64"
    )
    for atom in isolated(**labels):
        label = atom.info["REF_energy"]
        assert PotentialSubject(base)(atom).energy != pytest.approx(label, abs=1.0)
        assert PotentialSubject(merged)(atom).energy == close("energy", label, torch.float32)
        atom.calc = calculator
        assert atom.get_potential_energy() == close("energy", label, torch.float32)
    energies = [p.module.atomic_energies_fn.atomic_energies[0] for p in (base, merged)]
    untouched = [NUMBERS.index(z) for z in (11, 17)]
    assert torch.equal(energies[0][untouched], energies[1][untouched])


def test_full_and_scratch(finetune, tmp_path):
    for method in ("full", "scratch"):
        code, printed, errors = finetune("--method", method, out=method)
        assert code == 0, printed + errors
        assert (tmp_path / method / "model.model").is_file()


@pytest.mark.parametrize("name", FAMILIES)
def test_inspect_knows_what_the_model_is(run, name, tmp_path):
    torch.save(small(name), tmp_path / "my.model")
    code, printed, errors = run("inspect", tmp_path / "my.model")
    assert code == 0, errors
    said = " ".join(printed.split())
    given = FAMILIES[name]
    several = len(given.get("heads", ())) > 1
    first = given.get("interaction_cls_first", blocks.RealAgnosticInteractionBlock)
    assert "family MACE (ScaleShiftMACE) interactions" in said
    assert first.__name__ in said
    assert given.get("readout_cls", blocks.NonLinearReadoutBlock).__name__ in said
    hidden = o3.Irreps(given.get("hidden_irreps", "4x0e+4x1o"))
    assert f"hidden irreps {hidden} (L = {hidden.lmax})" in said
    assert "edges l up to 2, 4 functions of BesselBasis" in said
    assert ("AgnesiTransform distances" in said) == ("distance_transform" in given)
    assert ("short range ZBL" in said) == given.get("pair_repulsion", False)
    assert ("read of a frame spin, total_spin, charge" in said) == ("embedding_specs" in given)
    assert ("choose one by --head" in said) == several
    assert ("TRAIN --head HEAD --out run/" in said) == several
    assert ("89: H–Bi, Ac–Pu" in said) == (name == "mh-1")
    assert "precision float64" in said


def test_inspect_and_check(run, tiny_file):
    code, printed, _ = run("inspect", tiny_file, "--targets", "last")
    assert code == 0
    assert "products" in printed
    assert "readouts.1.linear_2" in printed
    code, printed, _ = run("check", tiny_file, "--examples", 2, "--max-atoms", 4)
    assert code == 0, printed


def test_a_run_by_cuequivariance_is_the_run_without_it(finetune, tmp_path):
    pytest.importorskip("cuequivariance_torch")
    found = {}
    for way in ("none", "cueq"):
        code, printed, errors = finetune(
            "--dtype", "float64", "--targets", "everything", "--accelerate", way, out=way
        )
        assert code == 0, printed + errors
        found[way] = json.loads((tmp_path / way / "results.json").read_text())
    for row, errors in found["none"]["errors"].items():
        assert found["cueq"]["errors"][row] == pytest.approx(errors, rel=1e-6), row
    assert found["cueq"]["sparsity"] == found["none"]["sparsity"]


def test_a_way_of_evaluation_that_is_not_there(finetune, tmp_path):
    code, _, errors = finetune("--accelerate", "cuequi")
    assert code == 2
    assert "by 'cuequi'. Did you mean 'cueq'" in errors
    assert not (tmp_path / "run").exists()
