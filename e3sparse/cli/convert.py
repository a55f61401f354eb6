"""`e3sparse convert`: published data sets as extended XYZ with our labels."""

from pathlib import Path
from typing import Annotated

import typer
from rich.progress import (
    BarColumn,
    Progress,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from e3sparse.cli.tables import out as console
from e3sparse.errors import ConfigError


def convert(
    source: Annotated[list[Path], typer.Argument(help="File or folder; several are joined.")],
    form: Annotated[str, typer.Option("--format", help="mptrj, deepmd, rmd17 or vasp.")],
    out: Annotated[
        Path, typer.Option(help="File to write, .xyz or .db (a database); with --split a folder.")
    ],
    split: Annotated[
        str | None,
        typer.Option(
            help="Shares of train, valid and test, e.g. 8:1:1; by material, run or system."
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="Deals the materials out anew.")] = 0,
    magnetic: Annotated[
        bool,
        typer.Option("--magnetic", help="Only frames with a moment > 0.1 μ_B and < 100 atoms."),
    ] = False,
    database: Annotated[
        bool,
        typer.Option(
            "--database", help="With --split: databases (.db), which stay on disk in a training."
        ),
    ] = False,
    skip_faulty: Annotated[
        bool, typer.Option("--skip-faulty", help="Leave wrong frames out and name them.")
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the files.")] = False,
) -> None:
    """Convert a published data set to extended XYZ, checking every frame first.

    Labels become REF_energy (eV), REF_forces (eV/Å), REF_stress (eV/Å³, positive under tension),
    REF_magmom (μ_B) and spin (unit vectors).
    """
    from e3sparse.datasets import make_format
    from e3sparse.datasets.conversion import convert as run
    from e3sparse.datasets.splits import Split

    form_ = make_format(form)
    dealt = None if split is None else Split.parse(split, seed)
    if dealt is None and out.is_dir():
        raise ConfigError(f"{out} is a folder. Give a file as --out, or a --split.")
    if database and dealt is None:
        raise ConfigError("--database goes with --split; without, end the name of --out in .db.")
    suffix = ".db" if database else ".xyz"
    wanted = [out] if dealt is None else [out / f"{name}{suffix}" for name in dealt.wanted()]
    there = [str(path) for path in wanted if path.exists()]
    if there and not overwrite:
        raise ConfigError(f"{', '.join(there)} exists. Give another --out, or --overwrite.")
    lengths = [form_.length(path) for path in source]
    total = None if None in lengths or len(source) > 1 else lengths[0]
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    frames = 0
    with Progress(
        *columns, console=console, transient=True, disable=not console.is_terminal
    ) as progress:
        bar = progress.add_task("Reading", total=total)

        def advance(position: int) -> None:
            nonlocal frames
            frames += 1
            if frames % 100 == 0:
                progress.update(bar, description=f"{frames:,} frames", completed=position)

        report = run(
            form_,
            source,
            out,
            magnetic=magnetic,
            split=dealt,
            database=database,
            skip_faulty=skip_faulty,
            advance=advance,
        )
    for path in wanted:
        groups = len(report.groups[path])
        console.print(f"{path}: {report.frames[path]:,} frames of {groups:,} materials or runs")
    for label, number in report.without.items():
        if number:
            console.print(f"{number:,} of these frames have no {label}.")
    if magnetic:
        console.print(f"Left out as not magnetic or too large: {report.filtered:,} frames.")
    if report.faulty:
        console.print(f"Left out as faulty: {len(report.faulty):,} frames:")
        for sentence in report.faulty[:10]:
            console.print(f"  {sentence}", markup=False)
        if len(report.faulty) > 10:
            console.print(f"  … and {len(report.faulty) - 10:,} more.")
