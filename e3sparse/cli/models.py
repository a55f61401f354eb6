"""`e3sparse evaluate` and `merge`: what can be done with a model file."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from e3sparse.cli.options import (
    BackendOption,
    DeviceOption,
    DtypeOption,
    EnergyKey,
    ForcesKey,
    HeadOption,
    ModelArgument,
    MomentsKey,
    SpinKey,
    SpinsOption,
    StressKey,
    TrustOption,
)
from e3sparse.cli.robust import (
    BaseOption,
    ElementsOption,
    RobustFlags,
    RobustOption,
    SeedOption,
    StepsOption,
    print_looks,
    without_effect,
)
from e3sparse.cli.tables import out, print_errors
from e3sparse.errors import ConfigError

if TYPE_CHECKING:
    from e3sparse.potentials.backends import Potential


def evaluate(
    model: ModelArgument,
    data: Annotated[
        list[Path] | None, typer.Option(help="Labelled frames; may be repeated.")
    ] = None,
    adapter: Annotated[Path | None, typer.Option(help="Adapter folder to put on first.")] = None,
    scale: Annotated[
        float | None,
        typer.Option(
            help="Multiply the changes of --adapter by this, instead of by its own scale."
        ),
    ] = None,
    spins: SpinsOption = None,
    backend: BackendOption = None,
    head: HeadOption = None,
    device: DeviceOption = "cpu",
    dtype: DtypeOption = None,
    energy_key: EnergyKey = None,
    forces_key: ForcesKey = None,
    stress_key: StressKey = None,
    moments_key: MomentsKey = None,
    spin_key: SpinKey = None,
    e0s: Annotated[
        str, typer.Option(help="keep, or fit per-element shifts on each file first.")
    ] = "keep",
    skip_faulty: Annotated[
        bool,
        typer.Option(
            "--skip-faulty",
            help="Leave out frames that cannot be used or are nothing like the rest.",
        ),
    ] = False,
    trust_model: TrustOption = False,
    json: Annotated[Path | None, typer.Option(help="Write the figures here too.")] = None,
    robust: RobustOption = False,
    base: BaseOption = None,
    elements: ElementsOption = None,
    steps: StepsOption = None,
    seed: SeedOption = None,
    out_: Annotated[
        Path | None, typer.Option("--out", help="Folder for the figure of --robust.")
    ] = None,
) -> None:
    """Print the errors of a model on labelled frames, per file and per element.

    Isolated atoms, which have no forces, are left out. With --robust: look at it where it was not
    trained instead, next to its base; exit code 1 if something that held for the base does not.
    """
    from e3sparse.files import replacing
    from e3sparse.frames.evaluation import error_table
    from e3sparse.frames.reading import LabelKeys
    from e3sparse.training.assessment import assess
    from e3sparse.training.files_table import read_row, table_of_files
    from e3sparse.training.waiting import announce

    if e0s not in ("keep", "fit"):
        raise ConfigError(f"--e0s is 'keep' or 'fit', not '{e0s}'.")
    asked = RobustFlags(base, elements, steps, seed, out_)
    if robust:
        others: dict[str, object] = {
            "e0s": e0s != "keep",
            "skip-faulty": skip_faulty,
            "energy-key": energy_key,
        }
        others |= {"stress-key": stress_key, "moments-key": moments_key, "spin-key": spin_key}
        without_effect(others, "with")
    else:
        without_effect(vars(asked), "without")
    if not data and not robust:
        raise ConfigError("Which frames? Give --data FILE, or look beyond them with --robust.")
    if scale is not None and adapter is None:
        raise ConfigError("--scale multiplies the changes of an adapter: give --adapter too.")
    potential = _load(model, backend, head, device, dtype)
    if adapter is not None:
        loaded = potential.load_adapter(adapter)
        if scale is not None:
            loaded.scale = scale
    if spins is not None:
        from e3sparse.magnetism.saved_layers import with_forces

        potential = with_forces(potential, spins)
    if robust:
        if base is None and adapter is not None:
            base = model
        before = None if base is None else _load(base, backend, head, device, dtype)
        print_looks(potential, before, data or [], asked, forces_key, json)
        return
    given = {
        "energy": energy_key,
        "forces": forces_key,
        "stress": stress_key,
        "moments": moments_key,
        "spin": spin_key,
    }
    keys = LabelKeys(**{k: v for k, v in given.items() if v is not None})
    rows: dict[str, dict[str, float]] = {}
    files: list[list[str]] = []
    notes: list[str] = []
    for path in data or []:
        announce(path, out)
        found, reading = assess(
            potential, path, keys, fit=e0s == "fit", skip_faulty=skip_faulty, console=out
        )
        rows[str(path)] = found
        whose = "fitted to this file" if e0s == "fit" else "the model's own"
        files.append(read_row(path, reading, references=whose))
        notes += reading.notes
        if reading.isolated:
            notes.append(f"Isolated atoms in {path}: left out")
    out.print(table_of_files(files))
    for note in notes:
        out.print(note, soft_wrap=True, markup=False)
    table = error_table(rows)
    print_errors(table, model)
    if json is not None:
        with replacing(json) as temporary:
            table.to_json(temporary, orient="index", indent=1)


def merge(
    model: ModelArgument,
    adapter: Annotated[list[Path], typer.Option(help="Adapter folder; several are added up.")],
    out_: Annotated[Path, typer.Option("--out", help="Model file to write.")],
    scale: Annotated[
        list[float] | None,
        typer.Option(
            help="Multiply the changes by this, instead of by the adapter's own scale: one for all "
            "adapters, or one for each, in their order."
        ),
    ] = None,
    backend: BackendOption = None,
    head: HeadOption = None,
    trust_model: TrustOption = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the file.")] = False,
) -> None:
    """Fold adapters into their base model and write an ordinary model file."""
    from e3sparse.adapter import patching

    if out_.exists() and not overwrite:
        raise ConfigError(f"{out_} exists. Give another --out, or --overwrite.")
    if scale and len(scale) not in (1, len(adapter)):
        raise ConfigError(
            f"There are {len(adapter)} adapters and {len(scale)} scales: give --scale once, or "
            "once for each --adapter."
        )
    potential = _load(model, backend, head, "cpu", None)
    for number, folder in enumerate(adapter):
        loaded = potential.load_adapter(folder, name=f"adapter{number}")
        if scale:
            loaded.scale = scale[number if len(scale) > 1 else 0]
        times = "" if loaded.scale == 1 else f" times {loaded.scale:g}"
        out.print(f"{folder}{times}: {loaded.sparsity()}")
    patching.merge(potential.module)
    potential.save(out_)
    out.print(f"Wrote {out_}")


def _load(
    model: str, backend: str | None, head: str | None, device: str | None, dtype: str | None
) -> "Potential":
    import torch

    from e3sparse.potentials.backends import load_potential

    if dtype not in (None, "float32", "float64"):
        raise ConfigError(f"--dtype is float32 or float64, not '{dtype}'.")
    return load_potential(
        model,
        backend=backend,
        device=device or "cpu",
        dtype=None if dtype is None else getattr(torch, dtype),
        head=head,
    )
