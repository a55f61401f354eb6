"""Figures of a run: learning curve and parity before and after."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import ScalarFormatter

from e3sparse.files import replacing
from e3sparse.frames.evaluation import Predictions
from e3sparse.frames.reading import Array, Frame
from e3sparse.frames.references import reference_energy


def learning_curve(metrics: pd.DataFrame, path: Path) -> None:
    """Draw training and validation force errors and the sparsity against the step."""
    figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
    for column, label, color, marker in (
        ("train/forces_mae", "training batch", "0.7", ""),
        ("valid/forces_mae", "validation", "C0", "o"),
    ):
        if column in metrics:
            rows = metrics.dropna(subset=[column])
            axes.plot(rows["step"], rows[column], label=label, color=color, marker=marker, ms=3)
    axes.set(xlabel="optimizer step", ylabel="force MAE (meV/Å)", yscale="log")
    axes.yaxis.set_major_formatter(ScalarFormatter())
    axes.yaxis.set_minor_formatter(ScalarFormatter())
    axes.legend(loc="lower left")
    if "sparsity" in metrics:
        rows = metrics.dropna(subset=["sparsity"])
        right = axes.twinx()
        right.plot(rows["step"], 100 * rows["sparsity"], color="C1", ls="--")
        right.set(ylabel="layer-wise sparsity (%), dashed", ylim=(0, 103))
    _write(figure, path)


def parity(
    frames: Sequence[Frame],
    before: Predictions,
    after: Predictions,
    references: dict[int, float],
    path: Path,
) -> None:
    """Draw energies and forces against the labels, for the base model and the result.

    Energies are per atom and relative to their mean; the per-element references are added to
    both models, so that the base model is not charged with another zero of energy.
    """
    atoms = np.array([len(frame.atoms) for frame in frames])
    energy = np.array([frame.energy for frame in frames]) / atoms
    middle = energy[np.isfinite(energy)].mean() if np.isfinite(energy).any() else 0.0
    offsets = np.array([reference_energy(f, references) for f in frames]) / atoms
    forces = np.concatenate([frame.forces for frame in frames]).ravel()
    figure, axes = plt.subplots(2, 2, figsize=(8, 7.4), layout="constrained")
    for column, (name, model) in enumerate((("before", before), ("after", after))):
        predicted = model.energy / atoms + offsets
        _panel(
            axes[0, column],
            1000 * (energy - middle),
            1000 * (predicted - middle),
            ("energy", "meV/atom"),
            name,
        )
        forces_now = np.concatenate(model.forces).ravel()
        _panel(axes[1, column], forces, forces_now, ("force", "eV/Å"), name)
    _write(figure, path)


def _panel(
    axes: Axes, label: Array, predicted: Array, quantity: tuple[str, str], name: str
) -> None:
    what, unit = quantity
    known = np.isfinite(label)
    if not known.any():
        axes.set_visible(False)
        return
    label, predicted = label[known], predicted[known]
    low, high = float(min(label.min(), predicted.min())), float(max(label.max(), predicted.max()))
    axes.plot([low, high], [low, high], color="0.6", lw=1)
    axes.plot(label, predicted, ".", ms=3, alpha=0.5)
    mae = np.abs(predicted - label).mean()
    axes.set(
        xlabel=f"reference {what} ({unit})",
        ylabel=f"predicted {what} ({unit})",
        title=f"{name}: MAE {mae:.3g} {unit}",
        aspect="equal",
    )


def _write(figure: Figure, path: Path) -> None:
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=150)
    plt.close(figure)
