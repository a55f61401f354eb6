"""MACE: load by name or file, evaluate, write a model file that MACE loads."""

# With e3nn 0.4.4 and torch ≥ 2.6, e3nn can only be imported after mace has changed what torch
# lets it load.
import mace  # noqa: I001

import io
import pickle
from collections.abc import Mapping, Sequence
from contextlib import nullcontext, redirect_stdout
from importlib.metadata import version
from pathlib import Path
from typing import Any, ClassVar

import torch
from ase import Atoms
from e3nn.nn import FullyConnectedNet
from mace.calculators.foundations_models import (
    download_mace_mp_checkpoint,
    mace_mp_urls,
    mace_off,
    mace_off_urls,
)
from mace.data import AtomicData, config_from_atoms
from mace.modules.models import MACE
from mace.modules.utils import get_edge_vectors_and_lengths
from mace.tools import AtomicNumberTable
from mace.tools.scripts_utils import extract_config_mace_model
from mace.tools.torch_geometric.batch import Batch
from mace.tools.torch_tools import default_dtype
from torch import Tensor, nn

from e3sparse.backends import Backend, Features, Potential, Prediction, pickle_mentions
from e3sparse.errors import ConfigError, PatchError, nearest
from e3sparse.files import replacing
from e3sparse.injection import SUBMODULE
from e3sparse.paths import Species, kind_of
from e3sparse_mace.acceleration import Acceleration
from e3sparse_mace.precision import recompute_coupling
from e3sparse_mace.products import PRODUCTS

__all__ = ["MACEBackend", "MACEPotential", "mace"]

_OFF = {f"{size}-off": size for size in mace_off_urls}
_MP = tuple(mace_mp_urls)


class MACEPotential(Potential):
    """A MACE model with e3nn layers.

    Parameters
    ----------
    name
        What it was loaded by.
    module
        A `mace.modules.MACE`.
    head
        Of a model that has several.
    """

    suffix = ".model"
    module: MACE

    def __init__(
        self,
        name: str,
        module: MACE,
        *,
        device: str,
        dtype: torch.dtype | None,
        head: str | None,
    ) -> None:
        self.name = name
        # Models from before MACE 0.3.5 know of no heads.
        self.heads: list[str] = list(getattr(module, "heads", None) or ["Default"])
        self.head = _checked_head(name, self.heads, head)
        self.module = module.to(device=device, dtype=dtype)
        recompute_coupling(self.module)
        self.cutoff = float(module.r_max)
        self.framework = {"mace-torch": version("mace-torch")}
        self.parity = not getattr(module, "use_so3", False)
        # What the model returns as node features: those of every layer side by side.
        layers = [str(product.linear.irreps_out) for product in module.products]
        self.node_irreps = "+".join(layers)
        numbers = tuple(int(z) for z in module.atomic_numbers)
        self.species = Species(numbers, self._species_axes(numbers))
        self.fold_into = {
            f"{path}.conv_tp": f"{path}.conv_tp_weights.layer{len(block.conv_tp_weights) - 1}"
            for path, block in self._interactions()
            if isinstance(block.conv_tp_weights, FullyConnectedNet)
        }
        last = len(module.interactions) - 1
        self.aliases = {
            "all": ("linear", "fctp"),  # of the paper
            "last": (
                f"interactions.{last}.linear_up",
                f"interactions.{last}.linear",
                f"products.{last}.linear",
                "readouts",
            ),
        }
        self._table = AtomicNumberTable(list(numbers))
        self._acceleration = Acceleration(self.module)

    def _interactions(self) -> list[tuple[str, Any]]:
        return [(f"interactions.{k}", block) for k, block in enumerate(self.module.interactions)]

    def _species_axes(self, numbers: Sequence[int]) -> dict[str, int]:
        skips = {f"{path}.skip_tp": 1 for path, block in self._interactions()}
        products = {
            path: 0
            for path, module in self.module.named_modules()
            if kind_of(module) is PRODUCTS and module.weights_max.shape[0] == len(numbers)
        }
        return {"node_embedding.linear": 0, **skips, **products}

    def graph(self, atoms: Atoms) -> AtomicData:
        with default_dtype(self.dtype):
            config = config_from_atoms(atoms, head_name=self.head)
            return AtomicData.from_config(
                config, z_table=self._table, cutoff=self.cutoff, heads=self.heads
            )

    def collate(self, graphs: Sequence[AtomicData]) -> Any:
        return Batch.from_data_list(list(graphs))

    def forward(self, batch: Any) -> Prediction:
        data = _inputs(batch)
        positions = data["positions"]
        periodic = bool(data["cell"].any())
        out = self._evaluate(data, compute_stress=periodic)
        energy = _total_energy(data, out)
        return Prediction(
            energy=energy,
            forces=out["forces"],
            stress=out["stress"] if periodic else _no_stress(out["forces"], len(energy)),
            geometry=(positions, data["batch"]),
        )

    def features(self, batch: Any) -> Features:
        data = _inputs(batch)
        positions, cell = data["positions"], data["cell"].view(-1, 3, 3)
        out = self._evaluate(data, compute_force=False, compute_displacement=True)
        vectors, _ = get_edge_vectors_and_lengths(
            positions=data["positions"], edge_index=data["edge_index"], shifts=data["shifts"]
        )
        volume = torch.linalg.det(cell).abs().view(-1, 1, 1)

        def predict(energy: Tensor, gradients: Sequence[Tensor | None]) -> Prediction:
            by_position, by_strain = gradients
            stress = _no_stress(positions, len(energy))
            if by_strain is not None:
                stress = torch.where(volume > 0, by_strain / volume.clamp(min=1e-3), stress)
            return Prediction(
                energy=energy,
                forces=torch.zeros_like(positions) if by_position is None else -by_position,
                stress=stress,
                geometry=(positions, data["batch"]),
            )

        return Features(
            energy=_total_energy(data, out),
            nodes=out["node_feats"],
            edge_index=data["edge_index"],
            edge_vectors=vectors,
            frame=data["batch"],
            leaves=(positions, out["displacement"]),
            predict=predict,
        )

    def _evaluate(self, data: dict[str, Any], **options: bool) -> dict[str, Tensor]:
        if self._acceleration.model is not self.module:
            self._acceleration = Acceleration(self.module)
        accelerated = self._acceleration(data["node_attrs"]) if self.accelerate else nullcontext()
        with default_dtype(self.dtype), accelerated:
            out: dict[str, Tensor] = self.module(data, training=self.module.training, **options)
        return out

    def save(self, path: Path) -> None:
        if any(f".{SUBMODULE}." in f".{name}" for name, _ in self.module.named_modules()):
            raise PatchError(
                "A MACE file of a patched model could only be read where e3sparse is installed: "
                "merge the adapter first."
            )
        with replacing(path) as temporary:
            torch.save(self.module, temporary)

    def shift_energies(self, shifts: Mapping[int, float]) -> None:
        energies: Tensor = self.module.atomic_energies_fn.atomic_energies  # (heads, elements)
        rows = energies if energies.ndim == 1 else energies[self.heads.index(self.head)]
        with torch.no_grad():
            for number, shift in shifts.items():
                rows[self._table.z_to_index(number)] += shift

    def reinitialize(self, seed: int) -> None:
        config = extract_config_mace_model(self.module)
        if "error" in config:
            raise ConfigError(f"{self.name} cannot be trained from scratch: {config['error']}.")
        with torch.random.fork_rng(devices=[]), default_dtype(self.dtype):
            torch.manual_seed(seed)
            drawn = dict(type(self.module)(**config).named_parameters())
        with torch.no_grad():
            for name, parameter in self.module.named_parameters():
                parameter.copy_(drawn[name])


class MACEBackend(Backend):
    """Models of the `mace` package."""

    name: ClassVar[str] = "mace"

    def model_names(self) -> Sequence[str]:
        return (*_OFF, *_MP)

    def recognises(self, path: Path) -> bool:
        return pickle_mentions(path, b"mace.modules")

    def load(
        self, model: str, *, device: str, dtype: torch.dtype | None, head: str | None
    ) -> MACEPotential:
        module = self._file(model) if Path(model).is_file() else self._named(model)
        if isinstance(module, torch.jit.ScriptModule):
            raise ConfigError(
                f"'{model}' is compiled with TorchScript and cannot be changed: give the .model "
                "file that it was made from."
            )
        if not isinstance(module, MACE):
            raise ConfigError(f"'{model}' holds a {type(module).__name__}, not a MACE model.")
        return MACEPotential(model, module, device=device, dtype=dtype, head=head)

    def _file(self, model: str) -> Any:
        try:
            with redirect_stdout(io.StringIO()):
                return torch.load(model, map_location="cpu", weights_only=False)
        except (RuntimeError, EOFError, KeyError, AttributeError, ImportError) as error:
            raise ConfigError(f"'{model}' cannot be loaded as a MACE model ({error}).") from error
        except pickle.PickleError as error:
            raise ConfigError(f"'{model}' is no file that torch can load ({error}).") from error

    def _named(self, model: str) -> nn.Module:
        name = model.lower()
        if name not in self.model_names():
            raise ConfigError(
                f"'{model}' is neither a file nor a MACE model.{nearest(name, self.model_names())} "
                f"Names: {', '.join(self.model_names())}."
            )
        try:
            if name in _OFF:
                module: nn.Module = mace_off(_OFF[name], device="cpu", return_raw_model=True)
                return module
            path = download_mace_mp_checkpoint(name)
        except (OSError, RuntimeError) as error:
            raise ConfigError(
                f"'{model}' is not in MACE's cache and could not be downloaded ({error}): "
                "download it where there is a network and give its path."
            ) from error
        loaded: nn.Module = self._file(path)
        return loaded


def _inputs(batch: Any) -> dict[str, Any]:
    # MACE writes strained positions into what it is given, and asks for their gradient.
    data: dict[str, Any] = batch.to_dict()
    data["positions"] = data["positions"].detach().clone()
    return data


def _total_energy(data: Mapping[str, Tensor], out: Mapping[str, Tensor]) -> Tensor:
    # Core electrons make energies that float32 knows to 1e-3 eV: MACE sums nodes in float64.
    frames = int(data["ptr"].numel()) - 1
    energy = data["positions"].new_zeros(frames, dtype=torch.float64)
    return energy.index_add(0, data["batch"], out["node_energy"].double())


def _no_stress(forces: Tensor, frames: int) -> Tensor:
    return forces.new_zeros(frames, 3, 3)


def _checked_head(name: str, heads: list[str], head: str | None) -> str:
    if head is None and len(heads) == 1:
        return heads[0]
    if head is None:
        raise ConfigError(f"{name} has several heads: choose --head {' | '.join(heads)}.")
    if head not in heads:
        raise ConfigError(
            f"{name} has no head '{head}'.{nearest(head, heads)} It has: {', '.join(heads)}."
        )
    return head
