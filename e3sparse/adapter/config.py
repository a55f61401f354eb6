"""`adapter_config.json`: which model an adapter belongs to and how its layers are laid out."""

from pathlib import Path
from typing import Any

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    FiniteFloat,
    NonNegativeInt,
    SerializerFunctionWrapHandler,
    field_validator,
    model_serializer,
)

from e3sparse.adapter.identity import BaseIdentity
from e3sparse.adapter.stored import (
    FORMAT_VERSION,
    NEWEST_VERSION,
    FolderKind,
    StoredConfig,
    check_shape,
)
from e3sparse.layers.layouts import Layout

CONFIG_NAME = "adapter_config.json"
TENSORS_NAME = "adapter_model.safetensors"
SCALED_VERSION = NEWEST_VERSION
"""Format version of an adapter whose scale is not 1, which earlier readers would leave out."""

__all__ = [
    "CONFIG_NAME",
    "FORMAT_VERSION",
    "SCALED_VERSION",
    "TENSORS_NAME",
    "AdapterConfig",
    "BlockEntry",
    "LayerEntry",
    "read_config",
]


class BlockEntry(BaseModel):
    """One path block of a layer."""

    model_config = ConfigDict(extra="forbid")

    irreps_in: str
    irreps_in2: str | None = None
    irreps_out: str
    shape: tuple[int, ...]
    species_axis: int | None = None


class LayerEntry(BaseModel):
    """The layout that a layer's indices refer to."""

    model_config = ConfigDict(extra="forbid")

    kind: str
    shape: tuple[NonNegativeInt, ...]
    blocks: list[BlockEntry]

    @field_validator("shape")
    @classmethod
    def _possible(cls, shape: tuple[int, ...]) -> tuple[int, ...]:
        check_shape(shape)
        return shape

    @classmethod
    def of(cls, layout: Layout) -> "LayerEntry":
        fields = BlockEntry.model_fields
        blocks = [BlockEntry(**{f: getattr(b, f) for f in fields}) for b in layout.blocks]
        return cls(kind=layout.kind, shape=layout.shape, blocks=blocks)


class AdapterConfig(StoredConfig):
    """What `adapter_config.json` holds. Species are atomic numbers, energies eV.

    Files of format version 1 have no `base`: of the model that they belong to they know the hash of
    all parameters, `base_fingerprint`, alone. `scale` is said where it is not 1, which makes a file
    one of version 3.
    """

    e3sparse_version: str
    e3nn_version: str
    framework: dict[str, str] = Field(default_factory=dict)
    base_model: str | None = None
    base_fingerprint: str
    base: BaseIdentity | None = None
    clebsch_gordan: list[FiniteFloat]
    method: str
    settings: dict[str, Any]
    targets: str
    scale: FiniteFloat = 1.0
    species: list[int]
    energy_references: dict[int, FiniteFloat] = Field(default_factory=dict)
    metrics: dict[str, Any] = Field(default_factory=dict)
    sparsity: dict[str, float]
    layers: dict[str, LayerEntry]

    @model_serializer(mode="wrap")
    def _said(self, said: SerializerFunctionWrapHandler) -> dict[str, Any]:
        fields: dict[str, Any] = said(self)
        if self.scale == 1:
            fields.pop("scale", None)
        return fields


ADAPTER_FOLDER = FolderKind(
    CONFIG_NAME,
    TENSORS_NAME,
    AdapterConfig,
    absent="is not an adapter folder",
    invalid="is not an adapter config",
)


def read_config(directory: str | Path) -> AdapterConfig:
    """Read and check `adapter_config.json`, without the tensors that it goes with.

    Raises
    ------
    AdapterFileError
        If it is missing, is no JSON, was written by a newer e3sparse, or lacks something.
    """
    return ADAPTER_FOLDER.read_config(Path(directory))
