"""What the base model needs: the diagonal Fisher information of its own energies and forces.

With Gaussian errors of the sizes that the loss weights stand for, the Fisher information of what a
model says is the squared Jacobian of it, and needs no labels. Half of Σ Fᵢ ΔWᵢ², the penalty of
EWC (Kirkpatrick et al., PNAS 114, 3521), is then the diagonal part of the loss on what the base
model said, to second order in ΔW.
"""

import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
import safetensors.torch
import torch
from rich.console import Console
from safetensors import SafetensorError
from torch import Tensor

from e3sparse.adapter.handle import Adapter
from e3sparse.adapter.targets import Targets, candidates
from e3sparse.errors import ConfigError, nearest
from e3sparse.frames.batches import FrameDataset, collate
from e3sparse.frames.reading import Frame
from e3sparse.layers.injection import cached
from e3sparse.layers.layouts import Layout
from e3sparse.potentials.backends import Potential
from e3sparse.training.config import FinetuneConfig
from e3sparse.training.replay import AUTO, random_frames

Fisher = Mapping[str, Tensor]
"""Fisher information of each entry of ΔW, in the weight's shape, by module path."""

_TOGETHER = 4  # structures at once
_LEAST = 1e-2
"""Of the mean Fisher information: no entry costs less."""
_DRAWS = 2
"""Random projections of each structure."""


def fisher_for(config: FinetuneConfig, potential: Potential, console: Console) -> Fisher:
    """Return the Fisher information that a run was asked to use.

    Parameters
    ----------
    config
        `fisher` is `"auto"`, for that of the base model on small random structures of all its
        elements, or a file of `{parameter name: tensor}`.
    potential
        The base model, unpatched.
    console
        Where to show progress.

    Raises
    ------
    ConfigError
        If the file does not fit the model, or the random structures are too few.
    """
    if config.fisher != AUTO:
        found = candidates(potential.module, potential.species).layers
        return read_fisher(Path(str(config.fisher)), found)
    frames = random_frames(config.fisher_structures, config.seed, potential, console)
    weights = config.loss.energy, config.loss.forces
    return base_fisher(potential, frames, config.targets, weights=weights, seed=config.seed)


def base_fisher(
    potential: Potential,
    frames: Sequence[Frame],
    targets: Targets,
    *,
    weights: tuple[float, float],
    seed: int,
    draws: int = _DRAWS,
) -> dict[str, Tensor]:
    """Estimate the Fisher information of a base model from random projections of its Jacobian.

    For signs u drawn at random the mean of the squared gradient of u·y by a weight is the sum of
    its squared derivatives of all y: here the energy per atom and the components of the forces of
    a structure, weighted as in the loss. Signs of two structures are independent too, so that a
    batch needs one backward pass.

    Parameters
    ----------
    potential
        The base model; it is patched for as long as this runs.
    frames
        Structures on which it knows what it says. Their labels are not read.
    targets
        The layers.
    weights
        Of energies per atom and of forces, as in the loss.
    seed
        Of the signs.
    draws
        Projections of each structure: more cost more and scatter less.

    Returns
    -------
    dict
        Mean over the structures, in units of the loss; of a tensor product with weights from
        outside by the factors, `w·(1 + ΔW)`.
    """
    energies, forces = weights
    rng = np.random.default_rng([seed, 1])
    was_training = potential.module.training
    adapter = potential.patch(targets, "dense", name="fisher")
    found = {path: torch.zeros_like(value) for path, value in adapter.values().items()}
    held = [next(delta.parameters()) for delta in adapter.deltas().values()]
    data = FrameDataset(frames, potential, {})
    try:
        potential.module.train()
        for start in range(0, len(frames), _TOGETHER):
            some = [data[i] for i in range(start, min(start + _TOGETHER, len(frames)))]
            batch = collate(potential, some).to(potential.device)
            for _ in range(draws):
                with cached():
                    said = potential.forward(batch.inputs)
                    atoms = batch.atoms.to(said.energy)  # (B,)
                    # Mean over the 3N components of each frame, and the root of it for a square.
                    of = torch.repeat_interleave((forces / (3 * atoms)).sqrt(), batch.atoms.long())
                    on_energies = _signs(said.energy, rng) * energies**0.5 / atoms  # (B,)
                    on_forces = _signs(said.forces, rng) * of[:, None]  # (N, 3)
                    projected = (on_energies * said.energy).sum()
                    projected = projected + (on_forces * said.forces).sum()
                    gradients = torch.autograd.grad(projected, held, allow_unused=True)
                for total, gradient in zip(found.values(), gradients, strict=True):
                    if gradient is not None:
                        total += gradient.detach().square().view_as(total)
    finally:
        potential.module.train(was_training)
        adapter.remove()
    return {path: total / (draws * len(frames)) for path, total in found.items()}


def read_fisher(path: Path, layouts: Mapping[str, Layout]) -> dict[str, Tensor]:
    """Read `{parameter name: tensor}`, as SevenNet's reEWC and others keep it.

    Parameters
    ----------
    path
        A safetensors file, or one of `torch.save`, of which nothing but tensors is loaded.
    layouts
        Of the layers of the model, by module path.

    Returns
    -------
    dict
        By module path, of the layers of which the file knows all parameters.

    Raises
    ------
    ConfigError
        If it cannot be read, fits no layer, or has values that are none of a Fisher information.
    """
    try:
        if path.suffix == ".safetensors":
            stored = safetensors.torch.load_file(path)
        else:
            stored = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise ConfigError(f"{path} cannot be read ({error.strerror or error}).") from None
    except (SafetensorError, RuntimeError, BadZipFile, EOFError, pickle.UnpicklingError) as error:
        said = " ".join(str(error).split())[:200]
        raise ConfigError(f"{path} holds no tensors by name ({said}).") from None
    if not isinstance(stored, dict) or not all(isinstance(v, Tensor) for v in stored.values()):
        raise ConfigError(f"{path} is to hold a dictionary of tensors by parameter name.")
    found = {}
    for layer, layout in layouts.items():
        names = [f"{layer}.{parameter}" for parameter in layout.parameters]
        if not names or not stored.keys() >= {*names}:
            continue
        flat = torch.cat([stored[name].reshape(-1) for name in names])
        if flat.numel() != layout.numel:
            raise ConfigError(
                f"{path} has {flat.numel():,} values for layer '{layer}', and this model "
                f"{layout.numel:,} weights: it is of another model."
            )
        if not bool((flat >= 0).all() & flat.isfinite().all()):
            raise ConfigError(
                f"{path} has values for layer '{layer}' that are negative or not finite: a Fisher "
                "information is a mean of squares."
            )
        found[layer] = flat.reshape(layout.shape)
    if not found:
        first = next(iter(stored), "nothing")
        known = [f"{layer}.{name}" for layer, at in layouts.items() for name in at.parameters]
        raise ConfigError(
            f"{path} has no values for a layer of this model; it has '{first}'."
            f"{nearest(str(first), known)}"
        )
    return found


def checked_for(fisher: Fisher, adapter: Adapter) -> Fisher:
    """Return the values of an adapter's layers, on its device.

    Raises
    ------
    ConfigError
        If a layer of the adapter has none.
    """
    if lacking := [path for path in adapter.layouts if path not in fisher]:
        more = f" and {len(lacking) - 1} more" if len(lacking) > 1 else ""
        raise ConfigError(
            f"There is no Fisher information of layer '{lacking[0]}'{more}, which would be trained "
            "without a penalty: leave it out of --targets, or give --fisher auto."
        )
    return {path: fisher[path].to(value) for path, value in adapter.values().items()}


def penalty(fisher: Fisher, adapter: Adapter) -> Tensor:
    """Return ½ Σ Fᵢ ΔWᵢ² over the entries of an adapter, differentiable."""
    terms = []
    for path, delta in adapter.deltas().items():
        values = delta()
        terms.append((fisher[path].to(values) * values.square()).sum())
    return 0.5 * torch.stack(terms).sum()


def prices_of(fisher: Fisher, power: float) -> dict[str, Tensor]:
    """Return what each entry costs the base model: the root of F to a power, bounded from below.

    F in units of its mean over all entries; without the bound an entry of which the structures say
    nothing would cost nothing.
    """
    total = sum(float(of.double().sum()) for of in fisher.values())
    count = sum(of.numel() for of in fisher.values())
    mean = max(total / max(count, 1), torch.finfo(torch.float32).tiny)
    return {path: (of / mean + _LEAST).pow(power / 2) for path, of in fisher.items()}


def _signs(like: Tensor, rng: np.random.Generator) -> Tensor:
    signs = rng.integers(2, size=tuple(like.shape)) * 2 - 1
    return torch.as_tensor(signs, dtype=like.dtype, device=like.device)
