"""What a framework has to offer, and how its backend is found.

A backend is a class with the interface of `Backend`, registered by its distribution under the
entry-point group `e3sparse.backends`. Everything else in e3sparse works through `Potential`.
"""

import zipfile
import zlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import ClassVar

import torch

from e3sparse.errors import ConfigError, E3SparseError, nearest
from e3sparse.potentials.devices import checked_device
from e3sparse.potentials.potential import Features, Potential, Prediction
from e3sparse.potentials.refusals import chosen_head, without_element_shifts
from e3sparse.potentials.trust import look

__all__ = [
    "Backend",
    "Features",
    "Potential",
    "Prediction",
    "chosen_head",
    "get_backend",
    "installed",
    "load_potential",
    "pickle_mentions",
    "without_element_shifts",
]

GROUP = "e3sparse.backends"


class Backend(ABC):
    """How models of one framework are recognised and loaded.

    Attributes
    ----------
    name
        As in the entry point.
    layers
        Packages whose layers a model file may hold, such as `"mace.modules."`. None where model
        files are no pickles, so that there is nothing to look into before they are loaded.
    pickled
        Other names that a model file may import, with their modules; see
        `e3sparse.potentials.trust`.
    targets
        Where the framework makes its models by hydra, what a config in a model file may call.
    """

    name: ClassVar[str]
    layers: ClassVar[Sequence[str] | None] = None
    pickled: ClassVar[Sequence[str]] = ()
    targets: ClassVar[Sequence[str]] = ()

    @abstractmethod
    def model_names(self) -> Sequence[str]:
        """Return the names of pretrained models that `load` understands, besides paths."""

    def knows(self, name: str) -> bool:
        """Whether `load` understands a name that is no path."""
        return name.lower() in self.model_names()

    @abstractmethod
    def recognises(self, path: Path) -> bool:
        """Whether an existing file looks like a model of this framework."""

    @abstractmethod
    def load(
        self, model: str, *, device: str, dtype: torch.dtype | None, head: str | None
    ) -> Potential:
        """Load a model by name or path.

        Parameters
        ----------
        model
            A name of `model_names` or a path.
        device
            Such as `"cpu"` or `"cuda"`.
        dtype
            None for the precision that the file has.
        head
            Head, modality or level of theory of a model that has several.
        """


def pickle_mentions(path: Path, word: bytes) -> bool:
    """Whether a file that torch saved holds a word; nothing is unpickled to find out."""
    try:
        with zipfile.ZipFile(path) as archive:
            pickles = [name for name in archive.namelist() if name.endswith("/data.pkl")]
            return any(word in archive.read(name) for name in pickles)
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, NotImplementedError, ValueError):
        return False


def compiled_by(path: Path) -> str | None:
    """Return what a file was compiled by that holds no layers any more: None for other files."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        return None
    if any("/aotinductor/" in f"/{name}" for name in names):
        return "AOTInductor"
    scripted = any(name.endswith("/constants.pkl") for name in names)
    return "TorchScript" if scripted else None


def installed() -> dict[str, EntryPoint]:
    """Return the entry point of each backend by name; none is imported."""
    return {point.name: point for point in entry_points(group=GROUP)}


def get_backend(name: str) -> Backend:
    """Import a backend by name.

    Raises
    ------
    ConfigError
        If there is none of that name, or its framework is not installed.
    """
    known = installed()
    if name not in known:
        raise ConfigError(
            f"There is no backend '{name}'.{nearest(name, known)} "
            f"Installed: {', '.join(known) or 'none'}."
        )
    try:
        backend = known[name].load()()
    except ImportError as error:
        raise ConfigError(
            f"Backend '{name}' cannot be imported ({error}): pip install 'e3sparse[{name}]'."
        ) from error
    assert isinstance(backend, Backend)
    return backend


def load_potential(
    model: str,
    *,
    backend: str | None = None,
    device: str = "cpu",
    dtype: torch.dtype | None = None,
    head: str | None = None,
    trust: bool = False,
) -> Potential:
    """Load a model by name or path with the backend that knows it.

    Parameters
    ----------
    device
        As of `checked_device`.
    trust
        Load a file whatever it would run. Otherwise it is looked through first; see
        `e3sparse.potentials.trust`.

    Raises
    ------
    ConfigError
        If `model` is neither a name that an installed backend knows nor a file of one, or the file
        is damaged or would run what no model needs.
    """
    device = checked_device(device)
    if Path(model).exists() and not Path(model).is_file():  # a pipe would be waited for
        raise ConfigError(f"'{model}' is no model: it is a folder, or no regular file.")
    if compiler := compiled_by(Path(model)):
        raise ConfigError(
            f"'{model}' is compiled by {compiler}, for LAMMPS or to be faster, and cannot be "
            "changed: give the model file that it was made from."
        )
    found = get_backend(backend) if backend is not None else _backend_of(model)
    try:
        if found.layers is not None and not trust:
            look(Path(model), found.layers, found.pickled, found.targets)
        return found.load(model, device=device, dtype=dtype, head=head)
    except E3SparseError:
        raise
    except Exception as error:
        if not Path(model).exists():
            raise
        said = str(error).strip().splitlines()
        raise ConfigError(
            f"'{model}' cannot be loaded as a model of {found.name} ({type(error).__name__}: "
            f"{said[0] if said else 'no message'}). Is the file whole, and of this framework?"
        ) from error


def _backend_of(model: str) -> Backend:
    names: list[str] = []
    for candidate in installed():
        try:
            found = get_backend(candidate)
        except ConfigError:
            continue
        names += found.model_names()
        path = Path(model)
        if found.knows(model) or (path.is_file() and found.recognises(path)):
            return found
    if Path(model).is_file():
        raise ConfigError(
            f"'{model}' is no model file of an installed backend "
            f"({', '.join(installed()) or 'none is installed'}), or is damaged. Name one with "
            "--backend to see why it cannot read the file."
        )
    raise ConfigError(
        f"'{model}' is neither a file nor a model name.{nearest(model, names)} "
        f"Names: {', '.join(names) or 'none, because no backend is installed'}."
    )
