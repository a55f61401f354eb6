"""`adapter_config.json`: which model an adapter belongs to and how its layers are laid out."""

from json import loads
from pathlib import Path
from typing import Any

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    FiniteFloat,
    NonNegativeInt,
    StrictInt,
    ValidationError,
)

from e3sparse.errors import AdapterFileError
from e3sparse.layers.layouts import Layout
from e3sparse.version import __version__

CONFIG_NAME = "adapter_config.json"
FORMAT_VERSION = 1


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

    @classmethod
    def of(cls, layout: Layout) -> "LayerEntry":
        fields = BlockEntry.model_fields
        blocks = [BlockEntry(**{f: getattr(b, f) for f in fields}) for b in layout.blocks]
        return cls(kind=layout.kind, shape=layout.shape, blocks=blocks)


class AdapterConfig(BaseModel):
    """What `adapter_config.json` holds. Species are atomic numbers, energies eV."""

    model_config = ConfigDict(extra="forbid")

    format_version: StrictInt
    e3sparse_version: str
    e3nn_version: str
    framework: dict[str, str] = Field(default_factory=dict)
    base_model: str | None = None
    base_fingerprint: str
    clebsch_gordan: list[FiniteFloat]
    method: str
    settings: dict[str, Any]
    targets: str
    species: list[int]
    energy_references: dict[int, FiniteFloat] = Field(default_factory=dict)
    metrics: dict[str, Any] = Field(default_factory=dict)
    sparsity: dict[str, float]
    layers: dict[str, LayerEntry]


def read_config(directory: str | Path) -> AdapterConfig:
    """Read and check `adapter_config.json`.

    Raises
    ------
    AdapterFileError
        If it is missing, is no JSON, was written by a newer e3sparse, or lacks something.
    """
    path = Path(directory) / CONFIG_NAME
    try:
        raw = loads(path.read_text())
    except FileNotFoundError:
        raise AdapterFileError(
            f"{directory} is not an adapter folder: it has no {CONFIG_NAME}."
        ) from None
    except (ValueError, RecursionError) as error:
        raise AdapterFileError(f"{path} is not valid JSON ({error}): it may be cut off.") from None
    except OSError as error:
        raise AdapterFileError(f"{path} cannot be read ({error.strerror}).") from None
    version = raw.get("format_version") if isinstance(raw, dict) else None
    if isinstance(version, int) and version > FORMAT_VERSION:
        raise AdapterFileError(
            f"{path} has format version {version}, and this e3sparse "
            f"({__version__}) reads up to {FORMAT_VERSION}: upgrade e3sparse."
        )
    try:
        return AdapterConfig.model_validate(raw)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise AdapterFileError(
            f"{path} is not an adapter config: {where}: {first['msg']}."
        ) from None
