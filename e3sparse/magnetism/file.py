"""Spin-aware layers on disk: `spin_config.json` and `spin_model.safetensors`.

The backbone that they were trained on is not in the folder: it is a model file with or without an
adapter. Which one it was is told by its energy of a few small structures.
"""

import math
from pathlib import Path

import numpy as np
import torch
from ase import Atoms
from pydantic import Field, FiniteFloat, StrictInt

from e3sparse.adapter.belonging import check_clebsch_gordan
from e3sparse.adapter.fingerprint import clebsch_gordan_probe, e3nn_version
from e3sparse.adapter.stored import FORMAT_VERSION, FolderKind, StoredConfig
from e3sparse.errors import AdapterFileError
from e3sparse.magnetism.block import SpinBlock, SpinSettings
from e3sparse.magnetism.potential import MagneticPotential
from e3sparse.potentials.backends import Potential
from e3sparse.potentials.single_points import single_points
from e3sparse.version import __version__

CONFIG_NAME, TENSORS_NAME = "spin_config.json", "spin_model.safetensors"
_SAME_ENERGY = 1e-3
"""In eV per atom, besides 1e-6 of the energy: float32 and float64 differ by less."""


class SpinConfig(StoredConfig):
    """What `spin_config.json` holds; energies in eV of the structures of `probes`."""

    e3sparse_version: str
    e3nn_version: str
    clebsch_gordan: list[FiniteFloat] = Field(min_length=1)
    backbone: str
    elements: list[StrictInt] = Field(min_length=1)
    energies: list[FiniteFloat]
    settings: SpinSettings


SPIN_FOLDER = FolderKind(
    CONFIG_NAME,
    TENSORS_NAME,
    SpinConfig,
    absent="holds no spin-aware layers",
    invalid="is no config of spin-aware layers",
)


def probes(elements: list[int], cutoff: float) -> list[Atoms]:
    """Return a triangle of each element, its sides well within the cutoff."""
    corners = 0.45 * cutoff * np.array([[0.0, 0.0, 0.0], [1.0, 0.0, 0.0], [0.3, 0.9, 0.0]])
    return [Atoms([z] * 3, corners) for z in elements]


def save(potential: MagneticPotential, directory: str | Path, elements: set[int]) -> Path:
    """Write the spin-aware layers.

    Parameters
    ----------
    potential
        With the backbone as it is to be used.
    directory
        Made if it does not exist; its two files are replaced if it does.
    elements
        Atomic numbers that the layers were trained on.

    Raises
    ------
    AdapterFileError
        If a weight is not a finite number.
    """
    state = {name: value.detach().cpu() for name, value in potential.layers.state_dict().items()}
    if not all(value.isfinite().all() for value in state.values() if value.is_floating_point()):
        raise AdapterFileError(
            "The weights of the spin-aware layers are not all finite: the training diverged."
        )
    known = sorted(elements)
    config = SpinConfig(
        format_version=FORMAT_VERSION,
        e3sparse_version=__version__,
        e3nn_version=e3nn_version(),
        clebsch_gordan=clebsch_gordan_probe(),
        backbone=potential.name,
        elements=known,
        energies=_energies(potential.backbone, known),
        settings=potential.layers.settings,
    )
    kept = dict(potential.layers.named_parameters())
    return SPIN_FOLDER.write(
        Path(directory), config, {name: state[name].contiguous() for name in kept}
    )


def load(potential: Potential, directory: str | Path) -> MagneticPotential:
    """Put saved spin-aware layers on the backbone that they were trained with.

    Parameters
    ----------
    potential
        The backbone: the merged model, or the base model with the adapter on it.
    directory
        Written by `save`.

    Raises
    ------
    AdapterFileError
        If the folder is damaged, or belongs to another backbone or another convention of
        Clebsch-Gordan coefficients.
    """
    folder = Path(directory)
    config, tensors = SPIN_FOLDER.read(folder)
    settings = config.settings
    for what, here, there in (
        ("node features", potential.node_irreps, settings.node_irreps),
        ("edges up to a cutoff of", potential.cutoff, settings.cutoff),
    ):
        if here != there:
            raise AdapterFileError(
                f"The spin-aware layers in {folder} read {what} {there}, and those of "
                f"{potential.name} are {here}: they are of another model ('{config.backbone}')."
            )
    check_clebsch_gordan(config.clebsch_gordan, config.e3nn_version, str(folder))
    if not _may_be_of(settings, tensors):
        raise _damaged(folder)
    if not all(t.is_floating_point() for t in tensors.values()):
        raise _damaged(folder)
    tensors = {name: tensor.to(potential.dtype) for name, tensor in tensors.items()}
    if not all(t.isfinite().all() for t in tensors.values()):
        raise AdapterFileError(
            f"{folder / TENSORS_NAME} holds values that are not finite in {potential.dtype}."
        )
    _check_backbone(potential, config, folder)
    # In the potential's precision before it is filled: weights of float64 keep their digits.
    layers = SpinBlock(settings).to(potential.dtype)
    expected = {name: p.shape for name, p in layers.named_parameters()}
    if {name: t.shape for name, t in tensors.items()} != expected:
        raise _damaged(folder)
    layers.load_state_dict(tensors, strict=False)
    return MagneticPotential(potential, layers)


def _may_be_of(settings: SpinSettings, tensors: dict[str, torch.Tensor]) -> bool:
    """Whether settings can be those of stored weights, before layers of their size are made."""
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    radial, energy = shapes.get("radial.layer0.weight"), shapes.get("energy.layer0.weight")
    embedded = math.prod(shapes.get("embedding.linear.0.weight", (0,)))
    return (
        radial == (settings.radial_basis, settings.radial_width)
        and energy is not None
        and energy[1:] == (settings.readout_width,)
        and settings.hidden <= energy[0]
        and settings.channels <= embedded
    )


def _damaged(folder: Path) -> AdapterFileError:
    return AdapterFileError(
        f"{folder / TENSORS_NAME} does not hold the weights that {CONFIG_NAME} describes: the "
        "folder is damaged."
    )


def _check_backbone(potential: Potential, config: SpinConfig, folder: Path) -> None:
    known = set(config.elements) <= set(potential.species.numbers)
    if len(config.energies) != len(config.elements):
        raise AdapterFileError(f"{folder / CONFIG_NAME} has not one energy for each element.")
    energies = _energies(potential, config.elements) if known else np.inf
    off = np.abs(np.subtract(energies, config.energies))
    allowed = 3 * _SAME_ENERGY + 1e-6 * np.abs(config.energies)
    if (off > allowed).any():
        raise AdapterFileError(
            f"{potential.name} is not the backbone that the spin-aware layers in {folder} were "
            f"trained with ('{config.backbone}', adapted): it gives another energy for three atoms "
            f"of an element (off by {off.max():.3g} eV). Load the merged model, or the base model "
            "with the adapter of the same run."
        )


def _energies(potential: Potential, elements: list[int]) -> list[float]:
    found = single_points(potential, probes(elements, potential.cutoff))
    return [evaluation.energy for evaluation in found]
