"""The model card of an adapter folder: a `README.md` for whoever is given the folder.

It says what `adapter_config.json` says, for people. The lines between `---` are read by model hubs;
the licence among them is the user's to fill in.
"""

import hashlib
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from e3sparse.adapter.config import AdapterConfig, read_config
from e3sparse.files import replacing

CARD_NAME = "README.md"
_SIGNED = re.compile(r"(.*)<!-- e3sparse wrote this: ([0-9a-f]{64}) -->\n", re.DOTALL)
_BY_ELEMENT = "forces_mae_"
_ERRORS = {
    "energy_mae": "energy MAE (meV/atom)",
    "forces_mae": "force MAE (meV/Å)",
    "stress_mae": "stress MAE (meV/Å³)",
    "moments_mae": "moment MAE (μ_B)",
}


def write_card(directory: Path) -> None:
    """Write the card of an adapter folder, unless somebody has edited the one that is there.

    Parameters
    ----------
    directory
        An adapter folder.

    Raises
    ------
    AdapterFileError
        As `e3sparse.adapter.config.read_config` does.
    """
    path = directory / CARD_NAME
    if path.exists() and not _unedited(path.read_text(encoding="utf-8", errors="replace")):
        return
    text = "\n".join(_lines(read_config(directory))) + "\n"
    with replacing(path) as temporary:
        temporary.write_text(
            f"{text}<!-- e3sparse wrote this: {_digest(text)} -->\n", encoding="utf-8"
        )


def _unedited(text: str) -> bool:
    found = _SIGNED.fullmatch(text)
    return found is not None and _digest(found[1]) == found[2]


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _lines(config: AdapterConfig) -> Iterator[str]:
    base = _name(config.base_model)
    yield from ("---", "library_name: e3sparse", "license: unknown  # yours to fill in")
    yield from ("tags: [e3sparse, interatomic-potential]", "---", "")
    yield f"# A sparse delta on {base}"
    made = {"e3sparse": config.e3sparse_version, "e3nn": config.e3nn_version, **config.framework}
    yield ""
    yield (
        f"Made with {', '.join(f'{name} {version}' for name, version in made.items())}. It holds "
        "changes of path weights, so it can only be loaded onto the base model that it was trained "
        "on: loading compares fingerprints."
    )
    yield from ("", "| | |", "|---|---|", f"| base model | {base} |")
    yield f"| method | {config.method}{_settings(config.settings)} |"
    yield f"| targets | {_cell(config.targets)} |"
    if config.scale != 1:
        yield f"| scale | {config.scale:g}, by which the changes are multiplied |"
    updated = f"{config.sparsity.get('updated', 0):,.0f}"
    yield f"| updated entries | {updated} in {len(config.layers)} layers |"
    yield (
        f"| zeros | {config.sparsity.get('layerwise', 0):.2%} of the entries of these layers; "
        f"{config.sparsity.get('total', 0):.2%} of all parameters are unchanged |"
    )
    if config.energy_references:
        shifts = ", ".join(f"{z}: {e:+.6g}" for z, e in sorted(config.energy_references.items()))
        yield f"| energy shifts by atomic number (eV/atom) | {shifts} |"
    yield from ("", "## Data", "", *_data(config.metrics))
    yield from _errors(config.metrics)
    yield from ("", "## Load", "", "```python", "import e3sparse", "")
    yield "adapter = e3sparse.load(model, FOLDER)  # onto the base model, as its framework loads it"
    yield from ("model = adapter.merge()  # an ordinary model", "```", "")
    yield "or, for a model file of the framework,"
    yield from ("", "```", "e3sparse merge BASE_MODEL --adapter FOLDER --out FILE", "```")
    yield from ("", "## Licence", "")
    yield (
        "Not given yet: fill in `license` at the top. The delta was trained on the weights of the "
        "base model and on data whose licences may restrict it."
    )


def _data(metrics: Mapping[str, Any]) -> Iterator[str]:
    frames, after = metrics.get("frames"), metrics.get("train after")
    if isinstance(frames, Mapping) and frames:
        counts = ", ".join(f"{number:,} {_cell(name)}" for name, number in frames.items())
        yield f"Frames: {counts}."
    if isinstance(after, Mapping):
        columns = [column for column in after if column.startswith(_BY_ELEMENT)]
        elements = ", ".join(_cell(column.removeprefix(_BY_ELEMENT)) for column in columns)
        yield f"Elements: {elements}."
    yield "Level of theory and origin: not recorded; please add them."


def _errors(metrics: Mapping[str, Any]) -> Iterator[str]:
    rows = {
        name: row
        for name, row in metrics.items()
        if isinstance(row, Mapping) and any(column in row for column in _ERRORS)
    }
    columns = [column for column in _ERRORS if any(column in row for row in rows.values())]
    if not columns:
        return
    yield from ("", "## Errors", "")
    yield "| | " + " | ".join(_ERRORS[column] for column in columns) + " |"
    yield "|---|" + "---|" * len(columns)
    for name, row in rows.items():
        cells = [_number(row.get(column)) for column in columns]
        yield f"| {_cell(name)} | " + " | ".join(cells) + " |"


def _number(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, int | float) else ""


def _settings(settings: Mapping[str, Any]) -> str:
    said = ", ".join(f"{name} {value}" for name, value in settings.items())
    return _cell(f" ({said})") if said else ""


def _name(base: str | None) -> str:
    # Of a path only the last part: the rest is about somebody's machine.
    return _cell(re.split(r"[/\\]", base)[-1]) if base else "an e3nn model"


def _cell(text: str) -> str:
    """Return text that does not end a cell of a table, a line or a comment."""
    return re.sub(r"\s+", " ", text).replace("|", "\\|").replace("<", "&lt;")
