"""What a framework has to offer, and how its backend is found.

A backend is a class with the interface of `Backend`, registered by its distribution under the
entry-point group `e3sparse.backends`. Everything else in e3sparse works through `Potential`.
"""

import zipfile
import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar, NamedTuple

import torch
from ase import Atoms
from torch import Tensor, nn

from e3sparse.adapter.file import load
from e3sparse.adapter.handle import Adapter
from e3sparse.adapter.patching import patch
from e3sparse.adapter.targets import Targets
from e3sparse.deltas import Method
from e3sparse.errors import ConfigError, E3SparseError, nearest
from e3sparse.layers.faster_products import Acceleration
from e3sparse.layers.layouts import Species
from e3sparse.potentials.converted import Converted
from e3sparse.potentials.devices import checked_device
from e3sparse.potentials.trust import look

GROUP = "e3sparse.backends"


class Prediction(NamedTuple):
    """What a potential says of a batch of B frames with N atoms in all.

    Attributes
    ----------
    energy
        (B,) total energies in eV.
    forces
        (N, 3) in eV/Å.
    stress
        (B, 3, 3) in eV/Å³, positive under tension (ASE's sign); without meaning for frames that
        are not periodic. None if the model has none.
    geometry
        The tensor that energies are differentiated by, such as positions or edge vectors (R, 3),
        and the frame (R,) that each of its rows belongs to. Lets the symmetry suite see whether
        frames leak into each other; None where a framework hides it.
    moments
        (N, 3) magnetic moments in μ_B, of models that read spins.
    magnetic_forces
        (N, 3) -dE/dS in eV per unit of spin, where they were asked for.
    others
        Further quantities by name, shaped as `e3sparse.potentials.quantities` describes them.
    """

    energy: Tensor
    forces: Tensor
    stress: Tensor | None
    geometry: tuple[Tensor, Tensor] | None = None
    moments: Tensor | None = None
    magnetic_forces: Tensor | None = None
    others: Mapping[str, Tensor] = MappingProxyType({})


class Features(NamedTuple):
    """What layers on top of a potential need, for B frames with N atoms and R edges in all.

    Attributes
    ----------
    energy
        (B,) total energies in eV, not yet differentiated.
    nodes
        (N, dim of `Potential.node_irreps`).
    edge_index
        (2, R): neighbours, then the atoms that see them.
    edge_vectors
        (R, 3) in Å, all from the neighbour to the atom or all the other way.
    frame
        (N,) the frame of each atom.
    leaves
        The tensors that an energy is to be differentiated by.
    predict
        From an energy and its gradients by `leaves` (None for one that it does not depend on) to
        energies, forces and stresses.
    """

    energy: Tensor
    nodes: Tensor
    edge_index: Tensor
    edge_vectors: Tensor
    frame: Tensor
    leaves: tuple[Tensor, ...]
    predict: Callable[[Tensor, Sequence[Tensor | None]], Prediction]


class Potential(ABC):
    """A model loaded by its framework.

    Attributes
    ----------
    module
        The framework's own module, on which `e3sparse.patch` works.
    name
        The name or path that it was loaded by.
    cutoff
        In Å.
    species
        The elements that the model knows, and which layers have an axis over them.
    fold_into
        Path of each tensor product with external weights, and of the linear layer that makes
        the weights.
    framework
        Distribution names and versions, for the record.
    suffix
        Of the framework's model files.
    aliases
        Targets that have a meaning of their own in this framework, and what they stand for.
    parity
        Whether the model claims to be equivariant under inversion, not rotations alone.
    node_irreps
        Of the node features that `features` hands over; None if it cannot.
    magnetic, spin_orbit
        Whether it reads spins, and whether these may feel the lattice.
    accelerate
        Whether `forward` may evaluate in a faster way than the framework does.
    form
        The form of another library that `forward` evaluates instead; see `accelerate_by`.
    frame_inputs
        Keys of `info` or `arrays` that the model reads of a frame besides its structure.
    """

    module: nn.Module
    name: str
    cutoff: float
    species: Species
    fold_into: Mapping[str, str]
    framework: Mapping[str, str]
    suffix: str
    aliases: Mapping[str, Sequence[str]] = MappingProxyType({})
    parity: bool = True
    node_irreps: str | None = None
    magnetic: bool = False
    spin_orbit: bool = True
    accelerate: bool = True
    form: Converted | None = None
    frame_inputs: Sequence[str] = ()
    _generated: Acceleration | None = None

    @abstractmethod
    def graph(self, atoms: Atoms) -> Any:
        """Return one frame as the framework's graph, neighbours included."""

    @abstractmethod
    def collate(self, graphs: Sequence[Any]) -> Any:
        """Return a batch, which has a method `to(device)`."""

    @abstractmethod
    def forward(self, batch: Any) -> Prediction:
        """Evaluate a batch. In train mode the forces carry a graph for the loss gradient."""

    @abstractmethod
    def save(self, path: Path) -> None:
        """Write the (unpatched) model as an ordinary file of the framework."""

    @abstractmethod
    def shift_energies(self, shifts: Mapping[int, float]) -> None:
        """Add to the energy of each atom of element Z the shift in eV."""

    @abstractmethod
    def reinitialize(self, seed: int) -> None:
        """Draw all weights anew, as for training from scratch."""

    def features(self, batch: Any) -> Features:
        """Evaluate a batch as far as layers on top of the model need it.

        Raises
        ------
        ConfigError
            If the model cannot hand its node features over.
        """
        raise ConfigError(
            f"The backend of {self.name} hands over no node features, so that no layers can be "
            "put on top of it."
        )

    def accelerated(self) -> AbstractContextManager[None]:
        """Run e3nn's layers in the way that is differentiated faster, if `accelerate` is set."""
        if not self.accelerate:
            return nullcontext()
        if self._generated is None or self._generated.model is not self.module:
            self._generated = Acceleration(self.module)
        return self._generated()

    def forms(self) -> Mapping[str, Callable[[], Converted]]:
        """Return how the model is converted to each library that its framework can use."""
        return {}

    def accelerate_by(self, way: str) -> None:
        """Choose how `forward` evaluates.

        Parameters
        ----------
        way
            `"auto"` for what `accelerate` does, `"none"` for the framework's own way, or the name
            of a library: `"cueq"`, say. Adapters, merges and saved models are the same with all.

        Raises
        ------
        ConfigError
            If there is no such way for this model, or it does not work here.
        """
        forms = self.forms()
        ways = ("auto", "none", *forms)
        if way not in ways:
            raise ConfigError(
                f"{self.name} cannot be accelerated by '{way}'.{nearest(way, ways)} There are: "
                f"{', '.join(ways)}."
            )
        self.accelerate = way != "none"
        self.form = forms[way]() if way in forms else None

    def evaluated(self) -> nn.Module:
        """Return what `forward` calls: the model, or its form of another library."""
        if self.form is None or self.form.original is not self.module:
            return self.module
        return self.form

    def fresh_parameters(self) -> list[nn.Parameter]:
        """Return the parameters of layers that are no part of the base model: trained in full."""
        return []

    @property
    def constants(self) -> dict[str, float]:
        """What decides the answer and is not in the module: the cutoff of the neighbour list.

        A backend that keeps other such numbers outside its module adds them: an adapter is then
        refused on a model in which they are others.
        """
        return {"cutoff": self.cutoff}

    @property
    def dtype(self) -> torch.dtype:
        """Precision of the weights."""
        return next(self.module.parameters()).dtype

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.module.parameters()).device

    def resolve(self, targets: Targets) -> Targets:
        """Put what they stand for in the place of aliases."""
        if callable(targets):
            return targets
        patterns = [targets] if isinstance(targets, str) else targets
        resolved = [name for pattern in patterns for name in self.aliases.get(pattern, [pattern])]
        return resolved[0] if len(resolved) == 1 else resolved

    def patch(
        self, targets: Targets = "linear", method: str | Method = "budget", **options: Any
    ) -> Adapter:
        """Patch the module with what this backend knows of species and radial networks."""
        return patch(
            self.module,
            self.resolve(targets),
            method,
            species=self.species,
            fold_into=self.fold_into,
            constants=self.constants,
            **options,
        )

    def load_adapter(self, directory: str | Path, **options: Any) -> Adapter:
        """Load an adapter onto the module, its energy references included."""
        adapter = load(
            self.module,
            directory,
            species=self.species,
            fold_into=self.fold_into,
            constants=self.constants,
            **options,
        )
        self.shift_energies(adapter.energy_references)
        return adapter


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
