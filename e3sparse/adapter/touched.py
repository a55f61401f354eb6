"""Which elements a ΔW belongs to: what tells whose structures it leaves as they were."""

from collections.abc import Mapping, Sequence

from torch import Tensor

from e3sparse.layers.layouts import Layout


def touched_species(
    layouts: Mapping[str, Layout], values: Mapping[str, Tensor], numbers: Sequence[int]
) -> set[int] | None:
    """Return the elements that the changed entries are of.

    Parameters
    ----------
    layouts, values
        Of each layer, by module path.
    numbers
        Atomic numbers in the order of the species axes.

    Returns
    -------
    set of int or None
        Atomic numbers; None if an entry is changed that serves all elements.
    """
    touched: set[int] = set()
    for path, value in values.items():
        changed = value.detach().cpu() != 0
        for index, number in enumerate(numbers):
            rows = layouts[path].species_rows([index]) if changed.any() else None
            if rows is not None and (changed & rows).any():
                touched.add(number)
                changed &= ~rows
        if changed.any():
            return None
    return touched
