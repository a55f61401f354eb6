"""What a person who knows MACE asks of a model: its class, its blocks, its irreps."""

from collections import Counter
from collections.abc import Iterable
from typing import Any

from e3nn import o3
from torch import nn


def describe(model: Any) -> dict[str, str]:
    """Return the architecture of a `mace.modules.MACE`, line by line.

    Read from the modules, because models keep little of what they were built with.
    """
    products = [o3.Irreps(str(product.linear.irreps_out)) for product in model.products]
    hidden = max(products, key=lambda irreps: irreps.lmax)
    sphere = o3.Irreps(str(model.spherical_harmonics.irreps_out))
    first = next(iter(model.products)).symmetric_contractions
    order = max(
        (int(c.correlation) for c in getattr(first, "contractions", ())),
        default=getattr(first, "contraction_degree", None),
    )
    return {
        "family": f"MACE ({type(model).__name__})",
        "interactions": _named(model.interactions),
        "readouts": _named(model.readouts),
        "hidden irreps": f"{hidden} (L = {hidden.lmax})",
        "edges": f"l up to {sphere.lmax}, {_radial(model)}",
        **({} if order is None else {"correlation": str(order)}),
        **({"short range": "ZBL"} if hasattr(model, "pair_repulsion_fn") else {}),
    }


def _radial(model: Any) -> str:
    embedding = model.radial_embedding
    basis = type(embedding.bessel_fn).__name__
    transform = getattr(embedding, "distance_transform", None)
    through = "" if transform is None else f" of {type(transform).__name__} distances"
    return f"{embedding.out_dim} functions of {basis}{through}"


def _named(blocks: Iterable[nn.Module]) -> str:
    counts = Counter(type(block).__name__ for block in blocks)
    return ", ".join(f"{number} x {name}" for name, number in counts.items())
