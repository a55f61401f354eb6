"""Two adapter folders side by side, without a model."""

from dataclasses import asdict, dataclass
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor

from e3sparse.adapter.config import read_config
from e3sparse.adapter.file import read_values
from e3sparse.errors import AdapterFileError


@dataclass(frozen=True)
class LayerComparison:
    """How ΔW of one layer differs between adapters A and B.

    Attributes
    ----------
    updated_a, updated_b
        Entries that are not zero.
    shared
        Entries that neither leaves at zero.
    jaccard
        `shared` over the entries that at least one changes; 1 if neither changes any.
    jaccard_chance
        What two random supports of these sizes would give.
    norm_a, norm_b, norm_difference
        Frobenius norms of A, B and A − B.
    """

    layer: str
    updated_a: int
    updated_b: int
    shared: int
    jaccard: float
    jaccard_chance: float
    norm_a: float
    norm_b: float
    norm_difference: float


def compare_adapters(a: str | Path, b: str | Path) -> pd.DataFrame:
    """Compare two adapters layer by layer.

    Layers that only one of them changes count as zero in the other.

    Returns
    -------
    DataFrame
        Indexed by layer, with the columns of `LayerComparison`; the last row is the total.
    """
    first, second = read_values(a), read_values(b)
    rows = []
    everything: tuple[list[Tensor], list[Tensor]] = ([], [])
    for layer in dict.fromkeys([*first, *second]):
        one = first.get(layer)
        two = second.get(layer)
        like = one if one is not None else two
        assert like is not None
        if one is not None and two is not None and one.shape != two.shape:
            raise AdapterFileError(
                f"Layer '{layer}' has the shape {tuple(one.shape)} in one adapter and "
                f"{tuple(two.shape)} in the other: they are of different models."
            )
        pair = [torch.zeros_like(like) if v is None else v.double() for v in (one, two)]
        rows.append(_compare(layer, pair[0], pair[1]))
        for flat, store in zip(pair, everything, strict=True):
            store.append(flat.reshape(-1).double())
    rows.append(_compare("total", torch.cat(everything[0]), torch.cat(everything[1])))
    return pd.DataFrame([asdict(row) for row in rows]).set_index("layer")


def differing_settings(a: str | Path, b: str | Path) -> dict[str, tuple[object, object]]:
    """Return what the two configs say differently, besides layers and counts."""
    one, two = read_config(a).model_dump(), read_config(b).model_dump()
    skipped = {"layers", "sparsity", "metrics", "clebsch_gordan", "energy_references"}
    skipped |= {"digest", "base"}  # of the base, `base_fingerprint` is shown
    return {key: (one[key], two[key]) for key in one if key not in skipped and one[key] != two[key]}


def _compare(layer: str, one: Tensor, two: Tensor) -> LayerComparison:
    in_one, in_two = one != 0, two != 0
    updated = int(in_one.sum()), int(in_two.sum())
    shared, union = int((in_one & in_two).sum()), int((in_one | in_two).sum())
    by_chance = updated[0] * updated[1] / one.numel()
    union_by_chance = sum(updated) - by_chance
    return LayerComparison(
        layer=layer,
        updated_a=updated[0],
        updated_b=updated[1],
        shared=shared,
        jaccard=shared / union if union else 1.0,
        jaccard_chance=by_chance / union_by_chance if union_by_chance else 1.0,
        norm_a=float(one.norm()),
        norm_b=float(two.norm()),
        norm_difference=float((one - two).norm()),
    )
