"""How large and how noisy the gradient of replay is beside that of training frames.

    .venv/bin/python benchmarks/replay_noise.py 7net-ethanol

Trains a budget's delta without replay for some steps at a constant rate, then asks for the gradient
by the delta of the whole loss, of its energies and of its forces, for single training frames and
for single structures of `--replay auto`, labelled by the base model. Written to
benchmarks/results/replay_noise_<task>.csv, with a table beside it.
"""

import os
import tempfile
from pathlib import Path
from typing import Annotated

import numpy as np
import pandas as pd
import torch
import typer
from rich.console import Console
from tasks import HERE, TASKS

from e3sparse.frames.batches import FrameDataset, collate
from e3sparse.frames.evaluation import MEV, predict
from e3sparse.frames.reading import LabelKeys, read_split
from e3sparse.frames.references import fit_references
from e3sparse.potentials.backends import load_potential
from e3sparse.training.config import make_config
from e3sparse.training.losses import Loss
from e3sparse.training.replay import replay_frames

COLUMNS = [
    "of a",
    "part of loss",
    "energy error (meV/atom)",
    "force error (meV/Å)",
    "loss",
    "norm of the mean gradient",
    "norm of its deviation",
    "worst tenth's share of squares",
]


def main(
    task: Annotated[str, typer.Argument(help=f"One of {', '.join(TASKS)}.")],
    steps: Annotated[int, typer.Option(help="Of training before the look.")] = 60,
    lr: Annotated[float, typer.Option(help="Learning rate of these steps.")] = 1e-2,
    structures: Annotated[int, typer.Option(help="Looked at of each kind.")] = 48,
) -> None:
    """Write and print the table."""
    torch.set_num_threads(1)
    os.chdir(HERE.parent)
    chosen = TASKS[task]
    potential = load_potential(chosen.model)
    loss = Loss()
    with tempfile.TemporaryDirectory() as made:
        splits = chosen.prepare(Path(made))
        frames, _ = read_split(
            splits["train"], LabelKeys(), known=potential.species.numbers, cutoff=potential.cutoff
        )
        config = make_config(
            {"model": chosen.model, "replay": "auto", "replay_structures": structures, **splits}
        )
        replayed = replay_frames(config, potential, Console(quiet=True))
    references = fit_references(frames, predict(potential, frames).energy)
    kinds = {
        "training frame": FrameDataset(frames[:structures], potential, references),
        "replayed structure": FrameDataset(replayed, potential, {}),
    }
    adapter = potential.patch("linear", "budget", total_steps=steps)
    held = adapter.parameters()
    potential.module.train()
    optimizer = torch.optim.AdamW(held, lr=lr, weight_decay=0.0)
    rng = np.random.default_rng(0)
    training = FrameDataset(frames, potential, references)
    for _ in range(steps):
        batch = collate(potential, [training[int(i)] for i in rng.choice(len(frames), 5)])
        optimizer.zero_grad()
        loss(potential.forward(batch.inputs), batch).backward(inputs=held)
        optimizer.step()
    rows = []
    parts = {"all": loss, "energies": Loss(forces=0.0), "forces": Loss(energy=0.0)}
    for kind, data in kinds.items():
        gradients: dict[str, list[torch.Tensor]] = {part: [] for part in parts}
        losses: dict[str, list[float]] = {part: [] for part in parts}
        errors = []
        for number in range(len(data)):
            one = collate(potential, [data[number]])
            said = potential.forward(one.inputs)
            for part, weighted in parts.items():
                value = weighted(said, one)
                found = torch.autograd.grad(value, held, retain_graph=True, allow_unused=True)
                filled = [
                    (torch.zeros_like(p) if g is None else g).reshape(-1)
                    for p, g in zip(held, found, strict=True)
                ]
                gradients[part].append(torch.cat(filled).double())
                losses[part].append(value.item())
            off = ((said.energy - one.energy) / one.atoms).abs().item()
            errors.append((off * MEV, (said.forces - one.forces).abs().mean().item() * MEV))
        energies, forces = np.median(np.array(errors), axis=0)
        for part in parts:
            stacked = torch.stack(gradients[part])
            mean, deviation = stacked.mean(0).norm(), stacked.std(0).norm()
            squares = stacked.square().sum(1).sort(descending=True).values
            worst = squares[: max(1, len(squares) // 10)].sum() / squares.sum()
            found = (energies, forces, np.median(losses[part]), mean, deviation, worst)
            rows.append([kind, part, *(f"{float(value):.4g}" for value in found)])
    frame = pd.DataFrame(rows, columns=COLUMNS)
    frame.insert(0, "conditions", f"{steps} steps at {lr:g} before; {structures} of each kind")
    frame.to_csv(HERE / "results" / f"replay_noise_{task}.csv", index=False)
    table()


def table() -> None:
    """Write the table of each CSV file."""
    for path in sorted((HERE / "results").glob("replay_noise_*.csv")):
        frame = pd.read_csv(path)
        lines = [
            f"# Gradients of single structures: {path.stem.removeprefix('replay_noise_')}",
            *("", (__doc__ or "").strip(), ""),
            f"{frame['conditions'].iloc[0]}. Errors are medians.",
            "",
            f"| {' | '.join(COLUMNS)} |",
            "|" + "---|" * len(COLUMNS),
        ]
        for row in frame[COLUMNS].itertuples(index=False):
            energy, forces, loss, mean, deviation, worst = row[2:]
            lines.append(
                f"| {row[0]} | {row[1]} | {energy:.1f} | {forces:.1f} | {loss:.2g} | {mean:.2g} "
                f"| {deviation:.2g} | {worst:.0%} |"
            )
        path.with_suffix(".md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    typer.run(main)
