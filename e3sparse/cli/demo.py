"""`e3sparse demo`: what a fine-tuning is like, on frames that come with the package."""

import shlex
from importlib.resources import files
from pathlib import Path
from typing import Annotated

import typer

from e3sparse.cli.tables import out


def demo(
    context: typer.Context,
    folder: Annotated[
        Path, typer.Option("--out", help="Folder for the two runs and the report.")
    ] = Path("e3sparse-demo"),
    epochs: Annotated[int, typer.Option(min=1, help="Passes over the 120 training frames.")] = 16,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace what an earlier demo left.")
    ] = False,
) -> None:
    """Fine-tune SevenNet-0 on malonaldehyde: whole, and by a delta with 97 % zeros.

    The frames come with e3sparse. Each command is printed before it runs, to be tried on files of
    your own. Takes some minutes on one core.
    """
    from e3sparse.potentials.backends import get_backend

    get_backend("sevennet")  # says what to install where it is missing
    root = context.find_root().command
    for command in commands(folder, epochs, overwrite):
        out.print(f"\n$ e3sparse {shlex.join(command)}", style="bold", soft_wrap=True)
        root.main(command, prog_name="e3sparse", standalone_mode=False)
    out.print(
        f"\n{folder / 'sparse' / 'model.pth'} is an ordinary SevenNet checkpoint, and "
        f"{folder / 'sparse' / 'adapter'} the delta alone. Open "
        f"{folder / 'report' / 'index.html'} to see which channels changed.",
        soft_wrap=True,
    )


def commands(folder: Path, epochs: int, overwrite: bool) -> list[list[str]]:
    """Return the command lines that the demo runs, without the program's name."""
    sample = Path(str(files("e3sparse"))) / "sample_data" / "malonaldehyde"
    train, valid, test = (str(sample / f"{name}.xyz") for name in ("train", "valid", "test"))
    again = ["--overwrite"] if overwrite else []
    full, sparse, report = (str(folder / name) for name in ("full", "sparse", "report"))
    finetune = ["finetune", "7net-0", train, "--valid", valid, "--test", test]
    finetune += ["--epochs", str(epochs), "--batch-size", "5", "--valid-every", "4"]
    return [
        [*finetune, "--method", "full", "--out", full, *again],
        [*finetune, "--target-sparsity", "0.97", "--out", sparse, *again],
        ["compare", full, sparse],
        ["report", sparse, "--data", test, "--out", report, *again],
    ]
