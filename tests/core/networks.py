"""A small network with a layer of every kind, and what the tests do with it."""

import copy
import functools
from itertools import permutations

import torch
from e3nn import nn as enn
from e3nn import o3
from torch import nn

import e3sparse
from e3sparse.layers.layouts import Species

SPECIES = Species((1, 6, 8), {"embedding": 0, "self_connection": 1})
FOLD_INTO = {"conv": "radial.layer1"}
TARGETS = ("linear", "fctp", "mixed", "conv", "mlp", "all")
DTYPES = (torch.float32, torch.float64)
SETTINGS = {"budget": {"target_sparsity": 0.5}, "fixed_mask": {"target_sparsity": 0.5}}

MODES = (
    (0, 0, "uvw", "3x0e"),
    (1, 0, "uvu", "3x1o"),
    (0, 1, "uvv", "3x1o"),
    (1, 1, "uuw", "5x0e"),
    (0, 0, "uuu", "4x0e"),
    (0, 1, "uvuv", "12x1o"),
    (0, 0, "uvu<v", "6x0e"),
    (1, 1, "u<vw", "2x0e"),
)
"""Operands, connection mode and output of the paths of `Network.mixed`."""


class Network(nn.Module):
    """Energy of a few atoms; every weight of every layer acts on it and on the forces."""

    def __init__(self):
        super().__init__()
        features, edges = "4x0e+4x1o", "1x0e+1x1o"
        uvu = [(0, 0, 0, "uvu", True), (0, 1, 1, "uvu", True)]
        self.embedding = o3.Linear("3x0e", "4x0e")
        self.conv = o3.TensorProduct(
            "4x0e", edges, features, uvu, shared_weights=False, internal_weights=False
        )
        self.radial = enn.FullyConnectedNet([4, 6, self.conv.weight_numel], torch.tanh)
        self.self_connection = o3.FullyConnectedTensorProduct(features, "3x0e", "4x0e+3x1o")
        self.mixed = o3.TensorProduct(
            "4x0e+3x1o",
            "4x0e+3x1o",
            "+".join(out for *_, out in MODES),
            [(i, j, k, mode, True) for k, (i, j, mode, _) in enumerate(MODES)],
        )
        self.readout = o3.Linear(self.mixed.irreps_out, "2x0e+2x1o", biases=True)
        self.readout.bias.requires_grad_(False)
        self.embedding.weight.requires_grad_(False)

    def features(self, positions, species):
        one_hot = torch.eye(3).to(positions)[species]
        i, j = torch.tensor(list(permutations(range(len(species)), 2))).T
        vectors = positions[j] - positions[i]
        edges = o3.spherical_harmonics([0, 1], vectors, True, "component")
        centres = torch.arange(4.0).to(positions)
        weights = self.radial(torch.exp(-((vectors.norm(dim=1, keepdim=True) - centres) ** 2)))
        messages = self.conv(self.embedding(one_hot)[j], edges, weights)
        x = messages.new_zeros(len(species), messages.shape[1]).index_add(0, i, messages)
        x = self.self_connection(x, one_hot)
        return self.readout(self.mixed(x, x))

    def forward(self, positions, species):
        return self.features(positions, species).square().sum()


@functools.cache
def _base(dtype):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Network().to(dtype)


def clone(module):
    """Copy all but e3nn's compiled functions, which are slow to copy and hold constants only."""
    twin = type(module).__new__(type(module))
    twin.__dict__.update({k: copy.copy(v) for k, v in vars(module).items()})
    for name, parameter in module._parameters.items():
        if parameter is not None:
            flag = parameter.requires_grad
            twin._parameters[name] = nn.Parameter(parameter.detach().clone(), flag)
    for name, buffer in module._buffers.items():
        twin._buffers[name] = None if buffer is None else buffer.clone()
    for name, child in module._modules.items():
        twin._modules[name] = child if name.startswith("_compiled") else clone(child)
    return twin


def network(dtype=torch.float64):
    """Return a fresh copy of the one base model."""
    return clone(_base(dtype))


def atoms(dtype=torch.float64):
    """Return positions and species indices of four atoms of all three species."""
    generator = torch.Generator().manual_seed(1)
    positions = torch.randn(4, 3, generator=generator, dtype=torch.float64) * 1.5
    return positions.to(dtype), torch.tensor([0, 1, 2, 0])


@torch.no_grad()
def output(model):
    """Return what the model says of the atoms, in its own dtype."""
    return model.features(*atoms(model.readout.bias.dtype))


def forces(model):
    """Return energy and forces, differentiable."""
    positions, species = atoms(model.readout.bias.dtype)
    positions.requires_grad_()
    energy = model(positions, species)
    return energy, -torch.autograd.grad(energy, positions, create_graph=True)[0]


def patch(model, targets="all", method="dense", **kwargs):
    """Patch with the settings under which every method has a delta worth testing."""
    kwargs = {"species": SPECIES, "fold_into": FOLD_INTO, **SETTINGS.get(method, {}), **kwargs}
    return e3sparse.patch(model, targets, method, **kwargs)


@torch.no_grad()
def randomize(adapter, seed=2):
    """Give all trainable parameters large random values, and end the method's schedule."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in adapter.parameters():
        values = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        parameter.copy_(values)
    if adapter.method.scheduled:
        adapter.step(1.0)
    return adapter


def random_adapter(model, targets="all", method="dense", seed=2, **kwargs):
    """Patch, with large random deltas."""
    return randomize(patch(model, targets, method, **kwargs), seed)


def with_deltas(parameters, *values):
    """Return base parameters plus the ΔW of adapters, formed without e3sparse."""
    parameters = dict(parameters)
    for path, delta in ((p, d) for v in values for p, d in v.items() if p not in FOLD_INTO):
        parameters[f"{path}.weight"] = parameters[f"{path}.weight"] + delta
    reweighting = [v["conv"] for v in values if "conv" in v]
    if reweighting:
        folded = parameters["radial.layer1.weight"]
        parameters["radial.layer1.weight"] = folded * (1 + sum(reweighting))
    return parameters


def explicit(*values, base=None):
    """Return an unpatched network whose weights are those of `base` plus these ΔW."""
    model = network() if base is None else clone(base)
    parameters = with_deltas({n: p.detach() for n, p in model.named_parameters()}, *values)
    model.load_state_dict(parameters, strict=False)
    return model


def bits(tensor):
    return tensor.detach().cpu().contiguous().numpy().tobytes()


def weights(model):
    """Return keys and bytes of the state dict, in order."""
    return [(key, value.dtype, bits(value)) for key, value in model.state_dict().items()]


def anatomy(model):
    """Return what the model is besides its weights: classes, keys, flags, attributes."""
    return (
        [(path, type(module)) for path, module in model.named_modules()],
        [(key, value.dtype, value.shape) for key, value in model.state_dict().items()],
        [(name, p.requires_grad) for name, p in model.named_parameters()],
        [sorted(vars(module)) for module in model.modules()],
    )


def snapshot(model):
    """Return all that a patch must leave behind as it was."""
    return weights(model), anatomy(model)


def difference(a, b):
    """Return the largest deviation, relative to the largest value."""
    return float((a - b).detach().abs().max() / b.detach().abs().max())
