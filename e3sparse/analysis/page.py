"""The text of the page on what fine-tunings changed."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import TYPE_CHECKING, Any

import jinja2
import pandas as pd

from e3sparse.analysis.change import Change
from e3sparse.analysis.tables import absent_table
from e3sparse.version import __version__

if TYPE_CHECKING:
    from e3sparse.analysis.causality import Ablation

_MOST_ROWS = 150
_NAMES = {
    "irreps_in": "in",
    "irreps_in2": "in 2 (edge, species)",
    "irreps_out": "out",
    "relative": "‖ΔW‖/‖W‖",
    "one_minus_r2": "1 − R²",
    "effect": "‖ΔW‖ × path weight",
    "largest": "largest |ΔW|",
    "share": "updated share",
    "threshold_is": "threshold is",
    "trained_on": "trained on",
    "forces_mae": "F MAE without it (meV/Å)",
    "carried": "share of the gain",
    "carried_low": "from",
    "carried_high": "to",
    "chance_in_blocks": "chance in blocks",
    "rho": "ρ",
    "rho_low": "ρ from",
    "rho_high": "ρ to",
    "l_out": "l out",
    "atomic_number": "Z",
}


@dataclass(frozen=True)
class _Shown:
    """A table as the page shows it."""

    names: list[str]
    text: list[bool]
    rows: list[list[str]]
    left_out: int = 0
    file: str = ""


def render(
    changes: Sequence[Change],
    ablations: "Mapping[str, Ablation]",
    tables: Mapping[str, pd.DataFrame],
    drawn: Mapping[str, object],
    summary: Sequence[str],
) -> str:
    """Return the page: `drawn` are its figures as SVG, with their captions, by name."""
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    template = environment.from_string(
        files("e3sparse.analysis").joinpath("report.html.jinja").read_text(encoding="utf-8")
    )
    known = ("species", "periodic", "channels", "depth")
    elements = tables["elements"]
    if not elements.empty:
        elements = elements[elements["updated"] > 0]
    whole = [change.name for change in changes if change.rest is not None]
    return template.render(
        title=changes[0].name,
        summary=[*summary, *_rest_notes(changes)],
        figures={**dict.fromkeys(known), **drawn},
        overview=_shown(tables["overview"], "overview"),
        elements=_shown(elements, "elements") if len(elements) else None,
        absent=_shown(tables["absent"], "absent") if len(tables["absent"]) else None,
        absent_notes=_absent_notes(changes),
        energies=_shown(tables["energies"], "energies") if len(tables["energies"]) else None,
        energy_note=f"; of {', '.join(whole)} it is part of the model" if whole else "",
        ablations=[
            {
                "name": name,
                "figure": f"ablation{n}",
                "correlations": _shown(tables[f"correlations{n}"].drop(columns="change"), ""),
                "notes": _ablation_notes(name, found),
                "table": _shown(
                    tables[f"ablation{n}"]
                    .drop(columns=["change", "kind", "depth", "largest", "share"])
                    .sort_values("carried", ascending=False),
                    f"ablation{n}",
                ),
            }
            for n, (name, found) in enumerate(ablations.items())
        ],
        pairs=_shown(tables["pairs"], "pairs") if "pairs" in tables else None,
        layers=_each(changes, tables["layers"], "layers", ["depth", "largest"]),
        blocks=_each(
            changes, tables["blocks"], "blocks", ["block", "depth", "l_in", "l_in2", "l_out"]
        ),
        channels=_each(changes, tables["channels"], "channels", []),
        version=__version__,
        command="tables and figures of this page lie beside it as CSV, PNG and SVG",
    )


def _each(
    changes: Sequence[Change], table: pd.DataFrame, file: str, without: list[str]
) -> list[dict[str, object]]:
    if table.empty:
        return []
    shown = table.drop(columns=without)
    parts = {c.name: shown[shown["change"] == c.name].drop(columns="change") for c in changes}
    return [{"name": name, "table": _shown(part, file)} for name, part in parts.items()]


def _rest_notes(changes: Sequence[Change]) -> list[str]:
    return [
        f"{c.name} was trained as a whole: besides the path blocks on this page, "
        f"{c.rest.updated:,} of {c.rest.entries:,} other parameters changed (biases, energy "
        "references and scales among them)."
        for c in changes
        if c.rest is not None
    ]


def _absent_notes(changes: Sequence[Change]) -> list[str]:
    notes = []
    for change in changes:
        table = absent_table(change)
        if table.empty:
            continue
        absent: dict[Any, Any] = table.loc["absent"].to_dict()
        entries, updated = int(absent["entries"]), int(absent["updated"])
        if not entries:
            why = (
                "the training frames have all elements of the model"
                if not change.absent
                else "no layer that was trained has an axis over elements"
            )
            notes.append(f"{change.name}: nothing to count, because {why}.")
        elif not updated:
            notes.append(
                f"{change.name}: all {entries:,} weights of {int(absent['elements'])} absent "
                "elements are exactly the base model's."
            )
        else:
            notes.append(
                f"{change.name}: {updated:,} of {entries:,} weights of absent elements are no "
                f"longer the base model's (‖ΔW‖/‖W‖ = {absent['relative']:.2g})."
            )
    return notes


def _ablation_notes(name: str, found: "Ablation") -> list[str]:
    table = found.table
    clear = int((table["carried_low"] > 0).sum())
    best: dict[Any, Any] = table.sort_values("carried", ascending=False).iloc[0].to_dict()
    size = found.correlations["one_minus_r2"]
    verdict = (
        "its interval includes 0, so that on these frames a dark cell of the figures above does "
        "not mean that much depends on it"
        if not (size.low > 0 or size.high < 0)
        else f"but only {found.resolved} of the {len(table)} shares can be told from 0 on these "
        "frames, so that it ranks noise for the most part: give more frames"
        if found.mostly_noise
        else "larger changes carry more"
        if size.low > 0
        else "larger changes carry less"
    )
    return [
        f"{name} lowers the force MAE from {found.before:.1f} to {found.after:.1f} meV/Å. Of "
        f"{len(table)} groups that changed, {clear} carry a share of that gain whose 95 % interval "
        f"is above 0; the largest is {best['carried']:.1%} ({best['layer']}, "
        f"l = {best['l_out']}{', ' + best['element'] if best['element'] else ''}), and all shares "
        f"together are {table['carried'].sum():.0%}.",
        f"Rank correlation of 1 − R² with the share: {size}; {verdict}.",
    ]


def _shown(table: pd.DataFrame, file: str) -> _Shown:
    head = table.head(_MOST_ROWS)
    columns = [str(column) for column in head.columns]
    text = [
        not (pd.api.types.is_numeric_dtype(head[c]) and not pd.api.types.is_bool_dtype(head[c]))
        and not all(re.fullmatch(r"[\d.]+%", str(value)) for value in head[c])
        for c in head.columns
    ]
    rows = [[_brief(value) for value in row] for row in head.itertuples(index=False)]
    names = [_NAMES.get(column, column) for column in columns]
    return _Shown(names, text, rows, len(table) - len(head), f"tables/{file}.csv")


def _brief(value: Any) -> str:
    if value is None or value is pd.NA:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        if pd.isna(value):
            return "–"
        return "0" if value == 0 else f"{value:.3g}" if abs(value) < 1e4 else f"{value:,.1f}"
    return f"{value:,}" if isinstance(value, int) else str(value)
