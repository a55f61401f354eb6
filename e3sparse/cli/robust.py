"""`e3sparse evaluate --robust`: does a model behave where it was not trained?"""

from collections.abc import Mapping
from dataclasses import dataclass
from json import dumps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.progress import Progress
from rich.table import Table
from rich.text import Text

from e3sparse.cli.tables import out
from e3sparse.errors import ConfigError

if TYPE_CHECKING:
    from e3sparse.potentials.backends import Potential
    from e3sparse.robustness import Verdict

RobustOption = Annotated[
    bool,
    typer.Option(
        "--robust",
        help="Look at dimers, compressed cells, dynamics and random structures instead.",
    ),
]
BaseOption = Annotated[
    str | None,
    typer.Option(help="With --robust: what the model was before.  (default: without --adapter)"),
]
ElementsOption = Annotated[
    str | None, typer.Option(help="With --robust: such as H,C,O.  (default: those of --data)")
]
StepsOption = Annotated[
    int | None, typer.Option(min=10, help="With --robust: of the dynamics.  (default 1000)")
]
SeedOption = Annotated[
    int | None, typer.Option(help="With --robust: of structures and dynamics.  (default 0)")
]
_COLORS = {
    "holds": "green",
    "lost": "bold red",
    "fails": "bold red",
    "not looked at": "dim",
    "no worse than the base": "yellow",
}


@dataclass(frozen=True)
class RobustFlags:
    """The flags that have a meaning with `--robust` alone; None where they were not given."""

    base: str | None
    elements: str | None
    steps: int | None
    seed: int | None
    out: Path | None


def without_effect(flags: Mapping[str, object], how: str) -> None:
    """Refuse flags that were given and would have no effect `"with"` or `"without"` --robust."""
    # A seed of 0 was given too.
    given = [f"--{n}" for n, value in flags.items() if value is not None and value is not False]
    if given:
        raise ConfigError(f"{' and '.join(given)} would have no effect {how} --robust.")


def print_looks(
    potential: "Potential",
    base: "Potential | None",
    data: list[Path],
    flags: RobustFlags,
    forces_key: str | None,
    json: Path | None,
) -> None:
    """Look at a model, print a table and end with exit code 1 if something was lost."""
    from e3sparse.files import replacing
    from e3sparse.potentials.structure_files import read_structures
    from e3sparse.robustness import PotentialModel, look_at, subjects_of
    from e3sparse.robustness.subjects import numbers_of
    from e3sparse.robustness.suite import STEPS, evaluations
    from e3sparse.training.waiting import announce

    known = [z for z in potential.species.numbers if base is None or z in set(base.species.numbers)]
    model, before = PotentialModel(potential), None if base is None else PotentialModel(base)
    given = []
    for path in data:
        announce(path, out)
        given += read_structures(path, known)
    subjects = subjects_of(
        numbers_of(flags.elements, known) if flags.elements else (),
        known=known,
        given=given,
        seed=flags.seed or 0,
        **({} if forces_key is None else {"forces": forces_key}),
    )
    steps = flags.steps or STEPS
    with Progress(console=out, transient=True, disable=not out.is_terminal) as bar:
        total = evaluations(subjects, steps, 1 if base is None else 2)
        task = bar.add_task(f"Looking at {potential.name}", total=total)
        outcome = look_at(
            model,
            before,
            subjects,
            steps=steps,
            seed=flags.seed or 0,
            done=lambda count: bar.advance(task, count),
        )
    out.print(_table(outcome.verdicts, potential.name, None if base is None else base.name))
    for note in subjects.notes:
        out.print(note, soft_wrap=True)
    if flags.out is not None:
        from e3sparse.robustness.figure import dimer_figure

        path = flags.out / "dimers.png"
        with replacing(path) as temporary:
            dimer_figure(outcome.curves).savefig(temporary, dpi=150, format="png")
        out.print(f"Wrote {path}", soft_wrap=True)
    if json is not None:
        names = {"model": potential.name, "base": None if base is None else base.name}
        ran = {"steps": steps, "seed": flags.seed or 0}
        document = dumps(names | ran | outcome.as_dict(), indent=1, allow_nan=False)
        with replacing(json) as temporary:
            temporary.write_text(document)
    lost = [verdict for verdict in outcome.verdicts if not verdict.ok]
    if lost:
        said = "; ".join(f"{verdict.look} ({', '.join(verdict.lost)})" for verdict in lost)
        what = "Fails: " if base is None else "Held for the base and does no longer: "
        out.print(Text(what, style="bold red"), said, ".", sep="", soft_wrap=True)
        raise typer.Exit(1)
    out.print(
        "All that was looked at holds."
        if base is None
        else "Nothing that held for the base was lost."
    )


def _table(verdicts: "list[Verdict]", model: str, base: str | None) -> Table:
    table = Table("look", "model", *(["base"] if base else []), "verdict", title=model)
    for verdict in verdicts:
        cells = [verdict.skipped if verdict.model is None else verdict.model.said]
        if base:
            cells.append("" if verdict.base is None else verdict.base.said)
        table.add_row(verdict.look, *cells, Text(verdict.word, style=_COLORS[verdict.word]))
    return table
