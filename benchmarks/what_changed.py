"""What fine-tuning changed, on real data: the runs, and their `e3sparse report`.

    .venv/bin/python benchmarks/what_changed.py run alloy
    .venv-mace/bin/python benchmarks/what_changed.py run ethanol
    .venv/bin/python benchmarks/what_changed.py page alloy       # benchmarks/results/what_changed_*
    .venv-mace/bin/python benchmarks/what_changed.py page ethanol

`run` skips what is finished; runs go to runs/what_changed/. Data: ../shared/data or the folder
E3SPARSE_DATA. The null model is the run `null`: the budget method on the same frames with their
labels dealt out anew among frames of the same composition (`e3sparse.analysis.null_model`).
Such labels cannot be learned, so that it ends worse than the base model: it shows what a training
leaves that finds nothing, not what one leaves that finds something else.

`low-rank-not-held` is no run of its own. e3sparse holds the rows of elements that no training frame
has at zero whatever the method; the published low-rank update does not. Their gradient is zero
either way, so what it would have left there is A·B of the same run without the hold.
"""

import json
import os
import shutil
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import ase.io
import torch
import typer

from e3sparse.adapter.file import read_values
from e3sparse.analysis.causality import ablate
from e3sparse.analysis.null_model import shuffle_labels
from e3sparse.analysis.reading import read_changes
from e3sparse.analysis.report import write_report
from e3sparse.analysis.stability import agreement
from e3sparse.analysis.tables import absent_table
from e3sparse.errors import DataError
from e3sparse.potentials.backends import load_potential
from e3sparse.training.config import make_config
from e3sparse.training.run import finetune
from e3sparse.training.run_folder import RESULTS

HERE = Path(__file__).resolve().parent
RUNS, PAGES = HERE.parent / "runs" / "what_changed", HERE / "results"
DATA = Path(os.environ.get("E3SPARSE_DATA", HERE.parents[1] / "shared" / "data"))
SPARSITY = 0.97
NOT_HELD, ABLATED = "low-rank-not-held", ("budget-0",)


def equiatomic(frames, counts):
    """Deal the first frames of each composition A_n B_n into splits of so many each."""
    seen = defaultdict(int)
    splits = [[] for _ in counts]
    for atoms in frames:
        formula = atoms.symbols.formula.count()
        if len(set(formula.values())) != 1 or len(formula) != 2:
            continue
        place = seen[atoms.get_chemical_formula()]
        seen[atoms.get_chemical_formula()] += 1
        for split, count in zip(splits, counts, strict=True):
            if place < count:
                split.append(atoms)
                break
            place -= count
    return splits


def alloy():
    """Return 16-atom cells of the six equiatomic binaries of Nb, Mo, Ta and W; test: 8 atoms."""
    train, valid = equiatomic(ase.io.read(DATA / "snap_NbMoTaW/train.xyz", index=":"), (20, 4))
    (test,) = equiatomic(ase.io.read(DATA / "snap_NbMoTaW/test.xyz", index=":"), (12,))
    return {"train": train, "valid": valid, "test": test}


def ethanol():
    """Return 200, 50 and 100 frames of rMD17 ethanol."""
    frames = ase.io.read(DATA / "rmd17_ethanol/train.xyz", index=":250")
    test = ase.io.read(DATA / "rmd17_ethanol/test.xyz", index=":100")
    return {"train": frames[:200], "valid": frames[200:], "test": test}


@dataclass(frozen=True)
class Task:
    """A base model, real frames, and what `e3sparse finetune` is asked for, by run name."""

    model: str
    frames: Any
    common: dict
    runs: dict


def runs(targets, rates, decay):
    """Return the settings of all runs of a task."""
    budget = {
        "method": "budget", "lr": rates["budget"], "targets": targets,
        "method_settings": {"target_sparsity": SPARSITY},
    }  # fmt: skip
    soft = {"tau_weight_decay": decay}
    return {
        "budget-0": budget,
        "budget-1": budget | {"seed": 1},
        "soft": {"method": "soft_threshold", "lr": rates["soft"], "targets": targets,
                 "method_settings": soft},
        "low-rank": {"method": "low_rank", "lr": rates["low_rank"], "targets": targets},
        "full": {"method": "full", "lr": rates["full"]},
        "null": budget | {"train": "shuffled"},
    }  # fmt: skip


TASKS = {
    "alloy": Task(
        "7net-0", alloy, {"max_steps": 160, "batch_size": 2},
        runs("linear", {"budget": 2e-2, "soft": 4e-2, "low_rank": 1e-2, "full": 3e-3}, 2.1),
    ),
    "ethanol": Task(
        "benchmarks/models/mace_rmd17.model", ethanol,
        {"max_steps": 400, "batch_size": 5, "valid_every": 2},
        runs("all", {"budget": 3e-2, "soft": 4e-2, "low_rank": 3e-2, "full": 1e-2}, 4.5),
    ),
}  # fmt: skip

app = typer.Typer(no_args_is_help=True)
TaskName = Annotated[str, typer.Argument(help=f"One of: {', '.join(TASKS)}.")]


@app.command()
def run(task: TaskName) -> None:
    """Make the runs of a task that are not finished."""
    torch.set_num_threads(1)
    chosen, folder = TASKS[task], RUNS / task
    files = write_frames(chosen, folder)
    for name, settings in chosen.runs.items():
        out = folder / name
        if (out / RESULTS).is_file():
            continue
        split = {"train": files[settings.get("train", "train")]}
        split |= {key: files[key] for key in ("valid", "test")}
        values = {"model": chosen.model, "device": "cpu", "out": out, "seed": 0}
        finetune(make_config(values | chosen.common | settings | split), overwrite=True)


def write_frames(task, folder):
    """Write the splits and the shuffled training frames; returns their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    frames = task.frames()
    frames["shuffled"] = shuffle_labels(frames["train"])
    files = {name: folder / f"{name}.xyz" for name in frames}
    for name, split in frames.items():
        ase.io.write(files[name], split)
    return files


@app.command()
def page(task: TaskName) -> None:
    """Write the report on the runs of a task to benchmarks/results/what_changed_<task>."""
    torch.set_num_threads(1)
    chosen, folder = TASKS[task], RUNS / task
    done = [name for name in chosen.runs if (folder / name / RESULTS).is_file()]
    if "low-rank" in done:
        done.insert(done.index("low-rank") + 1, NOT_HELD)
        let_go(chosen, folder)
    changes = {c.name: c for c in read_changes([folder / name for name in done])}
    ablations = {}
    for name in ABLATED:
        if name in changes:
            try:
                ablations[name] = ablate(changes[name], folder / "test.xyz")
            except DataError as error:
                print(error)
    out = PAGES / f"what_changed_{task}"
    sentences = findings(list(changes.values()), ablations)
    write_report(
        list(changes.values()), out, ablations=ablations, summary=sentences, overwrite=True
    )
    for svg in (out / "figures").glob("*.svg"):
        svg.unlink()  # the page holds them
    print("\n".join(sentences))


def let_go(task, folder):
    """Save the low-rank run's A·B with nothing held at zero, as an adapter folder."""
    run, out = folder / "low-rank", folder / NOT_HELD
    shutil.rmtree(out, ignore_errors=True)
    potential = load_potential(task.model)
    settings = task.runs["low-rank"]
    adapter = potential.patch(settings["targets"], "low_rank", seed=0)
    state = torch.load(run / "checkpoints/best.ckpt", weights_only=True)["state_dict"]
    for path, delta in adapter.deltas().items():
        prefix = f"model.{path}.e3sparse.deltas.default."
        own = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
        delta.load_state_dict(own)
    held = read_values(run / "adapter")
    for path, value in adapter.values().items():
        same = torch.isclose(value, held[path], rtol=1e-5, atol=1e-7)
        assert (same | (held[path] == 0)).all(), f"{path}: the checkpoint is not of this run"
    errors = json.loads((run / RESULTS).read_text())["errors"]
    after = {key: value for key, value in errors["train after"].items() if value is not None}
    adapter.save_pretrained(out, base_model=task.model, metrics={"train after": after})


def findings(changes, ablations):
    """Return three sentences on what the runs show and do not show, with their figures."""
    by_name = {change.name: change for change in changes}
    first = by_name["budget-0"]
    absent = {name: absent_table(change).loc["absent"] for name, change in by_name.items()}
    count = int(absent["budget-0"]["entries"])
    said = [
        f"Of the weights that are an absent element's own ({count:,}), the sparse method changed "
        f"{int(absent['budget-0']['updated']):,}"
    ]
    for name in ("low-rank", NOT_HELD, "full"):
        if name in absent:
            said.append(f"{name} {int(absent[name]['updated']):,}")
    sentences = ["; ".join(said) + "."]
    table = agreement(changes).set_index(["a", "b"])
    seeds = table.loc[("budget-0", "budget-1")]
    sentence = (
        f"Two seeds share {seeds['jaccard']:.1%} of the entries that either changes (Jaccard; by "
        f"chance {seeds['chance']:.1%}, within path blocks {seeds['chance_in_blocks']:.1%}), and "
        f"rank the channels alike with ρ = {seeds['rho']:+.2f} ({seeds['rho_low']:+.2f} to "
        f"{seeds['rho_high']:+.2f})"
    )
    if "null" in by_name:
        null = table.loc[("budget-0", "null")]
        sentence += (
            f"; with the run on shuffled labels it is {null['jaccard']:.1%} (within path blocks by "
            f"chance {null['chance_in_blocks']:.1%}) and ρ = {null['rho']:+.2f} "
            f"({null['rho_low']:+.2f} to {null['rho_high']:+.2f}), so that "
        )
        sentence += (
            "the pattern comes from the labels and not from the model and the optimizer alone"
            if null["rho_high"] < seeds["rho_low"]
            else "which channels changed cannot be told from what any labels would have changed"
        )
    sentences.append(sentence + ".")
    if first.name in ablations:
        found = ablations[first.name]
        size, count = found.correlations["one_minus_r2"], found.correlations["updated"]
        verdict = (
            f"only {found.resolved} of {len(found.table)} shares can be told from 0, so neither "
            "says what a dark cell does"
            if found.mostly_noise
            else "a darker channel does carry more here, but that is no statement on another system"
            if size.low > 0
            else "a dark cell says where weights moved and not that much depends on it"
        )
        sentences.append(
            "With the delta of one group at a time taken out, the rank correlation with the share "
            f"of the force gain that the group carries is {size} for 1 − R² and {count} for the "
            f"number of updated entries: {verdict}; nor does anything here show that the l of a "
            "feature is the l of an orbital."
        )
    return sentences


if __name__ == "__main__":
    app()
