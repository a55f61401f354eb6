"""One page on what fine-tunings changed, with its figures and tables as files."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
from ase.data import chemical_symbols
from matplotlib.figure import Figure

from e3sparse.analysis import figures
from e3sparse.analysis.change import Change
from e3sparse.analysis.page import render
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
from e3sparse.files import replacing
from e3sparse.output_folders import (
    Listing,
    check_output,
    exchange,
    read_listing,
    remove_listed,
    write_listing,
)

if TYPE_CHECKING:
    from e3sparse.analysis.causality import Ablation

PAGE, LISTING = "index.html", "e3sparse-report.json"


def check_folder(out: Path, overwrite: bool) -> None:
    """Raise unless a report can be written to a folder; nothing is changed.

    Raises
    ------
    ConfigError
        If it holds something already, and is not a report that may be replaced.
    """
    check_output(out, LISTING, "the folder of a report", {}, overwrite=overwrite)


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
        Folder: `index.html`, `figures/` and `tables/`, and a file that lists them: what it does not
        list is not replaced.
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
    E3SparseError
        If it cannot be written, such as on a full disk; an older report is as it was then.
    """
    out = Path(out)
    check_folder(out, overwrite)
    ablations = ablations or {}
    drawn = _figures(changes, ablations)
    tables = _tables(changes, ablations)
    files = [f"tables/{name}.csv" for name in tables]
    files += [f"figures/{name}.{suffix}" for name in drawn for suffix in figures.SUFFIXES]
    listing = Listing(written_by="e3sparse report", files=[*files, PAGE])
    # Beside an older one, which stays as it is until this one is whole.
    older = read_listing(out, LISTING, Listing) is not None
    folder = out.resolve().with_name(f"{out.resolve().name}.unfinished") if older else out
    if older:
        _remove(folder)
    write_listing(folder, LISTING, listing)
    try:
        for name, table in tables.items():
            with replacing(folder / "tables" / f"{name}.csv") as temporary:
                table.to_csv(temporary, index=False)
        inline = {}
        for name, (figure, caption) in drawn.items():
            figures.save(figure, folder / "figures", name)
            svg = (folder / "figures" / f"{name}.svg").read_text(encoding="utf-8")
            inline[name] = {"svg": _inlined(svg, name), "caption": caption}
        page = render(changes, ablations, tables, inline, summary)
        with replacing(folder / PAGE) as temporary:
            temporary.write_text(page, encoding="utf-8")
    except BaseException:
        _remove(folder)
        raise
    if older:
        exchange(folder, out, LISTING)
    return out / PAGE


def _remove(folder: Path) -> None:
    """Remove a report that did not come to its end."""
    begun = read_listing(folder, LISTING, Listing)
    if begun is not None:
        remove_listed(folder, LISTING, begun)


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


def _inlined(svg: str, name: str) -> str:
    """Return the svg element alone, with ids that no other figure of the page has."""
    element = svg[svg.index("<svg") :]
    element = re.sub(r'\bid="', f'id="{name}-', element)
    element = re.sub(r'href="#', f'href="#{name}-', element)
    return re.sub(r"url\(#", f"url(#{name}-", element)
