"""The constants of a MACE model in the precision that it is used in."""

from typing import Any

import torch
from e3nn import o3
from mace.modules.symmetric_contraction import Contraction
from mace.tools.cg import U_matrix_real
from torch import Tensor, nn

from e3sparse.layers.clebsch_gordan import recompute_wigner_3j, seven_digits


@torch.no_grad()
def recompute_coupling(model: nn.Module) -> dict[str, Tensor]:
    """Compute Clebsch-Gordan coefficients and the U of symmetric contractions anew.

    Those of a model that was saved in float32 have 7 digits, also after a conversion to float64.
    In float32 nothing is changed.

    Returns
    -------
    dict
        What was overwritten, by the name of the buffer.
    """
    overwritten = recompute_wigner_3j(model)
    reduced = bool(getattr(model, "use_reduced_cg", False))
    for number, product in enumerate(getattr(model, "products", ())):
        symmetric: Any = product.symmetric_contractions
        path = f"products.{number}.symmetric_contractions.contractions"
        for place, (out, contraction) in enumerate(
            zip(
                getattr(symmetric, "irreps_out", ()),
                getattr(symmetric, "contractions", ()),
                strict=False,
            )
        ):
            if isinstance(contraction, Contraction):
                found = _recompute_u(contraction, o3.Irreps(str(out.ir)), reduced)
                overwritten |= {f"{path}.{place}.{name}": u for name, u in found.items()}
    return overwritten


def _recompute_u(contraction: Any, irrep_out: o3.Irreps, reduced: bool) -> dict[str, Tensor]:
    overwritten = {}
    for order in range(1, contraction.correlation + 1):
        name = f"U_matrix_{order}"
        buffer = getattr(contraction, name)
        if not seven_digits(buffer):
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
            overwritten[name] = buffer.clone()
            buffer.copy_(exact)
    return overwritten
