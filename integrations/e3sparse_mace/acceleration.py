"""The same model, evaluated faster: what frozen weights and one-hot species allow.

Two layers of MACE contract over all elements of the table, though an atom is one of them: the
symmetric contraction and `skip_tp`. Here atoms are grouped by element. The U·W of a symmetric
contraction (Batatia et al. 2022, Eq. 10) is formed for each element in the batch; of frozen weights
once for all batches. Nothing is changed in the model: the replacements are in place while the
backend's `forward` runs.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import combinations_with_replacement
from math import sqrt
from typing import Any

import torch
from e3nn import o3
from mace.modules.symmetric_contraction import Contraction, SymmetricContraction
from torch import Tensor, nn

from e3sparse.layers.injection import SUBMODULE

Groups = list[tuple[int, Tensor]]
"""Elements in a batch, and the atoms that each has."""


class Acceleration:
    """Faster forwards for the layers of one model.

    Parameters
    ----------
    model
        A `mace.modules.MACE`, patched or not.
    """

    def __init__(self, model: Any) -> None:
        self.model = model
        elements = len(model.atomic_numbers)
        self.contractions = [
            _FoldedContraction(module)
            for module in model.modules()
            if type(module) is SymmetricContraction
            and all(_foldable(c, elements) for c in module.contractions)
        ]
        self.skips = [
            _GroupedSkip(interaction.skip_tp)
            for interaction in getattr(model, "interactions", ())
            if _GroupedSkip.fits(getattr(interaction, "skip_tp", None))
        ]

    @contextmanager
    def __call__(self, node_attrs: Tensor) -> Iterator[None]:
        """Put the faster forwards in place for a batch with these one-hot species (N, elements)."""
        species = node_attrs.argmax(dim=1)
        groups = [(int(z), torch.nonzero(species == z)[:, 0]) for z in species.unique()]
        order = torch.cat([atoms for _, atoms in groups]).argsort()
        layers: list[Any] = [*self.contractions, *self.skips]
        try:
            for layer in layers:
                layer.module.__dict__["forward"] = layer.forward(groups, order)
            yield
        finally:
            for layer in layers:
                layer.module.__dict__.pop("forward", None)


def _foldable(contraction: nn.Module, elements: int) -> bool:
    return (
        isinstance(contraction, Contraction)
        and contraction.correlation <= 3
        and len(contraction.weights_max) == elements
    )


class _FoldedContraction:
    """A symmetric contraction as a polynomial for each element.

    The polynomial of degree 3 in the features x (channels, components) of an atom is
    Σ_{i≤j} x_i x_j (C2_ij + Σ_k C3_ijk x_k) + Σ_i C1_i x_i: half of the products of the nested
    contractions, because C is symmetric.
    """

    def __init__(self, module: Any) -> None:
        self.module = module
        self.known: dict[int, list[list[Tensor]]] = {}
        self.made_of: list[tuple[int, int]] = []

    def forward(self, groups: Groups, order: Tensor) -> Any:
        """Return a forward for the atoms of these groups, which `order` puts back in order."""

        def contract(x: Tensor, y: Tensor) -> Tensor:
            polynomials = self._polynomials([index for index, _ in groups])
            grouped = [
                _evaluate(polynomial, x[atoms])
                for polynomial, (_, atoms) in zip(polynomials, groups, strict=True)
            ]
            return torch.cat(grouped)[order]

        return contract

    def _polynomials(self, elements: list[int]) -> list[list[list[Tensor]]]:
        """Return C3, C2 and C1 of each contraction, for each element."""
        module = self.module
        weights = list(module.parameters())
        patched = any(SUBMODULE in c._modules for c in module.contractions)
        if patched or (module.training and any(w.requires_grad for w in weights)):
            return [[_folded(c, index) for c in module.contractions] for index in elements]
        # An update in place, such as a merge, raises the version.
        made_of = [(w.data_ptr(), w._version) for w in weights]
        if made_of != self.made_of:
            self.known.clear()
            self.made_of = made_of
        with torch.no_grad():
            for index in elements:
                if index not in self.known:
                    self.known[index] = [_folded(c, index) for c in module.contractions]
        return [self.known[index] for index in elements]


def _evaluate(polynomial: list[list[Tensor]], x: Tensor) -> Tensor:
    """Return the outputs (n, channels·Σ(2l+1)) of atoms with features (n, channels, components)."""
    features = x.permute(1, 2, 0)  # (channels, components, n)
    channels, components, n = features.shape
    i, j = _pairs(components, x.device)
    pairs = features[:, i] * features[:, j]  # (channels, pairs, n)
    outputs = []
    for cubic, square, linear in polynomial:
        m = linear.shape[1]  # 2l+1
        inner = torch.bmm(cubic, features).reshape(channels, m, -1, n)
        inner = inner + square[..., None]
        total = (inner * pairs[:, None]).sum(dim=2)  # (channels, m, n)
        total = total + torch.bmm(linear, features)
        outputs.append(total.permute(2, 0, 1).reshape(n, -1))
    return torch.cat(outputs, dim=1)


def _pairs(components: int, device: torch.device) -> tuple[Tensor, Tensor]:
    drawn = list(combinations_with_replacement(range(components), 2))
    i, j = torch.tensor(drawn, device=device).T
    return i, j


def _folded(contraction: Any, index: int) -> list[Tensor]:
    """Return C3 (c, m·pairs, i), C2 (c, m, pairs) and C1 (c, m, i) of one element."""
    weights = [contraction.weights_max, *contraction.weights]
    u = contraction.U_matrix_1
    components = u.shape[-2]
    m = u.shape[0] if u.ndim == 3 else 1
    channels = weights[0].shape[-1]
    i, j = _pairs(components, u.device)
    made = {}
    for order in (3, 2, 1):
        made[order] = u.new_zeros(channels, m, *[components] * order)
    for order, weight in zip(range(contraction.correlation, 0, -1), weights, strict=True):
        u = getattr(contraction, f"U_matrix_{order}")
        u = u.reshape(m, *[components] * order, -1)
        made[order] = torch.tensordot(weight[index].T, u, dims=([1], [u.ndim - 1]))
    cubic, square = made[3], made[2]
    # x_i x_j stands for both orders of i and j.
    both = (i != j).to(square)
    square = square[:, :, i, j] + both * square[:, :, j, i]
    cubic = cubic[:, :, i, j] + both[:, None] * cubic[:, :, j, i]
    return [cubic.reshape(channels, -1, components), square, made[1]]


class _GroupedSkip:
    """A fully connected tensor product with one-hot species: a linear layer for each element."""

    def __init__(self, module: Any) -> None:
        self.module = module
        self.paths = []
        start = 0
        for ins in module.instructions:
            source, target = module.irreps_in1[ins.i_in1], module.irreps_out[ins.i_out]
            size = source.mul * ins.path_shape[1] * target.mul
            self.paths.append((ins, start, size))
            start += size

    @staticmethod
    def fits(module: Any) -> bool:
        """Whether the module is e3nn's, with scalars only as its second operand."""
        if not isinstance(module, o3.FullyConnectedTensorProduct) or "forward" in vars(module):
            return False
        second = module.irreps_in2
        return len(second) == 1 and second[0].ir == o3.Irrep("0e") and module.internal_weights

    def forward(self, groups: Groups, order: Tensor) -> Any:
        """Return a forward for the atoms of these groups, which `order` puts back in order."""
        layer = self.module

        def product(x: Tensor, y: Tensor, weight: Tensor | None = None) -> Tensor:
            flat = layer.weight if weight is None else weight
            blocks = [
                flat[start : start + size].reshape(ins.path_shape)
                for ins, start, size in self.paths
            ]
            grouped = [
                self._element(x[atoms], [block[:, index] for block in blocks])
                for index, atoms in groups
            ]
            return torch.cat(grouped)[order]

        return product

    def _element(self, x: Tensor, matrices: list[Tensor]) -> Tensor:
        layer = self.module
        parts: dict[int, Tensor] = {}
        for (ins, *_), matrix in zip(self.paths, matrices, strict=True):
            source = layer.irreps_in1[ins.i_in1]
            features = x[:, layer.irreps_in1.slices()[ins.i_in1]]
            features = features.reshape(len(x), source.mul, source.ir.dim)
            scaled = ins.path_weight / sqrt(source.ir.dim) * matrix  # (mul_in, mul_out)
            out = torch.einsum("nui,uw->nwi", features, scaled).reshape(len(x), -1)
            parts[ins.i_out] = out if ins.i_out not in parts else parts[ins.i_out] + out
        return torch.cat(
            [
                parts[k] if k in parts else x.new_zeros(len(x), mul_ir.dim)
                for k, mul_ir in enumerate(layer.irreps_out)
            ],
            dim=1,
        )
