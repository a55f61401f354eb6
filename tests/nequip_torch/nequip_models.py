"""Small NequIP and Allegro models and the commands that make, train and package them."""

from importlib import import_module
from pathlib import Path

import e3sparse_nequip
import torch
import yaml
from e3sparse_nequip.backend import NequIPPotential
from e3sparse_nequip.options import nequip_state
from nequip.model import NequIPGNNModel
from nequip.model.nequip_models import _NEQUIP_GNN_PRESETS, PresetNequIPGNNModel
from nequip.train import NequIPLightningModule
from nequip.utils.versions import get_current_code_versions

HERE = Path(__file__).parent
CONFIGS = Path(e3sparse_nequip.__file__).parent / "configs"
TYPES = ("H", "C", "O", "Na", "Cl")
SHIFTS = {name: -float(k + 1) for k, name in enumerate(TYPES)}
NEQUIP = {
    "_target_": "nequip.model.NequIPGNNModel", "seed": 0, "model_dtype": "float64", "r_max": 4.0,
    "type_names": list(TYPES), "num_layers": 2, "l_max": 2, "parity": True, "num_features": 4,
    "radial_mlp_depth": 1, "radial_mlp_width": 8, "avg_num_neighbors": 4.0,
    "per_type_energy_shifts": SHIFTS, "per_type_energy_scales": 2.0,
}  # fmt: skip
ALLEGRO = {
    "_target_": "allegro.model.AllegroModel", "seed": 0, "model_dtype": "float64", "r_max": 4.0,
    "type_names": list(TYPES), "l_max": 2, "parity": True, "num_layers": 2,
    "num_scalar_features": 8, "num_tensor_features": 4, "avg_num_neighbors": 4.0,
    "per_type_energy_shifts": SHIFTS, "per_type_energy_scales": 2.0,
    "allegro_mlp_hidden_layers_depth": 1,
    "allegro_mlp_hidden_layers_width": 8, "readout_mlp_hidden_layers_depth": 1,
    "readout_mlp_hidden_layers_width": 8, "tp_path_channel_coupling": True,
    "radial_chemical_embed": {
        "_target_": "allegro.nn.TwoBodyBesselScalarEmbed", "num_bessels": 4,
        "bessel_trainable": False, "polynomial_cutoff_p": 6,
    },
    "scalar_embed_mlp_hidden_layers_depth": 1,
    "scalar_embed_mlp_hidden_layers_width": 8,
}  # fmt: skip
MODELS = {"nequip": NEQUIP, "allegro": ALLEGRO}


def built(framework="nequip", **changes):
    """Return a potential of random weights, made in this process."""
    from allegro.model import AllegroModel

    config = {k: v for k, v in {**MODELS[framework], **changes}.items() if k != "_target_"}
    with nequip_state():
        module = {"nequip": NequIPGNNModel, "allegro": AllegroModel}[framework](**config)
    return NequIPPotential(f"a small {framework}", module)


def write_checkpoint(path, model):
    """Write a checkpoint of a model of random weights as nequip-train leaves one.

    Parameters
    ----------
    model
        Its config, with a `_target_`; also of a builder that `built` does not know.
    """
    config = yaml.safe_load((HERE / "pretrain.yaml").read_text())
    module = config["training_module"] | {"model": model}
    module["_target_"] = "nequip.train.NequIPLightningModule"
    settings = {k: v for k, v in module.items() if k != "_target_"} | {
        "num_datasets": {"train": 1, "val": 1, "test": 0},
        "info_dict": {
            "versions": get_current_code_versions(verbose=False),
            "data": config["data"],
            "trainer": config["trainer"],
            "training_module": module,
        },
    }
    with nequip_state():
        # A model is of its module when it is unpickled, which Allegro's has not been yet.
        import_module(model["_target_"].rpartition(".")[0])
        made = NequIPLightningModule(**settings)
    torch.save(
        {
            "state_dict": made.state_dict(),
            "hyper_parameters": settings,
            "pytorch-lightning_version": "2.5.0",
            "epoch": 0,
            "global_step": 0,
            "loops": {},
        },
        path,
    )
    return path


def oam(preset):
    """Return the config of a NequIP-OAM model: NequIP's preset with fewer channels."""
    features = [max(2, n // 16) for n in _NEQUIP_GNN_PRESETS[preset]["num_features"]]
    return {
        "seed": 0, "model_dtype": "float64", "r_max": 4.0, "type_names": list(TYPES),
        "num_features": features, "type_embed_num_features": 4, "radial_mlp_width": 8,
        "avg_num_neighbors": 4.0, "per_type_energy_shifts": SHIFTS, "per_type_energy_scales": 2.0,
        "pair_potential": {
            "_target_": "nequip.nn.pair_potential.ZBL", "units": "metal",
            "chemical_species": list(TYPES),
        },
    }  # fmt: skip


def built_oam(preset):
    """Return a potential of random weights with the layers of a NequIP-OAM model."""
    with nequip_state():
        module = PresetNequIPGNNModel(preset, **oam(preset))
    return NequIPPotential(f"a small NequIP-OAM-{preset}", module)
