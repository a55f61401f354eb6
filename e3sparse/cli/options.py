"""Options that several commands share."""

from pathlib import Path
from typing import Annotated

import typer

ModelArgument = Annotated[str, typer.Argument(help="Model name or file.")]
BackendOption = Annotated[
    str | None, typer.Option(help="Framework of the model; found out if left out.")
]
HeadOption = Annotated[
    str | None, typer.Option(help="Head or level of theory, for models with several.")
]
DeviceOption = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1 or auto.")]
DtypeOption = Annotated[
    str | None, typer.Option(help="float32 or float64; the file's if left out.")
]


def _trust(context: typer.Context, trusted: bool) -> bool:
    if trusted:
        from e3sparse.potentials.trust import trusting

        context.with_resource(trusting())  # until the command has ended
    return trusted


TrustOption = Annotated[
    bool,
    typer.Option(
        "--trust-model", help="Load model files whatever they run when loaded.", callback=_trust
    ),
]
EnergyKey = Annotated[str | None, typer.Option(help="Energy label.  (default REF_energy)")]
ForcesKey = Annotated[str | None, typer.Option(help="Forces label.  (default REF_forces)")]
MomentsKey = Annotated[
    str | None, typer.Option(help="Moments label, of magnetic models.  (default REF_magmom)")
]
SpinKey = Annotated[
    str | None,
    typer.Option(help="Spin directions; else those of the moments.  (default spin)"),
]
SpinsOption = Annotated[
    Path | None,
    typer.Option(help="Folder of spin-aware layers to put on, after the adapter."),
]
StressKey = Annotated[str | None, typer.Option(help="Stress label.  (default REF_stress)")]
