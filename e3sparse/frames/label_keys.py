"""The names that labels have in a file."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, field_validator
from pydantic.config import JsonDict

from e3sparse.potentials.quantities import QUANTITIES, SPINS, check_further

_MAGNETIC: JsonDict = {"panel": "Magnetism"}


class LabelKeys(BaseModel):
    """Where the labels are in the file: MACE's names by default.

    `energy`, `forces` and `stress` themselves mean what ASE puts into its calculator, and so does
    `magmoms`. A stress key with "virial" in it names a virial, which is -volume × stress. Moments
    and spins are read for magnetic models only. `others` names further labels by quantity.
    `type_weights` are weights of frames by their `config_type`; `Default` is that of the rest.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    energy: str = Field(QUANTITIES["energy"].key, description="Energy label.")
    forces: str = Field(QUANTITIES["forces"].key, description="Forces label.")
    stress: str = Field(QUANTITIES["stress"].key, description="Stress or virial label.")
    moments: str = Field(
        QUANTITIES["moments"].key,
        description="Label of the moments, for magnetic models.",
        json_schema_extra=_MAGNETIC,
    )
    spin: str = Field(
        SPINS,
        description="Spin directions; those of the moments where there are none.",
        json_schema_extra=_MAGNETIC,
    )
    magnetic_forces: str = Field(
        QUANTITIES["magnetic_forces"].key,
        description="Label of the magnetic forces, -dE/dS, for magnetic models.",
        json_schema_extra=_MAGNETIC,
    )
    others: dict[str, str] = {}
    type_weights: dict[str, Annotated[float, Field(ge=0)]] = {}

    @field_validator("others")
    @classmethod
    def _are_registered(cls, others: dict[str, str]) -> dict[str, str]:
        check_further(others)
        return others

    def asked_for(self, name: str) -> bool:
        """Whether somebody chose the key of a label, rather than leave it as it is."""
        return bool(getattr(self, name) != type(self).model_fields[name].default)
