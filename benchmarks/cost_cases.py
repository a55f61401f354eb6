"""The models whose cost is measured by costs.py, and what is trained of each."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec

import numpy as np
import torch
from ase.build import bulk, molecule
from ase.data import chemical_symbols

from e3sparse.frames.reading import Frame
from e3sparse.potentials.backends import load_potential

FULL = "full"
CUEQ = "full, cuEquivariance"
MOLECULES = ("CH3CH2OH", "C6H6", "CH3CONH2", "C5H5N")
OAM_L_PARAMETERS = 9_605_777
OAM_L_TYPES = [chemical_symbols[z] for z in (*range(1, 84), *range(89, 95))]


@dataclass(frozen=True)
class Case:
    """What is trained, and how; without targets, what the framework itself trains.

    `accelerated`: whether the backend evaluates in its faster way, as no framework does itself.
    `cueq`: whether the framework converts its model to cuEquivariance.
    """

    targets: str | None = None
    method: str | None = None
    lora: int | None = None
    accelerated: bool = True
    cueq: bool = False

    def possible(self, device):
        """Whether what it needs is there."""
        return not self.cueq or (device != "cpu" and find_spec("cuequivariance_torch") is not None)

    def patch(self, potential):
        """Patch a potential; returns the adapter, if it is by us that it is trained."""
        if self.targets is None:
            return None
        return potential.patch(self.targets, self.method)


@dataclass(frozen=True)
class Setup:
    """A model, its cases and the batch that they all train on."""

    about: str
    cases: dict[str, Case]
    frames: Callable[[int], list[Frame]]  # from how often the batch is repeated, rattled anew
    make: Callable  # (case, device) to (potential, adapter)


def rock_salt(count, repeat, copies):
    """Return rattled rock salt with random labels: only their shapes matter here."""
    frames = []
    rng = np.random.default_rng(0)
    for seed in range(count * copies):
        atoms = bulk("NaCl", "rocksalt", a=5.64, cubic=True) * (repeat, repeat, repeat)
        atoms.rattle(0.1, seed=seed)
        frames.append(Frame(atoms, -3.0 * len(atoms), rng.normal(size=(len(atoms), 3)), None))
    return frames


def molecules(copies):
    """Return rattled molecules with random labels: only their shapes matter here."""
    rng = np.random.default_rng(0)
    frames = []
    for seed, name in enumerate(MOLECULES * copies):
        atoms = molecule(name)
        atoms.rattle(0.05, seed=seed)
        frames.append(Frame(atoms, -3.0 * len(atoms), rng.normal(size=(len(atoms), 3)), None))
    return frames


def named(model, case, device):
    """Return a SevenNet that is loaded by name, and its adapter."""
    import sevenn.util

    potential = load_potential(model, device=device)
    potential.accelerate = case.accelerated
    if case.cueq:
        checkpoint = sevenn.util.load_checkpoint(model)
        potential.module = checkpoint.build_model(enable_cueq=True).to(device)
        potential.module.set_is_batch_data(True)
        # SevenNet falls back to e3nn with a warning.
        assert any("cuequivariance" in type(m).__module__ for m in potential.module.modules())
    return potential, case.patch(potential)


def mace(architecture, case, device):
    """Return a MACE with random weights, float64, and its adapter."""
    import mace  # noqa: F401 -- before e3nn
    from e3sparse_mace.backend import MACEPotential
    from mace.cli import convert_e3nn_cueq
    from mace.modules.lora import inject_LoRAs
    from mace_architectures import random_model

    module = random_model(architecture, torch.float64)
    if case.cueq:
        module = convert_e3nn_cueq.run(module.to(device), device=device)
    if case.lora is not None:
        inject_LoRAs(module, rank=case.lora, alpha=1)
    potential = MACEPotential(architecture, module, device=device, dtype=None, head=None)
    potential.accelerate = case.accelerated
    return potential, case.patch(potential)


def nequip_oam_l(case, device):
    """Return a NequIP with random weights in the architecture of OAM-L, and its adapter."""
    from e3sparse_nequip import NequIPPotential
    from e3sparse_nequip.options import nequip_state
    from nequip.model.nequip_models import PresetNequIPGNNModel

    with nequip_state():
        module = PresetNequIPGNNModel(
            preset="L",
            seed=0,
            model_dtype="float32",
            r_max=6.0,
            type_names=OAM_L_TYPES,
            type_embed_num_features=48,
            bessel_trainable=True,
            avg_num_neighbors=40.0,
            per_type_energy_scales=1.0,
            per_type_energy_shifts=0.0,
            per_type_energy_shifts_trainable=True,
        )
    assert sum(p.numel() for p in module.parameters()) == OAM_L_PARAMETERS
    potential = NequIPPotential("NequIP-OAM-L", module, device=device)
    potential.accelerate = case.accelerated
    return potential, case.patch(potential)


SEVENNET = {
    FULL: Case(accelerated=False),
    "linear, not accelerated": Case("linear", "budget", accelerated=False),
    **{f"linear, {m}": Case("linear", m) for m in ("dense", "low_rank", "soft_threshold")},
    "linear, budget": Case("linear", "budget"),
    "all, budget": Case("all", "budget"),
    "full, accelerated": Case(),
    CUEQ: Case(accelerated=False, cueq=True),
}
MACE = {
    FULL: Case(accelerated=False),
    "MACE's lora, rank 4": Case(lora=4, accelerated=False),
    "MACE's lora, rank 16": Case(lora=16, accelerated=False),
    "linear, not accelerated": Case("linear", "budget", accelerated=False),
    "linear, soft_threshold": Case("linear", "soft_threshold"),
    **{f"{t}, budget": Case(t, "budget") for t in ("linear", "all", "last", "products")},
    "everything, budget": Case("everything", "budget"),
    "full, accelerated": Case(),
    CUEQ: Case(accelerated=False, cueq=True),
}
NEQUIP = {
    FULL: Case(accelerated=False),
    "linear, not accelerated": Case("linear", "budget", accelerated=False),
    "linear, budget": Case("linear", "budget"),
    "linear, soft_threshold": Case("linear", "soft_threshold"),
    "fctp, budget": Case("fctp", "budget"),
    "all, budget": Case("all", "budget"),
    "all, soft_threshold": Case("all", "soft_threshold"),
    "full, accelerated": Case(),
}
SETUPS = {
    "7net-0": Setup(
        "842,623 parameters, float32, rock salt", SEVENNET, partial(rock_salt, 1, 2),
        partial(named, "7net-0"),
    ),
    **{
        f"mace-{a}": Setup(
            f"MACE's {a}, random weights, float64, molecules", MACE, molecules, partial(mace, a)
        )
        for a in ("off23-small", "off23-medium", "mp-0b3-medium")
    },
    "nequip-oam-l": Setup(
        "NequIP-OAM-L's architecture, 9,605,777 parameters, random weights, float32, rock salt",
        NEQUIP, partial(rock_salt, 2, 1), nequip_oam_l,
    ),
}  # fmt: skip
