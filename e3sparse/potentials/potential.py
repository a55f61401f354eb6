"""A model that a framework loaded: what it says of a batch, and what can be done with it."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from ase import Atoms
from torch import Tensor, nn

from e3sparse.adapter.file import load
from e3sparse.adapter.handle import Adapter
from e3sparse.adapter.patching import patch
from e3sparse.adapter.targets import Targets
from e3sparse.deltas import Method
from e3sparse.errors import ConfigError, PatchError, nearest
from e3sparse.files import replacing
from e3sparse.layers.faster_products import Acceleration
from e3sparse.layers.injection import SUBMODULE
from e3sparse.layers.layouts import Species
from e3sparse.potentials.converted import Converted


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
    heads, head
        Heads, modalities or levels of theory, if there are several, and the one in use.
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
    heads: Sequence[str] = ()
    head: str | None = None
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

    def save(self, path: Path) -> None:
        """Write the model as an ordinary file of the framework.

        Raises
        ------
        PatchError
            If the model is patched: the framework would read it without its deltas, or not at all.
        E3SparseError
            If the file cannot be written whole; one that was there is as it was.
        """
        if any(f".{SUBMODULE}." in f".{name}." for name, _ in self.module.named_modules()):
            raise PatchError(
                f"{path} would not be an ordinary file of {self.name}'s framework, because the "
                "model is patched: merge the adapter first."
            )
        with replacing(path) as temporary:
            self.write(temporary)

    @abstractmethod
    def write(self, path: Path) -> None:
        """Write the unpatched model to a path that nobody reads yet; for `save`."""

    @abstractmethod
    def shift_energies(self, shifts: Mapping[int, float]) -> None:
        """Add to the energy of each atom of element Z the shift in eV."""

    @abstractmethod
    def reinitialize(self, seed: int) -> None:
        """Draw all weights anew, as for training from scratch."""

    def describe(self) -> dict[str, str]:
        """Return what only the framework can tell of the model, line by line, for `inspect`.

        Such as its family and the options that it was built with; what the file knows of the DFT
        that it was trained on goes under `"level of theory"`.
        """
        return {}

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
        with adapter.accepting_buffers():
            self.shift_energies(adapter.energy_references)
        return adapter
