"""Options that several commands share."""

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
EnergyKey = Annotated[str | None, typer.Option(help="Energy label.  (default REF_energy)")]
ForcesKey = Annotated[str | None, typer.Option(help="Forces label.  (default REF_forces)")]
StressKey = Annotated[str | None, typer.Option(help="Stress label.  (default REF_stress)")]
