"""The dimers of a model and of its base, drawn."""

from collections.abc import Mapping, Sequence
from math import ceil

import numpy as np
from matplotlib.figure import Figure

from e3sparse.robustness.dimers import CLOSE, Curve
from e3sparse.robustness.subjects import Pair, pair_name

_COLUMNS = 3


def dimer_figure(curves: Sequence[Mapping[Pair, Curve]]) -> Figure:
    """Draw the energies of dimers, one panel for each pair.

    Parameters
    ----------
    curves
        Of the model, and of its base if there is one.
    """
    pairs = list(curves[0])
    columns = min(_COLUMNS, len(pairs))
    rows = ceil(len(pairs) / columns)
    figure = Figure(figsize=(2.8 * columns, 2.1 * rows + 0.4), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes, pair in zip(panels, pairs, strict=False):
        # Base below and dashed, so that both are seen where they agree.
        styles = (("base", "--", "0.5"), ("model", "-", "C0"))[2 - len(curves) :]
        for (label, line, color), of in zip(styles, list(curves)[::-1], strict=True):
            curve = of[pair]
            axes.plot(curve.distances, curve.energies, line, color=color, lw=1.3, label=label)
        curve = curves[0][pair]
        axes.axvspan(curve.distances[0], max(CLOSE * curve.bond, curve.distances[0]), color="0.93")
        # A model that falls without end inside must not hide the bond.
        outside = curve.distances >= CLOSE * curve.bond
        well = float(min(np.nanmin(of[pair].energies[outside]) for of in curves))
        low = max(float(min(np.nanmin(of[pair].energies) for of in curves)), 3 * well - 1)
        axes.set(title=pair_name(pair), ylim=(low - 0.5, max(10.0, -2 * well)))
        axes.title.set_fontsize(9)
        axes.tick_params(labelsize=7)
    for axes in panels[len(pairs) :]:
        axes.set_visible(False)
    panels[0].legend(fontsize=7)
    figure.supxlabel(f"distance (Å); grey: below {CLOSE} of the bond", fontsize=9)
    figure.supylabel("energy of the dimer (eV)", fontsize=9)
    return figure
