"""Irreps and e3nn layers, drawn by hypothesis."""

from collections.abc import Sequence
from typing import Any

from hypothesis import strategies as st

CONNECTIONS = {
    "uvw": lambda u, v, w: w,
    "uvu": lambda u, v, w: u,
    "uvv": lambda u, v, w: v,
    "uuw": lambda u, v, w: w,
    "uuu": lambda u, v, w: u,
    "uvuv": lambda u, v, w: u * v,
    "uvu<v": lambda u, v, w: u * (u - 1) // 2,
    "u<vw": lambda u, v, w: w,
}
"""Multiplicity of the output by connection mode (e3nn/o3/_tensor_product/_tensor_product.py)."""

EQUAL_MULTIPLICITIES = ("uuw", "uuu", "uvu<v", "u<vw")
"""The modes whose two operands have the same multiplicity."""

ALWAYS_WEIGHTED = ("uvw", "uuw", "u<vw")
"""The modes that e3nn compiles with weights only."""

KINDS = ("linear", "fctp", *CONNECTIONS)


@st.composite
def irreps(
    draw: st.DrawFn, *, max_degree: int = 2, max_multiplicity: int = 4, max_terms: int = 4
) -> Any:
    """Draw `o3.Irreps` of both parities; multiplicities of 0 are legal, an empty whole is not."""
    from e3nn import o3

    term = st.tuples(
        st.integers(0, max_multiplicity),
        st.tuples(st.integers(0, max_degree), st.sampled_from([1, -1])),
    )
    terms = st.lists(term, min_size=1, max_size=max_terms)
    return o3.Irreps(draw(terms.filter(lambda drawn: any(mul for mul, _ in drawn))))


@st.composite
def tensor_products(
    draw: st.DrawFn, /, mode: str, *, internal_weights: bool | None = None, **options: Any
) -> Any:
    """Draw an `o3.TensorProduct` with paths of one connection mode, one weighted at least.

    Parameters
    ----------
    mode
        One of `CONNECTIONS`.
    internal_weights
        None for either.
    options
        Go to `o3.TensorProduct`.
    """
    from e3nn import o3

    multiplicity = st.integers(1, 4)
    operands: tuple[list[Any], ...] = ([], [], [])
    instructions = []
    for k in range(draw(st.integers(1, 4))):
        one, two = (o3.Irrep(draw(st.sampled_from(["0e", "0o", "1o", "1e"]))) for _ in range(2))
        u, v, w = (draw(multiplicity) for _ in range(3))
        v = u if mode in EQUAL_MULTIPLICITIES else v
        out = (CONNECTIONS[mode](u, v, w), draw(st.sampled_from(list(one * two))))
        for terms, term in zip(operands, ((u, one), (v, two), out), strict=True):
            terms.append(term)
        weighted = k == 0 or mode in ALWAYS_WEIGHTED or draw(st.booleans())
        instructions.append((k, k, k, mode, weighted, draw(st.sampled_from([0.5, 1.0, 3.0]))))
    internal = draw(st.booleans()) if internal_weights is None else internal_weights
    return o3.TensorProduct(
        *operands, instructions, internal_weights=internal, shared_weights=internal, **options
    )


@st.composite
def layers(draw: st.DrawFn, kinds: Sequence[str] = KINDS) -> Any:
    """Draw an e3nn layer: `"linear"`, `"fctp"`, or a tensor product of a connection mode."""
    from e3nn import o3

    kind = draw(st.sampled_from(list(kinds)))
    if kind in CONNECTIONS:
        return draw(tensor_products(kind))
    one, out = draw(irreps()), draw(irreps())
    if kind == "linear":
        return o3.Linear(one, out)
    two = draw(irreps(max_degree=1, max_terms=2))
    return o3.FullyConnectedTensorProduct(one, two, out)
