"""Tensor products of graded features."""

import torch
from e3nn import o3
from torch import Tensor, nn

from e3sparse.magnetism.irreps import EVEN, ODD, PARITIES, Graded, Irrep, product


def _key(t1: int, t2: int) -> str:
    names = {EVEN: "even", ODD: "odd"}
    return f"{names[t1]}_{names[t2]}"


def time_parity(t1: int, t2: int) -> int:
    """Return the stream that a product of two streams belongs to, by the selection rule."""
    return product(Irrep(0, 1, t1), Irrep(0, 1, t2))[0].t


class GradedTensorProduct(nn.Module):
    """All products of two graded features, each with a weight of its own.

    One `FullyConnectedTensorProduct` for each pair of streams that has something to give.
    """

    def __init__(
        self, one: Graded[o3.Irreps], two: Graded[o3.Irreps], out: Graded[o3.Irreps]
    ) -> None:
        super().__init__()
        self.irreps_out = out
        self.products = nn.ModuleDict()
        for t1 in PARITIES:
            for t2 in PARITIES:
                made = out[time_parity(t1, t2)]
                possible = _contains_any(one[t1], two[t2], made)
                if possible:
                    self.products[_key(t1, t2)] = o3.FullyConnectedTensorProduct(
                        one[t1], two[t2], made
                    )

    def forward(self, one: Graded[Tensor], two: Graded[Tensor]) -> Graded[Tensor]:
        """Multiply features of N atoms."""
        found: dict[int, list[Tensor]] = {EVEN: [], ODD: []}
        for t1 in PARITIES:
            for t2 in PARITIES:
                if _key(t1, t2) in self.products:
                    values = self.products[_key(t1, t2)](one[t1], two[t2])
                    found[time_parity(t1, t2)].append(values)
        return Graded(*(_sum(found[t], one.even, self.irreps_out[t].dim) for t in PARITIES))


class GradedConvolution(nn.Module):
    """Products of features with harmonics of edge vectors, which are even in time.

    Channels are not mixed; each product has a weight per channel and edge, given from outside.
    """

    def __init__(self, features: Graded[o3.Irreps], harmonics: o3.Irreps, channels: int) -> None:
        super().__init__()
        self.irreps_out = features
        self.products = nn.ModuleList()
        self.sizes = []
        for t in PARITIES:
            instructions = [
                (i, j, k, "uvu", True)
                for i, (_, one) in enumerate(features[t])
                for j, (_, two) in enumerate(harmonics)
                for k, (_, out) in enumerate(features[t])
                if out in one * two
            ]
            convolution = o3.TensorProduct(
                features[t],
                harmonics,
                features[t],
                instructions,
                shared_weights=False,
                internal_weights=False,
            )
            self.products.append(convolution)
            self.sizes.append(convolution.weight_numel)
        self.weight_numel: int = sum(self.sizes)

    def forward(
        self, features: Graded[Tensor], harmonics: Tensor, weights: Tensor
    ) -> Graded[Tensor]:
        """Multiply features (R, dim) and harmonics (R, dim) of R edges with weights (R, W)."""
        parts = weights.split(self.sizes, dim=1)
        return Graded(
            *(
                convolution(features[t], harmonics, part)
                for t, convolution, part in zip(PARITIES, self.products, parts, strict=True)
            )
        )


class GradedDot(nn.Module):
    """Invariants, even in time, of two features of the same irreps: one per channel and irrep."""

    def __init__(self, irreps: Graded[o3.Irreps]) -> None:
        super().__init__()
        self.irreps = irreps
        self.dim: int = sum(irreps[t].num_irreps for t in PARITIES)

    def forward(self, one: Graded[Tensor], two: Graded[Tensor]) -> Tensor:
        """Return (N, dim) of two features of N atoms or edges."""
        found = []
        for t in PARITIES:
            values = one[t] * two[t]
            for (mul, ir), part in zip(self.irreps[t], self.irreps[t].slices(), strict=True):
                block = values[:, part].reshape(-1, mul, ir.dim)
                found.append(block.sum(dim=2) / ir.dim**0.5)
        return torch.cat(found, dim=1)


def _contains_any(one: o3.Irreps, two: o3.Irreps, out: o3.Irreps) -> bool:
    wanted = {ir for _, ir in out}
    return any(ir in wanted for _, a in one for _, b in two for ir in a * b)


def _sum(parts: list[Tensor], like: Tensor, dim: int) -> Tensor:
    if not parts:
        return like.new_zeros(len(like), dim)
    return torch.stack(parts).sum(dim=0).div(len(parts) ** 0.5)
