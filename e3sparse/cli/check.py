"""`e3sparse check`: does a model keep the symmetries that it promises?"""

from json import dumps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from e3sparse.cli.options import (
    BackendOption,
    DeviceOption,
    HeadOption,
    ModelArgument,
    SpinsOption,
    TrustOption,
)
from e3sparse.cli.tables import out
from e3sparse.errors import ConfigError

if TYPE_CHECKING:
    from e3sparse.symmetry import Result

_COLORS = {"passed": "green", "failed": "bold red", "skipped": "dim", "not claimed": "yellow"}


def check(
    model: ModelArgument,
    adapter: Annotated[Path | None, typer.Option(help="Adapter folder to put on first.")] = None,
    spins: SpinsOption = None,
    frames: Annotated[
        Path | None, typer.Option(help="Structures to try besides those that are drawn.")
    ] = None,
    examples: Annotated[int, typer.Option(min=1, help="Cases drawn for each check.")] = 20,
    max_atoms: Annotated[
        int, typer.Option(min=2, max=30, help="Of the structures that are drawn.")
    ] = 30,
    seed: Annotated[int, typer.Option(help="The same seed draws the same cases.")] = 0,
    backend: BackendOption = None,
    head: HeadOption = None,
    device: DeviceOption = "cpu",
    dtype: Annotated[
        str, typer.Option(help="float64, which tests float32 too, or float32 alone.")
    ] = "float64",
    trust_model: TrustOption = False,
    json: Annotated[Path | None, typer.Option(help="Write the results here too.")] = None,
) -> None:
    """Test the symmetries of a model; exit code 1 if one that it promises is broken."""
    import torch

    from e3sparse.files import replacing
    from e3sparse.potentials.structure_files import read_structures

    try:
        from e3sparse.symmetry.loading import load_subject
        from e3sparse.symmetry.suite import CHECKS, run
    except ModuleNotFoundError as error:
        if error.name != "hypothesis":
            raise
        raise ConfigError(
            "The checks draw their cases by hypothesis, which is not installed: "
            "pip install 'e3sparse[symmetry]'."
        ) from None

    if dtype not in ("float32", "float64"):
        raise ConfigError(f"--dtype is float32 or float64, not '{dtype}'.")
    subject = load_subject(
        model,
        backend=backend,
        adapter=adapter,
        spins=spins,
        head=head,
        device=device or "cpu",
        dtype=getattr(torch, dtype),
    )
    given = [] if frames is None else read_structures(frames, subject.numbers)
    table = Table("check", "claim", "cases", "worst", "tolerance", "verdict", title=model)
    results = []
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=out, transient=True) as progress:
        task = progress.add_task("", total=len(CHECKS))
        for result in run(
            subject,
            examples=examples,
            seed=seed,
            frames=given,
            max_atoms=max_atoms,
            started=lambda c: progress.update(task, description=c.name),
        ):
            results.append(result)
            measured = (
                (
                    str(result.cases),
                    f"{result.quantity} {result.error:.1e}",
                    f"{result.tolerance:.0e}",
                )
                if result.cases
                else ("", "", "")
            )
            verdict = Text(result.status, style=_COLORS[result.status])
            table.add_row(result.check, result.claim, *measured, verdict)
    out.print(table)
    out.print(
        "Errors are relative to the largest value, or to 1 eV, 1 eV/Å, 0.1 eV/Å³ where it is less."
    )
    for result in results:
        if result.status == "failed":
            out.print(f"\n{result.message()}")
        elif result.reason and result.status != "passed":
            out.print(f"{result.check}: {result.status}. {result.reason}")
    if json is not None:
        document = _document(model, adapter, subject.dtype, results)
        with replacing(json) as temporary:
            temporary.write_text(document)
    failed = [result.check for result in results if not result.ok]
    if failed:
        out.print(Text("Broken: ", style="bold red"), ", ".join(failed), ".", sep="")
        raise typer.Exit(1)


def _document(model: str, adapter: Path | None, dtype: object, results: "list[Result]") -> str:
    return dumps(
        {
            "model": model,
            "adapter": None if adapter is None else str(adapter),
            "dtype": str(dtype).removeprefix("torch."),
            "ok": all(result.ok for result in results),
            "results": [result.as_dict() for result in results],
        },
        indent=1,
        allow_nan=False,
    )
