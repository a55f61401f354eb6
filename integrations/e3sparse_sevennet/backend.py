"""SevenNet: load by name or checkpoint, evaluate, write a checkpoint that SevenNet loads."""

import copy
import pickle
import uuid
import warnings
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import sevenn
import sevenn._keys as KEY
import sevenn.util
import torch
from ase import Atoms
from sevenn.atom_graph_data import AtomGraphData
from sevenn.checkpoint import SevenNetCheckpoint
from sevenn.model_build import build_E3_equivariant_model
from sevenn.nn.convolution import IrrepsConvolution
from sevenn.nn.scale import ModalWiseRescale, Rescale
from sevenn.nn.self_connection import SelfConnectionIntro
from sevenn.train.dataload import unlabeled_atoms_to_graph
from torch import Tensor
from torch_geometric.loader.dataloader import Collater

from e3sparse.errors import ConfigError, nearest
from e3sparse.layers.clebsch_gordan import as_read, recompute_wigner_3j
from e3sparse.layers.layouts import Species
from e3sparse.potentials.backends import (
    Backend,
    Features,
    Potential,
    Prediction,
    chosen_head,
    pickle_mentions,
    without_element_shifts,
)
from e3sparse.potentials.converted import Converted
from e3sparse_sevennet.description import describe
from e3sparse_sevennet.forms import LIBRARIES, convert
from e3sparse_sevennet.reading import plain_data_first

_NAMES = ("7net-", "sevennet-")
# SevenNet writes xx, yy, zz, xy, yz, zx.
_TO_MATRIX = torch.tensor([[0, 3, 5], [3, 1, 4], [5, 4, 2]])


class SevenNetPotential(Potential):
    """A SevenNet model with e3nn convolutions."""

    suffix = ".pth"

    def __init__(
        self,
        name: str,
        checkpoint: SevenNetCheckpoint,
        *,
        device: str,
        dtype: torch.dtype | None,
        head: str | None,
    ) -> None:
        self.name = name
        self.config = checkpoint.config
        modalities = self.config.get(KEY.MODAL_MAP) or {}
        self.heads = list(modalities) if self.config.get(KEY.USE_MODALITY) else []
        self.head = chosen_head(name, self.heads, head)
        self.module = checkpoint.build_model().to(device=device, dtype=dtype)
        self._overwritten = recompute_wigner_3j(self.module)
        self.module.set_is_batch_data(True)
        self.cutoff = float(self.config[KEY.CUTOFF])
        self.framework = {"sevenn": sevenn.__version__}
        self.parity = bool(self.config[KEY.IS_PARITY])
        gates = [name for name in self.module._modules if name.endswith("equivariant_gate")]
        self._last_layer = gates[-1]
        last: Any = self.module._modules[gates[-1]]
        self.node_irreps = str(last.gate.irreps_out)
        self._type_map: dict[int, int] = self.config[KEY.TYPE_MAP]
        self.species = Species(
            tuple(sorted(self._type_map, key=lambda z: self._type_map[z])), self._species_axes()
        )
        self.fold_into = {
            f"{path}.convolution": f"{path}.weight_nn.layer{len(module.weight_nn) - 1}"
            for path, module in self.module.named_modules()
            if isinstance(module, IrrepsConvolution) and module.weight_nn is not None
        }
        _keep_precision(self.module, self.dtype)

    def describe(self) -> dict[str, str]:
        return describe(self.module, self.config)

    def _species_axes(self) -> dict[str, int]:
        axes = {
            f"{path}.fc_tensor_product": 1
            for path, module in self.module.named_modules()
            if isinstance(module, SelfConnectionIntro)
        }
        # With a modality embedding the rows of the modalities stand in a block behind, which only
        # their number tells from that of the elements.
        modalities = self.config.get(KEY.NUM_MODALITIES) or 0
        if self.config.get(KEY.USE_MODAL_NODE_EMBEDDING) and modalities >= len(self._type_map):
            return axes
        return axes | {"onehot_to_feature_x.linear": 0}

    def graph(self, atoms: Atoms) -> AtomGraphData:
        arrays = unlabeled_atoms_to_graph(atoms, self.cutoff)
        info = arrays.pop(KEY.INFO)
        tensors = {k: sevenn.util.dtype_correct(v, self.dtype) for k, v in arrays.items()}
        data = AtomGraphData(**tensors, **{KEY.INFO: info})
        if self.head is not None:
            data[KEY.DATA_MODALITY] = self.head
        return data

    def collate(self, graphs: Sequence[AtomGraphData]) -> Any:
        return Collater(graphs)(list(graphs))

    def forward(self, batch: Any) -> Prediction:
        data = _inputs(batch)
        with self.accelerated():
            out = self.evaluated()(data)
        virial: Tensor = out[KEY.PRED_STRESS]  # (B, 6)
        return Prediction(
            energy=out[KEY.PRED_TOTAL_ENERGY],
            forces=out[KEY.PRED_FORCE],
            stress=-virial[:, _TO_MATRIX.to(virial.device)],
            geometry=(data[KEY.EDGE_VEC], batch[KEY.BATCH][batch[KEY.EDGE_IDX][0]]),
        )

    def forms(self) -> Mapping[str, Callable[[], Converted]]:
        def form(library: str) -> Converted:
            converted = convert(self.module, self.config, library)
            _keep_precision(converted.form, self.dtype)
            return converted

        return {library: partial(form, library) for library in LIBRARIES}

    def features(self, batch: Any) -> Features:
        model: Any = self.module
        data = model._preprocess(_inputs(batch))
        edges, frame = data[KEY.EDGE_VEC], batch[KEY.BATCH]
        ends: Tensor = batch[KEY.EDGE_IDX]
        with self.accelerated():
            for name, module in model._modules.items():
                if name == "force_output":
                    break
                data = module(data)
                if name == self._last_layer:
                    nodes = data[KEY.NODE_FEATURE]

        def predict(energy: Tensor, gradients: Sequence[Tensor | None]) -> Prediction:
            (by_edge,) = gradients
            by_edge = torch.zeros_like(edges) if by_edge is None else by_edge
            forces = by_edge.new_zeros(len(frame), 3)
            forces = forces.index_add(0, ends[0], by_edge).index_add(0, ends[1], -by_edge)
            # Edges are lengthened by a strain e: r → r + e r, and e is symmetric.
            virial = edges[:, :, None] * by_edge[:, None, :]  # (R, 3, 3)
            strain = by_edge.new_zeros(len(energy), 3, 3).index_add(0, frame[ends[0]], virial)
            volume = batch[KEY.CELL_VOLUME].clamp(min=1e-3).view(-1, 1, 1)
            return Prediction(
                energy=energy,
                forces=forces,
                stress=(strain + strain.transpose(1, 2)) / (2 * volume),
                geometry=(edges, frame[ends[0]]),
            )

        return Features(
            energy=data[KEY.PRED_TOTAL_ENERGY],
            nodes=nodes,
            edge_index=ends,
            edge_vectors=edges,
            frame=frame,
            leaves=(edges,),
            predict=predict,
        )

    def write(self, path: Path) -> None:
        # The weights were brought to this version's order of convolution paths when they were
        # loaded; the version that the file was written with would make SevenNet permute again.
        config = {**self.config, "version": sevenn.__version__}
        with as_read(self.module, self._overwritten):
            found = self.module.state_dict()
            weights = {key: value.cpu().clone() for key, value in found.items()}
        checkpoint = {
            "model_state_dict": weights,
            "config": config,
            "epoch": None,
            "time": datetime.now().strftime("%Y-%m-%d %H:%M"),
            "hash": uuid.uuid4().hex,
        }
        torch.save(checkpoint, path)

    def shift_energies(self, shifts: Mapping[int, float]) -> None:
        if not shifts:
            return
        rescale: Any = self.module._modules["rescale_atomic_energy"]
        if isinstance(rescale, Rescale):
            raise without_element_shifts(self.name)
        with torch.no_grad():
            for number, shift in shifts.items():
                rescale.shift[self._shift_index(rescale, number)] += shift

    def _shift_index(self, rescale: Any, number: int) -> Any:
        element = self._type_map[number]
        if isinstance(rescale, ModalWiseRescale) and rescale.use_modal_wise_shift:
            return self.config[KEY.MODAL_MAP][self.head], element
        return element

    def reinitialize(self, seed: int) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            drawn = build_E3_equivariant_model(copy.deepcopy(self.config)).state_dict()
        # Normalisations that were measured on the training data are not weights.
        kept = ("denominator", "rescale_atomic_energy.shift", "rescale_atomic_energy.scale")
        now = self.module.state_dict()
        self.module.load_state_dict(
            {key: now[key] if key.endswith(kept) else value for key, value in drawn.items()}
        )


class SevenNetBackend(Backend):
    """Models of the `sevenn` package."""

    name: ClassVar[str] = "sevennet"
    layers: ClassVar[Sequence[str] | None] = ("sevenn.nn.",)

    def model_names(self) -> Sequence[str]:
        return tuple(sevenn.util.get_available_pretrained_models())

    def knows(self, name: str) -> bool:
        # sevenn's list lacks other spellings that it accepts, and models that it learns of later.
        return name.lower().startswith(_NAMES)

    def recognises(self, path: Path) -> bool:
        return pickle_mentions(path, b"model_state_dict")

    def load(
        self, model: str, *, device: str, dtype: torch.dtype | None, head: str | None
    ) -> SevenNetPotential:
        try:
            with warnings.catch_warnings(), plain_data_first():
                warnings.simplefilter("ignore")
                checkpoint = self._checkpoint(model)
                if not checkpoint.config or not checkpoint.model_state_dict:
                    raise ConfigError(f"'{model}' is not a SevenNet checkpoint.")
                return SevenNetPotential(model, checkpoint, device=device, dtype=dtype, head=head)
        except (OSError, RuntimeError, EOFError, KeyError, AttributeError, pickle.PickleError) as e:
            if not Path(model).is_file():
                raise ConfigError(
                    f"'{model}' is not shipped with sevenn and could not be downloaded ({e}): "
                    "download it where there is a network and give its path."
                ) from e
            raise ConfigError(f"'{model}' cannot be loaded as a SevenNet checkpoint ({e}).") from e

    def _checkpoint(self, model: str) -> SevenNetCheckpoint:
        try:
            path = model if Path(model).is_file() else sevenn.util.pretrained_name_to_path(model)
        except ValueError as error:
            raise ConfigError(
                f"'{model}' is neither a file nor a model that sevenn {sevenn.__version__} knows."
                f"{nearest(model, self.model_names())} Names: {', '.join(self.model_names())}."
            ) from error
        return sevenn.util.load_checkpoint(path)


def _inputs(batch: Any) -> Any:
    # SevenNet writes its results into the batch and sets requires_grad on the edges in place.
    data = copy.copy(batch)
    data[KEY.EDGE_VEC] = batch[KEY.EDGE_VEC].detach().clone()
    data[KEY.CELL_VOLUME] = batch[KEY.CELL_VOLUME].clone()
    data[KEY.EDGE_VEC].requires_grad_(True)
    return data


def _keep_precision(module: Any, dtype: torch.dtype) -> None:
    """Make one-hot inputs of the model's precision: SevenNet's are float32 in any case."""
    if dtype != torch.float32:
        module._modules["onehot_idx_to_onehot"].register_forward_hook(_cast_onehot)


def _cast_onehot(module: Any, inputs: Any, data: Any) -> Any:
    onehot = data[module.key_output].to(data[KEY.EDGE_VEC].dtype)
    data[module.key_output] = onehot
    if module.key_additional_output is not None:
        data[module.key_additional_output] = onehot
    return data
