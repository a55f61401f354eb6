"""What is attacked: a small network, tiny SevenNet and MACE models, frames, and runs on them."""

import shutil
from pathlib import Path

import ase.io
import torch
from e3nn import nn as enn
from e3nn import o3
from torch import Tensor, nn

import e3sparse
from e3sparse.layers.layouts import Species

SAMPLE = Path(e3sparse.__file__).parent / "sample_data" / "malonaldehyde"
NUMBERS = (1, 6, 8)
SPECIES = Species(NUMBERS, {"self_connection": 1})
FOLD_INTO = {"conv": "radial.layer1"}


class Network(nn.Module):
    """A layer of each kind that a delta goes on, and running statistics."""

    def __init__(self) -> None:
        super().__init__()
        features = "12x0e + 12x1o"
        self.linear = o3.Linear(features, features)
        self.conv = o3.TensorProduct(
            features, "1x0e", features,
            [(0, 0, 0, "uvu", True), (1, 0, 1, "uvu", True)],
            shared_weights=False, internal_weights=False,
        )  # fmt: skip
        self.radial = enn.FullyConnectedNet([4, 6, self.conv.weight_numel], torch.tanh)
        self.self_connection = o3.FullyConnectedTensorProduct(features, "3x0e", "12x0e")
        self.norm = enn.BatchNorm("12x0e")

    def forward(self, x: Tensor, one_hot: Tensor, edges: Tensor) -> Tensor:
        """Return scalars of some nodes."""
        y = self.conv(self.linear(x), torch.ones_like(x[:, :1]), self.radial(edges))
        return self.norm(self.self_connection(y, one_hot))


def network() -> Network:
    """Return the network with the same weights each time."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Network().double().eval()


def save_adapter(folder: Path, seed: int, targets: str = "all", method: str = "dense") -> None:
    """Save an adapter of the network with random values, references and statistics."""
    model = network()
    settings = {"target_sparsity": 0.6} if method == "fixed_mask" else {}
    adapter = e3sparse.patch(
        model, targets, method, species=SPECIES, fold_into=FOLD_INTO, **settings
    )
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in adapter.parameters():
            drawn = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.copy_(drawn)
    adapter.energy_references.update({z: -float(z + seed) for z in NUMBERS})
    adapter.save_pretrained(folder, metrics={"test after": {"forces_mae": 12.5 + seed}})


def tiny_sevennet(path: Path, seed: int = 0) -> Path:
    """Write a SevenNet checkpoint of two layers with random weights."""
    import sevenn
    import sevenn._keys as KEY
    from sevenn import _const
    from sevenn.model_build import build_E3_equivariant_model
    from sevenn.nn.node_embedding import get_type_mapper_from_specie

    species = ["H", "C", "O"]
    config = dict(_const.DEFAULT_E3_EQUIVARIANT_MODEL_CONFIG)
    config |= {
        "version": sevenn.__version__,
        KEY.MODEL_TYPE: "E3_equivariant_model",
        KEY.CUTOFF: 4.0,
        KEY.CHEMICAL_SPECIES: species,
        KEY.NUM_SPECIES: len(species),
        KEY.TYPE_MAP: get_type_mapper_from_specie(species),
        KEY.NODE_FEATURE_MULTIPLICITY: 4,
        KEY.LMAX: 1,
        KEY.NUM_CONVOLUTION: 2,
        KEY.CONVOLUTION_WEIGHT_NN_HIDDEN_NEURONS: [8],
        KEY.SHIFT: [-1.0] * len(species),
        KEY.SCALE: [1.0] * len(species),
        KEY.CONV_DENOMINATOR: [4.0, 4.0],
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = build_E3_equivariant_model(config)
    torch.save({"config": config, "model_state_dict": model.state_dict()}, path)
    return path


def tiny_mace(path: Path, seed: int = 0) -> Path:
    """Write a MACE model with random weights."""
    from mace_architectures import random_model

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = random_model(
            "off23-medium",
            torch.float64,
            hidden_irreps=o3.Irreps("4x0e + 4x1o"),
            atomic_numbers=list(NUMBERS),
            max_ell=2,
            radial_MLP=[8],
            MLP_irreps=o3.Irreps("4x0e"),
            r_max=4.0,
            num_bessel=4,
            avg_num_neighbors=1.0,
            atomic_inter_scale=[1.0],
            atomic_inter_shift=[0.0],
            atomic_energies=[[-1.0, -2.0, -3.0]],
        )
    torch.save(model, path)
    return path


class Project:
    """A folder with data and a base model, and the command that trains on them.

    Parameters
    ----------
    folder
        Made if it does not exist.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        for name, count in {"train": 8, "valid": 4, "test": 4}.items():
            frames = ase.io.read(SAMPLE / f"{name}.xyz", index=f":{count}")
            ase.io.write(folder / f"{name}.xyz", frames)
        self.model = tiny_sevennet(folder / "base.pth")

    def arguments(self, out: Path, *, steps: int = 6, **flags: object) -> list[str]:
        """Return the arguments of a fine-tuning of two steps an epoch."""
        given: dict[str, object] = {
            "model": self.model, "train": self.folder / "train.xyz",
            "valid": self.folder / "valid.xyz", "test": self.folder / "test.xyz", "out": out,
            "max-steps": steps, "batch-size": 4, "device": "cpu", "target-sparsity": 0.5,
        } | flags  # fmt: skip
        said = [part for name, x in given.items() if x is not None for part in (f"--{name}", x)]
        return ["finetune", "--no-check-units", *map(str, said)]


def numbers_of(run: Path) -> dict[str, object]:
    """Return all numbers that a finished run left: weights, errors, the log."""
    import json

    import pandas as pd
    import safetensors.torch

    found: dict[str, object] = {
        "results": json.loads((run / "results.json").read_text()),
        "metrics": pd.read_csv(run / "metrics.csv").round(15).to_csv(index=False),
    }
    tensors = safetensors.torch.load_file(run / "adapter" / "adapter_model.safetensors")
    found |= {name: bits(tensor) for name, tensor in tensors.items()}
    saved = torch.load(run / "model.pth", weights_only=False)["model_state_dict"]
    return found | {f"model {name}": bits(tensor) for name, tensor in saved.items()}


def bits(tensor: Tensor) -> bytes:
    """Return the bytes of a tensor."""
    return tensor.detach().cpu().contiguous().numpy().tobytes()


def restored(pristine: Path, folder: Path) -> Path:
    """Put a copy of a folder in the place of what was left of another copy."""
    if folder.is_symlink() or folder.is_file():
        folder.unlink()
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(pristine, folder, symlinks=True)
    return folder
