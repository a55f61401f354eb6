"""One page on what fine-tunings changed, with its figures and tables as files."""

import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jinja2
import pandas as pd
from ase.data import chemical_symbols
from matplotlib.figure import Figure

import e3sparse
from e3sparse.analysis import figures
from e3sparse.analysis.change import Change
from e3sparse.analysis.stability import agreement
from e3sparse.analysis.tables import (
    absent_table,
    block_table,
    channel_table,
    element_table,
    energy_table,
    layer_table,
    species_table,
    total,
)
from e3sparse.errors import ConfigError
from e3sparse.files import replacing

if TYPE_CHECKING:
    from e3sparse.analysis.causality import Ablation

PAGE = "index.html"
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


def check_folder(out: Path, overwrite: bool) -> None:
    """Raise unless a report can be written to a folder; nothing is changed.

    Raises
    ------
    ConfigError
        If it holds something already, and is not a report that may be replaced.
    """
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    if not (out / PAGE).is_file():
        raise ConfigError(
            f"{out} exists and is not the folder of a report (it has no {PAGE}): give another "
            "--out."
        )
    if not overwrite:
        raise ConfigError(f"{out} exists. Give another --out, or --overwrite to replace it.")


def write_report(
    changes: Sequence[Change],
    out: str | Path,
    *,
    ablations: "Mapping[str, Ablation] | None" = None,
    summary: Sequence[str] = (),
    overwrite: bool = False,
) -> Path:
    """Write a self-contained page, its figures as PNG and SVG and its tables as CSV.

    Parameters
    ----------
    changes
        Of one base model; the first is what the report is on, the others are compared with it.
    out
        Folder: `index.html`, `figures/` and `tables/`.
    ablations
        Of any of the changes, by name.
    summary
        Sentences to put on top.
    overwrite
        Whether a report that is there may be replaced.

    Returns
    -------
    Path
        The page.

    Raises
    ------
    ConfigError
        If there is something in the folder already; nothing is changed then.
    """
    out = Path(out)
    check_folder(out, overwrite)
    ablations = ablations or {}
    drawn = _figures(changes, ablations)
    tables = _tables(changes, ablations)
    for folder in ("figures", "tables"):
        if (out / folder).is_dir():
            shutil.rmtree(out / folder)
    for name, table in tables.items():
        with replacing(out / "tables" / f"{name}.csv") as temporary:
            table.to_csv(temporary, index=False)
    inline = {}
    for name, (figure, caption) in drawn.items():
        figures.save(figure, out / "figures", name)
        svg = (out / "figures" / f"{name}.svg").read_text(encoding="utf-8")
        inline[name] = {"svg": _inlined(svg, name), "caption": caption}
    page = _render(changes, ablations, tables, inline, summary)
    with replacing(out / PAGE) as temporary:
        temporary.write_text(page, encoding="utf-8")
    return out / PAGE


def _figures(
    changes: Sequence[Change], ablations: "Mapping[str, Ablation]"
) -> dict[str, tuple[Figure, str]]:
    shared = "One colour scale for all panels; 0: exactly unchanged; grey: no such path trained."
    candidates = {
        "species": (
            figures.species_heatmap(changes),
            "Change of the weights that are an element's own, by layer and l of the output (Fig. 2 "
            f"of the paper). {shared}",
        ),
        "periodic": (
            figures.periodic_map(changes),
            "The same over all layers with an axis over elements, where the element stands.",
        ),
        "channels": (
            figures.channel_heatmap(changes),
            f"Change of all weights by layer and l of the output, elements together. {shared}",
        ),
        "depth": (
            figures.sparsity_by_depth(changes),
            "Exact zeros by layer. The depth is read off the names of the layers; the scale is "
            "logarithmic in the share of updated entries.",
        ),
    }
    for number, (name, found) in enumerate(ablations.items()):
        candidates[f"ablation{number}"] = (
            figures.ablation(found, name),
            f"ΔW of one group at a time set to zero, {found.frames} frames. Bars: 95 % interval "
            "from resampling the frames. Shares need not add up to 100 %.",
        )
    return {name: (f, caption) for name, (f, caption) in candidates.items() if f is not None}


def _tables(
    changes: Sequence[Change], ablations: "Mapping[str, Ablation]"
) -> dict[str, pd.DataFrame]:
    """Return every table, the rows of all changes one after the other."""
    made = {
        "overview": pd.DataFrame([_overview(change) for change in changes]),
        "layers": _stacked(changes, layer_table),
        "blocks": _stacked(changes, block_table),
        "species": _stacked(changes, species_table),
        "elements": _stacked(changes, element_table),
        "channels": _stacked(changes, channel_table),
        "absent": _stacked(changes, lambda c: absent_table(c).reset_index(names="of")),
        "energies": _stacked(changes, energy_table),
    }
    if len(changes) > 1:
        made["pairs"] = agreement(changes)
    for number, (name, found) in enumerate(ablations.items()):
        made[f"ablation{number}"] = found.table.assign(change=name)
        rows = [{"measure": m, **c._asdict()} for m, c in found.correlations.items()]
        made[f"correlations{number}"] = pd.DataFrame(rows).assign(change=name)
    return made


def _stacked(changes: Sequence[Change], table: Any) -> pd.DataFrame:
    parts = []
    for change in changes:
        part = table(change)
        if len(part):
            part.insert(0, "change", change.name)
            parts.append(part)
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()


def _overview(change: Change) -> dict[str, object]:
    sums: dict[Any, Any] = total(change).to_dict()
    return {
        "change": change.name,
        "method": change.method,
        "base model": Path(change.base).name,
        "layers": len(change.layouts),
        "entries": int(sums["entries"]),
        "updated": int(sums["updated"]),
        "sparsity (layer-wise)": f"{1 - sums['share']:.2%}",
        "sparsity (total)": f"{1 - sums['updated'] / change.parameters:.2%}",
        "relative": sums["relative"],
        "one_minus_r2": sums["one_minus_r2"],
        "trained on": " ".join(chemical_symbols[z] for z in sorted(change.trained_on or ())),
    }


def _render(
    changes: Sequence[Change],
    ablations: "Mapping[str, Ablation]",
    tables: Mapping[str, pd.DataFrame],
    drawn: Mapping[str, object],
    summary: Sequence[str],
) -> str:
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
        version=e3sparse.__version__,
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


def _inlined(svg: str, name: str) -> str:
    """Return the svg element alone, with ids that no other figure of the page has."""
    element = svg[svg.index("<svg") :]
    element = re.sub(r'\bid="', f'id="{name}-', element)
    element = re.sub(r'href="#', f'href="#{name}-', element)
    return re.sub(r"url\(#", f"url(#{name}-", element)
