"""Spin-aware layers on disk: `spin_config.json` and `spin_model.safetensors`.

The backbone that they were trained on is not in the folder: it is a model file with or without an
adapter. Which one it was is told by its energy of a few small structures.
"""

from json import JSONDecodeError, loads
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
from ase import Atoms
from pydantic import BaseModel, ConfigDict, FiniteFloat, StrictInt, ValidationError
from safetensors import SafetensorError

from e3sparse.adapter.fingerprint import clebsch_gordan_probe, e3nn_version
from e3sparse.errors import AdapterFileError
from e3sparse.files import replacing
from e3sparse.magnetism.block import SpinBlock, SpinSettings
from e3sparse.magnetism.potential import MagneticPotential
from e3sparse.potentials.backends import Potential
from e3sparse.potentials.single_points import single_points
from e3sparse.version import __version__

CONFIG_NAME, TENSORS_NAME = "spin_config.json", "spin_model.safetensors"
FORMAT_VERSION = 1
_SAME_ENERGY = 1e-3
"""In eV per atom, besides 1e-6 of the energy: float32 and float64 differ by less."""


class SpinConfig(BaseModel):
    """What `spin_config.json` holds; energies in eV of the structures of `probes`."""

    model_config = ConfigDict(extra="forbid")

    format_version: StrictInt
    e3sparse_version: str
    e3nn_version: str
    clebsch_gordan: list[FiniteFloat]
    backbone: str
    elements: list[StrictInt]
    energies: list[FiniteFloat]
    settings: SpinSettings


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
    folder = Path(directory)
    kept = dict(potential.layers.named_parameters())
    data = safetensors.torch.save({name: state[name].contiguous() for name in kept})
    with (
        replacing(folder / TENSORS_NAME) as tensors_file,
        replacing(folder / CONFIG_NAME) as config_file,
    ):
        tensors_file.write_bytes(data)
        config_file.write_text(config.model_dump_json(indent=1) + "\n")
    return folder


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
    config = _read_config(folder)
    settings = config.settings
    if potential.node_irreps != settings.node_irreps:
        raise AdapterFileError(
            f"The spin-aware layers in {folder} read node features {settings.node_irreps}, and "
            f"those of {potential.name} are {potential.node_irreps}: they are of another model "
            f"('{config.backbone}')."
        )
    here = clebsch_gordan_probe()
    there = config.clebsch_gordan
    if here and (len(here) != len(there) or not np.allclose(here, there, atol=1e-6)):
        raise AdapterFileError(
            f"{folder} was made with e3nn {config.e3nn_version}, whose Clebsch-Gordan coefficients "
            f"differ in sign or order from e3nn {e3nn_version()} here. Use an e3nn of its line."
        )
    _check_backbone(potential, config, folder)
    # In the potential's precision before it is filled: weights of float64 keep their digits.
    layers = SpinBlock(settings).to(potential.dtype)
    tensors = _read_tensors(folder / TENSORS_NAME)
    expected = {name: p.shape for name, p in layers.named_parameters()}
    if {name: t.shape for name, t in tensors.items()} != expected:
        raise AdapterFileError(
            f"{folder / TENSORS_NAME} does not hold the weights that {CONFIG_NAME} describes: the "
            "folder is damaged."
        )
    if not all(t.isfinite().all() for t in tensors.values()):
        raise AdapterFileError(f"{folder / TENSORS_NAME} holds values that are not finite.")
    layers.load_state_dict(tensors, strict=False)
    return MagneticPotential(potential, layers)


def _check_backbone(potential: Potential, config: SpinConfig, folder: Path) -> None:
    unknown = set(config.elements) - set(potential.species.numbers)
    energies = [] if unknown else _energies(potential, config.elements)
    off = np.abs(np.subtract(energies, config.energies)) if energies else np.array([np.inf])
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


def _read_config(folder: Path) -> SpinConfig:
    path = folder / CONFIG_NAME
    try:
        raw = loads(path.read_text())
    except FileNotFoundError:
        raise AdapterFileError(
            f"{folder} holds no spin-aware layers: it has no {CONFIG_NAME}."
        ) from None
    except (JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise AdapterFileError(f"{path} is not valid JSON ({error}): it may be cut off.") from None
    except OSError as error:
        raise AdapterFileError(f"{path} cannot be read ({error.strerror}).") from None
    version = raw.get("format_version") if isinstance(raw, dict) else None
    if isinstance(version, int) and version > FORMAT_VERSION:
        raise AdapterFileError(
            f"{path} has format version {version}, and this e3sparse ({__version__}) "
            f"reads up to {FORMAT_VERSION}: upgrade e3sparse."
        )
    try:
        return SpinConfig.model_validate(raw)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise AdapterFileError(
            f"{path} is no config of spin-aware layers: {where}: {first['msg']}."
        ) from None


def _read_tensors(path: Path) -> dict[str, torch.Tensor]:
    try:
        return safetensors.torch.load_file(path)
    except FileNotFoundError:
        raise AdapterFileError(f"{path.parent} has no {path.name}.") from None
    except (SafetensorError, OSError, ValueError) as error:
        raise AdapterFileError(
            f"{path} cannot be read as safetensors ({error}): it is cut off or damaged."
        ) from None
