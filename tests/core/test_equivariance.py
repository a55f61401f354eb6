"""Every layer kind, connection mode and method, in every state of an adapter, under all of O(3)."""

import functools

import pytest
import torch
from e3nn import nn as enn
from e3nn import o3
from networks import DTYPES, SETTINGS, bits, clone, randomize
from tolerances import rounding
from torch import nn

import e3sparse
from e3sparse.layers.clebsch_gordan import recompute_wigner_3j
from e3sparse.symmetry import assert_equivariance, check_equivariance
from e3sparse.symmetry.layers import CONNECTIONS

METHODS = ("budget", "soft_threshold", "low_rank", "dense", "fixed_mask")
GATE = 20  # cases a state
OPERAND = "3x0e+3x1o"
PATHS = [(0, 0, "0e"), (1, 1, "1e"), (1, 0, "1o"), (1, 1, "2e")]


def tensor_product(mode, **options):
    multiplicity = CONNECTIONS[mode](3, 3, 2)
    outputs = "+".join(f"{multiplicity}x{ir}" for *_, ir in PATHS)
    instructions = [(i, j, k, mode, True) for k, (i, j, _) in enumerate(PATHS)]
    return o3.TensorProduct(OPERAND, OPERAND, outputs, instructions, **options)


class Message(nn.Module):
    """A tensor product whose weights a radial network makes."""

    def __init__(self, mode):
        super().__init__()
        self.conv = tensor_product(mode, shared_weights=False, internal_weights=False)
        self.radial = enn.FullyConnectedNet([4, 6, self.conv.weight_numel], torch.tanh)
        self.irreps_in = [self.conv.irreps_in1, self.conv.irreps_in2, o3.Irreps("4x0e")]
        self.irreps_out = self.conv.irreps_out

    def forward(self, x, y, r):
        return self.conv(x, y, self.radial(r))


class Layer(nn.Module):
    """One layer as a module of its own, so that its path has a name."""

    def __init__(self, layer, inputs):
        super().__init__()
        self.layer = layer
        self.irreps_in, self.irreps_out = inputs, layer.irreps_out

    def forward(self, *x):
        return self.layer(*x)


def linear():
    layer = o3.Linear("3x0e+2x0o+2x1o+2x1e+1x2e", "2x0e+2x0o+3x1o+2x1e+2x2e", biases=False)
    return Layer(layer, [layer.irreps_in])


def fctp():
    layer = o3.FullyConnectedTensorProduct(OPERAND, "2x0e+1x1e", "2x0e+2x1o+2x1e+1x2o")
    return Layer(layer, [layer.irreps_in1, layer.irreps_in2])


def internal(mode):
    layer = tensor_product(mode)
    return Layer(layer, [layer.irreps_in1, layer.irreps_in2])


LAYERS = {
    "linear": (linear, "linear"),
    "fctp": (fctp, "fctp"),
    "mlp": (functools.partial(Message, "uvw"), "mlp"),
    **{f"tp {mode}": (functools.partial(internal, mode), "tp") for mode in CONNECTIONS},
    **{f"external tp {mode}": (functools.partial(Message, mode), "tp") for mode in CONNECTIONS},
}


@functools.cache
def base(name, dtype):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = LAYERS[name][0]().to(dtype)
    recompute_wigner_3j(model)
    return model


@torch.no_grad()
def output(model):
    generator = torch.Generator().manual_seed(5)
    dtype = next(model.parameters()).dtype
    rows = [
        torch.randn(3, ir.dim, generator=generator, dtype=torch.float64) for ir in model.irreps_in
    ]
    return model(*(row.to(dtype) for row in rows))


@pytest.mark.parametrize(
    "examples",
    [pytest.param(GATE, id="20"), pytest.param(1000, id="1000", marks=pytest.mark.nightly)],
)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("layer", LAYERS)
def test_every_state_is_equivariant(layer, method, dtype, examples, tmp_path):
    model = clone(base(layer, dtype))
    known = {"fold_into": {"conv": "radial.layer1"}} if layer.startswith("external") else {}
    settings = SETTINGS.get(method, {}) | known

    def assert_is_equivariant(same_as_before=False):
        # The gate does not draw cases for a state that is another one to the bit or to rounding.
        if examples > GATE or not same_as_before:
            assert_equivariance(model, model.irreps_in, model.irreps_out, examples=examples)

    assert_is_equivariant(same_as_before=True)  # the base: as it is when all is taken back
    unpatched = output(model)
    adapter = randomize(e3sparse.patch(model, LAYERS[layer][1], method, **settings))
    patched = output(model)
    assert (patched - unpatched).abs().max() > 1e-2
    assert_is_equivariant()
    folder = adapter.save_pretrained(tmp_path)
    adapter.merge()
    size = float(patched.abs().max())
    same = {"rtol": 0.0, "atol": rounding("features", dtype) * size}
    torch.testing.assert_close(output(model), patched, **same)
    assert_is_equivariant()
    adapter.restore()
    assert bits(output(model)) == bits(unpatched)
    assert_is_equivariant(same_as_before=method != "dense")
    model = clone(base(layer, dtype))
    e3sparse.load(model, folder, **known)
    torch.testing.assert_close(output(model), patched, **same)
    assert_is_equivariant(same_as_before=True)


@pytest.mark.parametrize("layer", LAYERS)
def test_the_check_sees_one_wrong_component(layer, few_shrinks):
    model = base(layer, torch.float64)

    def broken(*x):
        out = model(*x).clone()
        out[:, -1] += 1e-6 * x[0].square().sum(dim=1)
        return out

    result = check_equivariance(broken, model.irreps_in, model.irreps_out, dtype=torch.float64)
    assert result.status == "failed"
    assert result.error > 1e-9
