"""Equivariance of any module from irreps to irreps."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor, nn

from e3sparse.layers.clebsch_gordan import recompute_wigner_3j
from e3sparse.symmetry.result import Result, asserting
from e3sparse.symmetry.rotations import Orthogonal, rotations
from e3sparse.symmetry.search import Errors, Found, search
from e3sparse.symmetry.signatures import refuse_what_cannot_be_called, signature_of
from e3sparse.symmetry.tolerances import TOLERANCES, deviation

NAME = "equivariance"
CLAIM = "f(D_in(Q) x) = D_out(Q) f(x) for Q in O(3)"


@st.composite
def inputs(draw: st.DrawFn, dims: Sequence[int]) -> list[list[float]]:
    """Draw a row for each input: three in four dense, the others with a few ones.

    Dense rows are normally distributed. What fails for a row with a few ones shrinks to one.
    """
    kind, seed = draw(st.integers(0, 3)), draw(st.integers(0, 2**20))
    few = [
        draw(st.sets(st.integers(0, dim - 1), min_size=1, max_size=3)) if dim else set()
        for dim in dims
    ]
    if kind == 0:
        return [[float(k in ones) for k in range(dim)] for dim, ones in zip(dims, few, strict=True)]
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(dim, generator=generator, dtype=torch.float64).tolist() for dim in dims]


def check_equivariance(
    module: Callable[..., Tensor],
    irreps_in: Any = None,
    irreps_out: Any = None,
    *,
    dtype: torch.dtype | None = None,
    examples: int = 20,
    seed: int = 0,
) -> Result:
    """Test a module, or any function of tensors, under all of O(3).

    Parameters
    ----------
    module
        Called with one tensor (1, dim) for each of `irreps_in`, returns (1, dim of `irreps_out`).
    irreps_in
        Irreps, or a list of them for several inputs; read off an e3nn layer if left out.
    irreps_out
        Irreps of the output; read off an e3nn layer if left out.
    dtype
        Of the inputs; that of the module's parameters if left out.
    examples
        How many elements of O(3) are drawn, each with inputs of its own.
    seed
        The same seed draws the same cases.

    Raises
    ------
    ConfigError
        If irreps are left out and the module does not tell them, or it cannot be called with
        inputs of these irreps alone.
    """
    from e3nn import o3

    function: Callable[..., Tensor] = module
    if irreps_in is None or irreps_out is None:
        signature = signature_of(module)
        irreps_in, irreps_out = signature.irreps_in, signature.irreps_out
        function = signature.call
    if not isinstance(irreps_in, list):
        irreps_in = [irreps_in]
    arguments, output = [o3.Irreps(irreps) for irreps in irreps_in], o3.Irreps(irreps_out)
    of_inputs = dtype or _dtype(module)
    dims = [irreps.dim for irreps in arguments]
    refuse_what_cannot_be_called(module, function, dims, output.dim, of_inputs)

    def measure(by: Orthogonal, x: list[list[float]]) -> Errors:
        rows = [torch.tensor([row], dtype=torch.float64) for row in x]
        turned = [row @ by.on_irreps(irreps).T for row, irreps in zip(rows, arguments, strict=True)]
        with torch.no_grad():
            here = function(*(row.to(of_inputs) for row in rows)).double()
            there = function(*(row.to(of_inputs) for row in turned)).double()
        expected = here @ by.on_irreps(output).T
        return {"features": deviation("features", there, expected)}

    def searched() -> Found:
        return search(
            st.fixed_dictionaries({"by": rotations(), "x": inputs(dims)}),
            lambda case: measure(**case),
            lambda quantity: TOLERANCES[quantity].at(of_inputs),
            examples=examples,
            seed=seed,
        )

    found = searched()
    exact = _with_all_digits(module, searched) if found.failed else None
    passed = not found.failed or (exact is not None and not exact.failed)
    return Result(
        NAME,
        CLAIM,
        "passed" if passed else "failed",
        found.quantity,
        found.error,
        TOLERANCES["features"].at(of_inputs),
        found.cases,
        found.case,
        found.reason
        if exact is None or exact.failed
        else "Its Clebsch–Gordan coefficients have the 7 digits of float32, in which it was built. "
        f"With all digits it is off by {exact.error:.1e}: see "
        "e3sparse.layers.clebsch_gordan.recompute_wigner_3j.",
    )


def _with_all_digits(module: object, searched: Callable[[], Found]) -> Found | None:
    """Search again with exact coefficients; None where the module's are exact already."""
    if not isinstance(module, nn.Module) or not (kept := recompute_wigner_3j(module)):
        return None
    try:
        return searched()
    finally:
        buffers = dict(module.named_buffers())
        with torch.no_grad():
            for name, values in kept.items():
                buffers[name].copy_(values)


assert_equivariance = asserting(check_equivariance)


def _dtype(module: object) -> torch.dtype:
    if isinstance(module, nn.Module):
        for tensor in (*module.parameters(), *module.buffers()):
            if tensor.is_floating_point():
                return tensor.dtype
    return torch.get_default_dtype()
