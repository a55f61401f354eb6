"""Weights of the parts of a loss."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, field_validator
from pydantic.config import JsonDict

from e3sparse.potentials.quantities import FIELDS, QUANTITIES, check_further

_MAGNETIC: JsonDict = {"panel": "Magnetism"}


class LossWeights(BaseModel):
    """How much each quantity counts in `e3sparse.training.losses.Loss`.

    Errors are in eV/atom, eV/Å, eV/Å³, μ_B and, for magnetic forces, eV per radian. `others` holds
    the weights of further quantities by name, where they are not those of their descriptions.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    energy: float = Field(QUANTITIES["energy"].weight, ge=0, description="Weight of energies.")
    forces: float = Field(QUANTITIES["forces"].weight, ge=0, description="Weight of forces.")
    stress: float = Field(QUANTITIES["stress"].weight, ge=0, description="Weight of stresses.")
    moments: float = Field(
        QUANTITIES["moments"].weight,
        ge=0,
        description="Weight of magnetic moments.",
        json_schema_extra=_MAGNETIC,
    )
    magnetic_forces: float = Field(
        QUANTITIES["magnetic_forces"].weight,
        ge=0,
        description="Weight of magnetic forces, -dE/dS.",
        json_schema_extra=_MAGNETIC,
    )
    others: dict[str, Annotated[float, Field(ge=0)]] = {}
    delta: float = Field(
        0.01,
        gt=0,
        description="Where the Huber loss turns from quadratic to linear, same units.",
        json_schema_extra={"flag": "huber-delta"},
    )

    @field_validator("others")
    @classmethod
    def _are_registered(cls, others: dict[str, float]) -> dict[str, float]:
        check_further(others)
        return others

    def weight(self, name: str) -> float:
        """Return the weight of a quantity."""
        if name in FIELDS:
            return float(getattr(self, name))
        return self.others.get(name, QUANTITIES[name].weight)
