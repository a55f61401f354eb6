"""NequIP and Allegro: load a package or a checkpoint, evaluate, write a package."""

import pickle
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from ase import Atoms
from ase.data import atomic_numbers, chemical_symbols
from nequip.data import AtomicDataDict, from_ase
from nequip.integrations.utils import basic_transforms
from nequip.model.saved_models import load_saved_model
from nequip.nn import graph_model
from nequip.utils.dtype import torch_default_dtype
from nequip.utils.global_dtype import _GLOBAL_DTYPE
from torch import Tensor, nn

from e3sparse.errors import ConfigError
from e3sparse.layers.clebsch_gordan import as_read, recompute_wigner_3j
from e3sparse.layers.kinds import kind_of, qualified_name
from e3sparse.layers.layouts import Species
from e3sparse.potentials.backends import (
    Backend,
    Potential,
    Prediction,
    chosen_head,
    pickle_mentions,
    without_element_shifts,
)
from e3sparse_nequip.description import describe
from e3sparse_nequip.layers import TYPE_EMBEDDINGS
from e3sparse_nequip.options import nequip_state
from e3sparse_nequip.package import SUFFIX, write_package

_ONLINE = "nequip.net:"


class NequIPBatch(dict[str, Tensor]):
    """An `AtomicDataDict` that can be moved to a device."""

    def to(self, device: torch.device | str) -> "NequIPBatch":
        return NequIPBatch({key: value.to(device) for key, value in self.items()})


class NequIPPotential(Potential):
    """A NequIP or Allegro model.

    Parameters
    ----------
    name
        What it was loaded by.
    module
        A `nequip.nn.GraphModel`, of this NequIP or of the one in a package.
    dtype
        None for the precision that it was built with.
    """

    suffix = SUFFIX

    def __init__(
        self, name: str, module: Any, *, device: str = "cpu", dtype: torch.dtype | None = None
    ) -> None:
        self.name = name
        self.module = module
        self._overwritten: dict[str, Tensor] = {}
        if dtype is not None and dtype != module.model_dtype:
            self._overwritten = _convert(module, dtype)
        self.module.to(device=device)
        self._overwritten |= recompute_wigner_3j(self.module)
        metadata = module.metadata
        self.cutoff = float(metadata[graph_model.R_MAX_KEY])
        self.types: list[str] = metadata[graph_model.TYPE_NAMES_KEY].split(" ")
        self.framework = {"nequip": version("nequip")}
        # Types that are no chemical symbols belong to no element that a file could name.
        self.species = Species(
            tuple(atomic_numbers.get(name, 0) for name in self.types), dict(_species_axes(module))
        )
        self.fold_into = dict(_radial_networks(module))
        self._transforms = basic_transforms(
            metadata, self.cutoff, self.types, {name: name for name in self.types}
        )
        self._example: Atoms | None = None

    def describe(self) -> dict[str, str]:
        return describe(self.module, self.name)

    def graph(self, atoms: Atoms) -> NequIPBatch:
        self._example = self._example or atoms.copy()
        bare = Atoms(atoms.numbers, atoms.positions, cell=atoms.cell, pbc=atoms.pbc)
        with torch_default_dtype(_GLOBAL_DTYPE):
            # A cell of no volume stands for none: molecules and crystals go into one batch.
            data = from_ase(bare)
            for transform in self._transforms:
                data = transform(data)
        return NequIPBatch(data)

    def _boxed_example(self) -> NequIPBatch | None:
        """Return a graph that a model can be traced with: of more than 3 atoms, in a cell."""
        if self._example is None:
            return None
        atoms = self._example.copy()
        while len(atoms) <= 3:
            if atoms.pbc.all():
                atoms = atoms.repeat(2)
            else:
                twin = atoms.copy()
                twin.translate([float(np.ptp(atoms.positions[:, 0])) + 2.0, 0.0, 0.0])
                atoms += twin
        if not atoms.pbc.any():
            atoms.center(vacuum=10.0)
        return self.graph(atoms)

    def collate(self, graphs: Sequence[NequIPBatch]) -> NequIPBatch:
        return NequIPBatch(AtomicDataDict.batched_from_list(list(graphs)))

    def forward(self, batch: NequIPBatch) -> Prediction:
        positions = batch[AtomicDataDict.POSITIONS_KEY].detach().clone().requires_grad_(True)
        with self.accelerated():
            out = self.module({**batch, AtomicDataDict.POSITIONS_KEY: positions})
        return Prediction(
            energy=out[AtomicDataDict.TOTAL_ENERGY_KEY].reshape(-1),
            forces=out[AtomicDataDict.FORCE_KEY].to(self.dtype),
            stress=torch.nan_to_num(out[AtomicDataDict.STRESS_KEY]).to(self.dtype),
            geometry=(positions, batch[AtomicDataDict.BATCH_KEY]),
        )

    def write(self, path: Path) -> None:
        example = self._boxed_example()
        with as_read(self.module, self._overwritten):
            write_package(path, self.name, self.module, example)

    def shift_energies(self, shifts: Mapping[int, float]) -> None:
        if not shifts:
            return
        scale_shift = _scale_shift(self.module, self.name)
        if not scale_shift.has_shifts or scale_shift.shifts.numel() == 1:
            raise without_element_shifts(self.name)
        stored = scale_shift.shifts
        with torch.no_grad():
            for number, shift in shifts.items():
                stored[self.types.index(chemical_symbols[number])] += shift

    def reinitialize(self, seed: int) -> None:
        raise ConfigError(
            "A NequIP model is trained from scratch by nequip-train, which knows its architecture."
        )


class NequIPBackend(Backend):
    """Models of the `nequip` package and of its extensions."""

    name: ClassVar[str] = "nequip"
    layers: ClassVar[Sequence[str] | None] = ("nequip.nn.", "allegro.nn.")
    targets: ClassVar[Sequence[str]] = (
        *(f"nequip.{package}." for package in ("model", "nn", "train", "data")),
        *("allegro.model.", "allegro.nn.", "e3sparse_nequip."),
        *("torch.optim.", "torch.nn.", "torch.utils.data.", "torchmetrics.", "lightning.Trainer"),
        *(f"lightning.pytorch.{part}." for part in ("callbacks", "loggers", "strategies")),
        "schedulefree.",
    )

    def model_names(self) -> Sequence[str]:
        return ()

    def knows(self, name: str) -> bool:
        return name.startswith(_ONLINE)

    def recognises(self, path: Path) -> bool:
        return path.name.endswith(SUFFIX) or pickle_mentions(path, b"num_datasets")

    def load(
        self, model: str, *, device: str, dtype: torch.dtype | None, head: str | None
    ) -> NequIPPotential:
        chosen_head(model, (), head)
        if not self.knows(model) and not Path(model).is_file():
            raise ConfigError(
                f"'{model}' is neither a file nor a name of the form {_ONLINE}group/model:version."
            )
        try:
            with nequip_state():
                module = load_saved_model(model)
        except (
            *(OSError, RuntimeError, EOFError, KeyError, ValueError),
            *(ImportError, pickle.PickleError),
        ) as error:
            if self.knows(model):
                raise ConfigError(
                    f"'{model}' is not in NequIP's cache and could not be downloaded ({error}): "
                    "download it where there is a network and give its path."
                ) from error
            raise ConfigError(f"'{model}' cannot be loaded as a NequIP model ({error}).") from error
        return NequIPPotential(model, module, device=device, dtype=dtype)


def _radial_networks(module: nn.Module) -> Iterator[tuple[str, str]]:
    for path, block in module.named_modules():
        if qualified_name(type(block)) == "nequip.nn.interaction_block.InteractionBlock":
            layers = [
                f"{path}.edge_mlp.{name}"
                for name, layer in block.get_submodule("edge_mlp").named_modules()
                if kind_of(layer) is not None
            ]
            yield f"{path}.tp_scatter.tp", layers[-1]


def _species_axes(module: nn.Module) -> Iterator[tuple[str, int]]:
    for path, block in module.named_modules():
        for name in TYPE_EMBEDDINGS.get(qualified_name(type(block)), ()):
            yield f"{path}.{name}", 0


def _scale_shift(module: nn.Module, name: str) -> Any:
    found = [layer for layer in module.modules() if _is_scale_shift(layer)]
    if len(found) != 1:
        raise ConfigError(
            f"{name} has {len(found)} layers of per-type energy shifts, and energy references can "
            "be folded into one: use --e0s keep."
        )
    return found[0]


def _convert(module: Any, dtype: torch.dtype) -> dict[str, Tensor]:
    """Change the precision, with the attributes in which NequIP's modules keep theirs.

    Returns
    -------
    dict
        Constants that were overwritten by more exact ones, by the name of the buffer.
    """
    built = module.model_dtype
    # Energies are scaled, shifted and summed in float64 whatever the model's precision is.
    energies = [layer for layer in module.modules() if _is_scale_shift(layer)]
    kept = [(layer, dict(layer._parameters), dict(layer._buffers)) for layer in energies]
    for layer in module.modules():
        if layer in energies:
            layer._parameters, layer._buffers = {}, {}
            continue
        for key, value in vars(layer).items():
            if value is built:
                setattr(layer, key, dtype)
    module.to(dtype)
    for layer, parameters, buffers in kept:
        layer._parameters, layer._buffers = parameters, buffers
    overwritten = {}
    for path, layer in module.named_modules():
        if qualified_name(type(layer)) == "allegro.nn._strided._contract.Contracter":
            overwritten[f"{path}.w3j"] = layer.w3j.clone()
            _recompute_contraction(layer)
    return overwritten


def _is_scale_shift(layer: nn.Module) -> bool:
    return qualified_name(type(layer)) == "nequip.nn.atomwise.PerTypeScaleShift"


@torch.no_grad()
def _recompute_contraction(layer: Any) -> None:
    """Fill Allegro's Clebsch-Gordan coefficients with all the digits of their new precision."""
    with torch_default_dtype(layer.w3j.dtype), torch.random.fork_rng(devices=[]):
        exact = type(layer)(
            irreps_in1=layer.irreps_in1,
            irreps_in2=layer.irreps_in2,
            irreps_out=layer.irreps_out,
            mul=layer.mul,
            instructions=layer.instructions,
            path_channel_coupling=layer.path_channel_coupling,
            irrep_normalization=layer.irrep_normalization,
        )
    layer.w3j.copy_(exact.w3j)
