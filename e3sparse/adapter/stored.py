"""A folder of a JSON config and a safetensors file: written whole, and read only if it still is.

Since format version 2 the config holds a digest of itself and of the tensors' bytes. It tells a
folder that was damaged, edited, or left with the files of two saves. It is no signature: who
rewrites both can rewrite it. Nothing in the folder is executed.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, NoReturn, TypeVar

import safetensors
import safetensors.torch
from pydantic import BaseModel, ConfigDict, Field, StrictInt, ValidationError
from safetensors import SafetensorError
from torch import Tensor

from e3sparse.errors import AdapterFileError, wrong_values
from e3sparse.files import replacing
from e3sparse.version import __version__

FORMAT_VERSION = 2
NEWEST_VERSION = 3
"""Version 3 is of what an older e3sparse must not take for something else: scaled adapters."""
LARGEST = 2**31
"""No tensor has more entries: indices are int32."""
_DIGEST = "digest"
_DTYPES = {"F16", "BF16", "F32", "F64", "I8", "I16", "I32", "I64", "U8", "BOOL"}


class StoredConfig(BaseModel):
    """What the config of every kind of folder holds.

    Attributes
    ----------
    format_version
        1 has no digest; files of it are still read.
    digest
        SHA-256, in hexadecimal, of the SHA-256 of the rest of the config (as JSON with sorted keys
        and no spaces) and that of the tensors' file.
    """

    model_config = ConfigDict(extra="forbid")

    format_version: StrictInt = Field(ge=1)
    digest: str | None = None


Config = TypeVar("Config", bound=StoredConfig)


@dataclass(frozen=True)
class FolderKind(Generic[Config]):
    """One kind of folder: its two files, and what its config must be.

    Attributes
    ----------
    config_name, tensors_name
        Names of the two files.
    config_type
        What the config is checked against.
    absent
        What a folder without a config "is not" or "holds no": the end of "the folder …".
    invalid
        The same of a config that lacks something: "is not an adapter config".
    """

    config_name: str
    tensors_name: str
    config_type: type[Config]
    absent: str
    invalid: str

    def write(self, folder: Path, config: Config, tensors: Mapping[str, Tensor]) -> Path:
        """Write both files, bound to each other by a digest; what is there is replaced at the end.

        Raises
        ------
        E3SparseError
            If they cannot be written; the old files are then as they were.
        """
        data = safetensors.torch.save(dict(tensors), metadata={"format": "pt"})
        # Through JSON and back, so that the digest is of what a reader will find.
        said = json.loads(config.model_dump_json(exclude={_DIGEST}))
        text = json.dumps(said | {_DIGEST: _digest(said, data)}, indent=1) + "\n"
        with (
            replacing(folder / self.tensors_name) as tensors_file,
            replacing(folder / self.config_name) as config_file,
        ):
            tensors_file.write_bytes(data)
            config_file.write_text(text)
        return folder

    def read_config(self, folder: Path) -> Config:
        """Read and check the config alone; whether it goes with the tensors is not looked at.

        Raises
        ------
        AdapterFileError
            If it is missing, is no JSON, was written by a newer e3sparse, or lacks something.
        """
        return self._config(folder)[0]

    def read(self, folder: Path) -> tuple[Config, dict[str, Tensor]]:
        """Read both files, and check that they are as they were written, together.

        Raises
        ------
        AdapterFileError
            As for `read_config`; or if the tensors are missing, damaged, or of another save.
        """
        config, said = self._config(folder)
        path = folder / self.tensors_name
        data = _content(path, absent=f"{folder} has no {path.name}.")
        tensors = _tensors(path, data)
        if config.digest is None and config.format_version == 1:
            return config, tensors
        if config.digest != _digest(said, data):
            raise AdapterFileError(
                f"{folder} is not as it was written: the digest in {self.config_name} is not that "
                f"of its content. {self.config_name} or {path.name} has been changed, damaged, or "
                "is of another save. Copy both again."
            )
        return config, tensors

    def _config(self, folder: Path) -> tuple[Config, dict[str, Any]]:
        path = folder / self.config_name
        content = _content(path, absent=f"{folder} {self.absent}: it has no {path.name}.")
        try:
            raw = json.loads(
                content.decode(), object_pairs_hook=_without_duplicates, parse_constant=_no_number
            )
        except (ValueError, RecursionError) as error:
            raise AdapterFileError(
                f"{path} is not valid JSON ({error}): it may be cut off."
            ) from None
        version = raw.get("format_version") if isinstance(raw, dict) else None
        if isinstance(version, int) and version > NEWEST_VERSION:
            raise AdapterFileError(
                f"{path} has format version {version}, and this e3sparse "
                f"({__version__}) reads up to {NEWEST_VERSION}: upgrade e3sparse."
            )
        try:
            return self.config_type.model_validate(raw), raw
        except ValidationError as error:
            wrong = wrong_values(error)[0]
            raise AdapterFileError(f"{path} {self.invalid}: {wrong}.") from None
        except RecursionError:
            raise AdapterFileError(f"{path} {self.invalid}: it is nested too deeply.") from None


def _content(path: Path, absent: str) -> bytes:
    try:
        if path.exists() and not path.is_file():
            raise AdapterFileError(f"{path} cannot be read (it is no file).")
        return path.read_bytes()
    except FileNotFoundError:
        raise AdapterFileError(absent) from None
    except OSError as error:
        raise AdapterFileError(f"{path} cannot be read ({error.strerror}).") from None
    except MemoryError:
        raise AdapterFileError(f"{path} is too large to be read into memory.") from None


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"it has '{twice}' twice")
    return found


def _no_number(word: str) -> NoReturn:
    raise ValueError(f"{word} is no finite number")


def _digest(said: Mapping[str, Any], data: bytes) -> str:
    rest = {key: value for key, value in said.items() if key != _DIGEST}
    text = json.dumps(rest, sort_keys=True, separators=(",", ":"))
    parts = (hashlib.sha256(text.encode()), hashlib.sha256(data))
    return hashlib.sha256(b"".join(part.digest() for part in parts)).hexdigest()


def check_shape(shape: tuple[int, ...]) -> None:
    """Raise a ValueError for a shape that no tensor of ours has, before torch is asked for one."""
    entries = 1
    for length in shape:
        entries *= max(length, 1)  # (0, 2⁶⁴) has no entry, and yet torch cannot make it
        if length < 0 or entries >= LARGEST:
            raise ValueError(f"no tensor has the shape {shape}")
    if len(shape) > 16:
        raise ValueError(f"no tensor has {len(shape)} axes")


def _tensors(path: Path, data: bytes) -> dict[str, Tensor]:
    try:
        for name, view in safetensors.deserialize(data):
            check_shape(tuple(view["shape"]))
            if view["dtype"] not in _DTYPES:
                raise ValueError(f"'{name}' is of type {view['dtype']}")
        return safetensors.torch.load(data)
    except (SafetensorError, ValueError, MemoryError) as error:
        raise AdapterFileError(
            f"{path} cannot be read as safetensors ({error}): it is cut off or damaged. "
            "Copy it again."
        ) from None
