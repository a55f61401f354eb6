"""The constants of a MACE model in the precision that it is used in."""

from typing import Any

import torch
from e3nn import o3
from mace.modules.symmetric_contraction import Contraction
from mace.tools.cg import U_matrix_real
from torch import nn

from e3sparse.coupling import recompute_wigner_3j


@torch.no_grad()
def recompute_coupling(model: nn.Module) -> None:
    """Compute Clebsch-Gordan coefficients and the U of symmetric contractions anew.

    Those of a model that was saved in float32 have 7 digits, also after a conversion to float64.
    """
    recompute_wigner_3j(model)
    reduced = bool(getattr(model, "use_reduced_cg", False))
    for product in getattr(model, "products", ()):
        symmetric: Any = product.symmetric_contractions
        for out, contraction in zip(
            getattr(symmetric, "irreps_out", ()),
            getattr(symmetric, "contractions", ()),
            strict=False,
        ):
            if isinstance(contraction, Contraction):
                _recompute_u(contraction, o3.Irreps(str(out.ir)), reduced)


def _recompute_u(contraction: Any, irrep_out: o3.Irreps, reduced: bool) -> None:
    for order in range(1, contraction.correlation + 1):
        buffer = getattr(contraction, f"U_matrix_{order}")
        if buffer.dtype != torch.float64 or not torch.equal(buffer, buffer.float().double()):
            continue
        exact = U_matrix_real(
            irreps_in=contraction.coupling_irreps,
            irreps_out=irrep_out,
            correlation=order,
            use_cueq_cg=reduced,
            dtype=torch.float64,
        )[-1].to(buffer)
        # Of another basis of the same space they are right as they are.
        if exact.shape == buffer.shape and torch.allclose(buffer, exact, rtol=0.0, atol=1e-5):
            buffer.copy_(exact)
