"""MACE: load by name or file, evaluate, write a model file that MACE loads."""

# With e3nn 0.4.4 and torch ≥ 2.6, e3nn can only be imported after mace has changed what torch
# lets it load.
import mace  # noqa: I001

import io
import pickle
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext, redirect_stdout
from importlib.metadata import version
from pathlib import Path
from typing import Any, ClassVar

import torch
from ase import Atoms
from mace.calculators.foundations_models import (
    download_mace_mp_checkpoint,
    download_mace_polar_checkpoint,
    mace_mp_urls,
    mace_off,
    mace_off_urls,
    mace_omol,
    polar_model_urls,
)
from mace.data import AtomicData, config_from_atoms
from mace.modules.models import MACE, ScaleShiftMACE
from mace.modules.utils import get_edge_vectors_and_lengths
from mace.tools import AtomicNumberTable
from mace.tools.scripts_utils import extract_config_mace_model
from mace.tools.torch_geometric.batch import Batch
from mace.tools.torch_tools import default_dtype
from torch import Tensor, nn

from e3sparse.potentials.backends import (
    Backend,
    Features,
    Potential,
    Prediction,
    chosen_head,
    pickle_mentions,
)
from e3sparse.layers.clebsch_gordan import as_read
from e3sparse.errors import ConfigError, nearest
from e3sparse.layers.layouts import Species
from e3sparse.potentials.converted import Converted
from e3sparse_mace.acceleration import Acceleration
from e3sparse_mace.cueq import cuequivariance
from e3sparse_mace.description import describe
from e3sparse_mace.inputs import EMBEDDING, FrameInputs, embedding_energies
from e3sparse_mace.precision import recompute_coupling
from e3sparse_mace.contractions import PRODUCTS
from e3sparse_mace.model_layers import (
    fed_species,
    radial_layers,
    species_candidates,
    target_aliases,
)

__all__ = ["PRODUCTS", "MACEBackend", "MACEPotential", "mace"]

_OFF = {f"{size}-off": size for size in mace_off_urls}
_OMOL = {"extra_large-omol": "extra_large"}
_MP = tuple(mace_mp_urls)
_POLAR = tuple(polar_model_urls)


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
    head: str

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
        self.head = chosen_head(name, self.heads, head) or self.heads[0]
        self.module = module.to(device=device, dtype=dtype)
        self._overwritten = recompute_coupling(self.module)
        self.cutoff = float(module.r_max)
        self.framework = {"mace-torch": version("mace-torch")}
        self.parity = not getattr(module, "use_so3", False)
        # What the model returns as node features: those of every layer side by side.
        layers = [str(product.linear.irreps_out) for product in module.products]
        self.node_irreps = "+".join(layers)
        numbers = tuple(int(z) for z in module.atomic_numbers)
        self._table = AtomicNumberTable(list(numbers))
        self._inputs = FrameInputs(name, module)
        self.frame_inputs = self._inputs.names
        self._acceleration = Acceleration(self.module)
        self.species = Species(numbers, self._species_axes(numbers))
        self.fold_into = radial_layers(module)
        self.aliases = target_aliases(module, self.species.axes)

    def _species_axes(self, numbers: Sequence[int]) -> dict[str, int]:
        pair = Atoms([numbers[0], numbers[-1]], [[0.0, 0.0, 0.0], [0.0, 0.0, self.cutoff / 2]])
        self._inputs.fill(pair)
        batch = self.collate([self.graph(pair)]).to(self.device)
        candidates = species_candidates(self.module)
        with (
            torch.no_grad(),
            default_dtype(self.dtype),
            fed_species(self.module, candidates, batch.node_attrs) as fed,
        ):
            self.module(_inputs(batch), compute_force=False)
        return {path: axis for path, axis in candidates.items() if path in fed}

    def describe(self) -> dict[str, str]:
        return describe(self.module)

    def graph(self, atoms: Atoms) -> AtomicData:
        with default_dtype(self.dtype):
            config = config_from_atoms(atoms, self._inputs.keys(atoms), head_name=self.head)
            graph = AtomicData.from_config(
                config, z_table=self._table, cutoff=self.cutoff, heads=self.heads
            )
            # MACE puts long vectors in the place of those along which a structure is not periodic,
            # and divides its stress by the volume that results.
            graph.cell_volume = torch.tensor([atoms.cell.volume], dtype=self.dtype)
            return graph

    def collate(self, graphs: Sequence[AtomicData]) -> Any:
        return Batch.from_data_list(list(graphs))

    def forward(self, batch: Any) -> Prediction:
        data = _inputs(batch)
        positions = data["positions"]
        cell, volume = data["cell"].view(-1, 3, 3), data["cell_volume"].view(-1, 1, 1)
        periodic = bool((volume > 0).any())
        out = self._evaluate(self.evaluated(), data, compute_stress=periodic)
        energy = self._total_energy(data, out)
        stress = _no_stress(out["forces"], len(energy))
        if periodic:
            of_another = torch.linalg.det(cell).abs().view(-1, 1, 1)
            of_own = out["stress"] * torch.where(
                of_another == volume, torch.ones_like(volume), of_another / volume.clamp(min=1e-3)
            )
            stress = torch.where(volume > 0, of_own, stress)
        return Prediction(
            energy=energy,
            forces=out["forces"],
            stress=stress,
            geometry=(positions, data["batch"]),
        )

    def features(self, batch: Any) -> Features:
        data = _inputs(batch)
        positions = data["positions"]
        # The features of the converted form are in another order.
        out = self._evaluate(self.module, data, compute_force=False, compute_displacement=True)
        vectors, _ = get_edge_vectors_and_lengths(
            positions=data["positions"], edge_index=data["edge_index"], shifts=data["shifts"]
        )
        volume = data["cell_volume"].view(-1, 1, 1)

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
            energy=self._total_energy(data, out),
            nodes=out["node_feats"],
            edge_index=data["edge_index"],
            edge_vectors=vectors,
            frame=data["batch"],
            leaves=(positions, out["displacement"]),
            predict=predict,
        )

    def forms(self) -> Mapping[str, Callable[[], Converted]]:
        return {"cueq": lambda: cuequivariance(self.module)}

    def _evaluate(self, model: Any, data: dict[str, Any], **options: bool) -> dict[str, Tensor]:
        seen = model
        faster: AbstractContextManager[None] = nullcontext()
        if isinstance(model, Converted):
            seen = model.form
        elif self.accelerate:
            if self._acceleration.model is not model:
                self._acceleration = Acceleration(model)
            faster = self._acceleration(data["node_attrs"])
        with default_dtype(self.dtype), faster, embedding_energies(seen) as embedding:
            out: dict[str, Tensor] = model(data, training=self.module.training, **options)
        return out | embedding

    def _total_energy(self, data: Mapping[str, Tensor], out: Mapping[str, Tensor]) -> Tensor:
        # Core electrons make energies that float32 knows to 1e-3 eV: MACE sums nodes in float64.
        frames = int(data["ptr"].numel()) - 1
        if type(self.module) not in (MACE, ScaleShiftMACE):
            return out["energy"].double()  # others have energies that belong to no node
        energy = data["positions"].new_zeros(frames, dtype=torch.float64)
        energy = energy.index_add(0, data["batch"], out["node_energy"].double())
        if EMBEDDING in out:
            heads = data["head"][data["batch"]]
            energies = out[EMBEDDING].gather(1, heads[:, None])[:, 0]
            energy = energy.index_add(0, data["batch"], energies.double())
        return energy

    def write(self, path: Path) -> None:
        with as_read(self.module, self._overwritten):
            torch.save(self.module, path)

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
        # MACE does not tell whether the last layer has vectors too.
        last = self.module.products[-1].linear.irreps_out
        config["keep_last_layer_irreps"] = last == self.module.products[0].linear.irreps_out
        with torch.random.fork_rng(devices=[]), default_dtype(self.dtype):
            torch.manual_seed(seed)
            drawn = dict(type(self.module)(**config).named_parameters())
        with torch.no_grad():
            for name, parameter in self.module.named_parameters():
                parameter.copy_(drawn[name])


class MACEBackend(Backend):
    """Models of the `mace` package."""

    name: ClassVar[str] = "mace"
    layers: ClassVar[Sequence[str] | None] = ("mace.modules.",)
    pickled: ClassVar[Sequence[str]] = (
        "mace.modules.wrapper_ops.CuEquivarianceConfig",
        "mace.modules.wrapper_ops.OEQConfig",
    )

    def model_names(self) -> Sequence[str]:
        return (*_OFF, *_OMOL, *_MP, *_POLAR)

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
            if name in _OMOL:
                omol: nn.Module = mace_omol(_OMOL[name], device="cpu", return_raw_model=True)
                return omol
            polar = name in _POLAR
            path = (download_mace_polar_checkpoint if polar else download_mace_mp_checkpoint)(name)
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


def _no_stress(forces: Tensor, frames: int) -> Tensor:
    return forces.new_zeros(frames, 3, 3)
