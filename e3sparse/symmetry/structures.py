"""Structures and spins, drawn by hypothesis so that counterexamples shrink to a few atoms."""

from collections.abc import Sequence
from itertools import product
from typing import Any

import numpy as np
from ase import Atoms
from ase.data import covalent_radii
from ase.neighborlist import neighbor_list
from hypothesis import assume
from hypothesis import strategies as st
from numpy.typing import NDArray

from e3sparse.potentials.spins import SPINS

_SPACINGS = (1.0, 0.75, 1.4, 2.0)
"""Distance of neighbouring sites, in covalent diameters of the largest element."""
_SITES = 4


@st.composite
def structures(
    draw: st.DrawFn,
    numbers: Sequence[int],
    *,
    min_atoms: int = 1,
    max_atoms: int = 30,
    periodic: bool | None = None,
    closest: float = 0.6,
    with_spins: bool = False,
) -> Atoms:
    """Draw a structure: a cluster, or a crystal in a cell that may be skewed.

    Atoms are put on the sites of a lattice and moved by multiples of 0.01 Å: many distances
    coincide exactly, some are as short as is legal, and what is left after shrinking is a few
    atoms at round positions.

    Parameters
    ----------
    numbers
        Atomic numbers to choose from; simplest first.
    min_atoms, max_atoms
        Between 1 and 30.
    periodic
        None for both kinds.
    closest
        The shortest distance, images included, in covalent diameters of the largest element
        (1.2 Å at least). Potentials that have never seen atoms closer than that may rise by 1e8
        eV there, and no difference quotient can follow.
    with_spins
        Add an array of spins; see `spins`.

    Returns
    -------
    SearchStrategy of ase.Atoms
    """
    if not 1 <= min_atoms <= max_atoms <= 30:
        raise ValueError("Structures have from 1 to 30 atoms.")
    is_periodic = draw(st.booleans()) if periodic is None else periodic
    few = st.integers(min_atoms, min(max(min_atoms, 6), max_atoms))
    count = draw(st.one_of(few, st.integers(min_atoms, max_atoms)))
    sites = list(product(range(_SITES), repeat=3))
    chosen = draw(st.lists(st.sampled_from(sites), min_size=count, max_size=count, unique=True))
    elements = draw(st.lists(st.sampled_from(list(numbers)), min_size=1, max_size=4))
    diameter = max(1.2, *(2 * covalent_radii[number] for number in elements))
    spacing = round(diameter * draw(st.sampled_from(_SPACINGS)), 2)
    # Moved by up to this much in each direction, neighbours stay apart by `closest`.
    room = int((spacing - closest * diameter) / 2 * 100)
    offset = st.tuples(*[st.integers(-room, room).map(lambda k: k / 100)] * 3)
    positions = [spacing * np.array(site) + draw(offset) for site in chosen]
    atoms = Atoms([draw(st.sampled_from(elements)) for _ in chosen], np.round(positions, 6))
    if is_periodic:
        atoms.set_cell(draw(_cells(chosen, spacing)))
        atoms.pbc = True
        assume(not len(neighbor_list("i", atoms, closest * diameter - 1e-6)))
    if with_spins:
        atoms.set_array(SPINS, draw(spins(len(atoms))))
    return atoms


@st.composite
def _cells(
    draw: st.DrawFn, sites: Sequence[tuple[int, ...]], spacing: float
) -> NDArray[np.float64]:
    shape = [max(site[k] for site in sites) + 1 for k in range(3)]
    if len(sites) == 1:
        shape = [1, 1, 1]
    cell = np.diag([spacing * length for length in shape])
    # A cell leans by up to 40 % of a spacing in each direction; a dense one is stretched.
    lean = st.integers(-4, 4).map(lambda k: round(k * spacing / 10, 6))
    cell[1, 0], cell[2, 0], cell[2, 1] = draw(lean), draw(lean), draw(lean)
    stretch: float = draw(st.sampled_from([1.0, 1.3, 2.0]))
    return np.round(cell * stretch, 6)


def spins(count: int) -> st.SearchStrategy[NDArray[np.float64]]:
    """Draw spins (count, 3) in μ_B, multiples of 0.1 up to 3; zero vectors are among them."""
    component = st.integers(-30, 30).map(lambda k: k / 10)
    vector = st.one_of(st.just((0.0, 0.0, 0.0)), st.tuples(component, component, component))
    return st.lists(vector, min_size=count, max_size=count).map(
        lambda rows: np.array(rows, dtype=np.float64).reshape(-1, 3)
    )


def directions(count: int) -> st.SearchStrategy[NDArray[np.float64]]:
    """Draw a displacement (count, 3) of length 1, of components in ratios of small integers."""
    component = st.integers(-2, 2)
    rows = st.lists(st.tuples(component, component, component), min_size=count, max_size=count)

    def normalise(drawn: list[tuple[int, int, int]]) -> NDArray[np.float64]:
        vector = np.array(drawn, dtype=np.float64)
        if not vector.any():
            vector[0, 0] = 1.0
        return vector / np.linalg.norm(vector)

    return rows.map(normalise)


def python_code(name: str, value: Any) -> str:
    """Return the statements that make a drawn value again."""
    lines = [f"{name} = {_expression(value)}"]
    structures = value if isinstance(value, list | tuple) else [value]
    for index, atoms in enumerate(structures):
        if isinstance(atoms, Atoms) and SPINS in atoms.arrays:
            which = name if atoms is value else f"{name}[{index}]"
            lines.append(f"{which}.set_array({SPINS!r}, {_expression(atoms.arrays[SPINS])})")
    return "\n".join(lines)


def _expression(value: Any) -> str:
    if isinstance(value, Atoms):
        parts = [repr(value.get_chemical_symbols()), f"positions={value.positions.tolist()}"]
        if value.pbc.any():
            parts += [f"cell={value.cell.array.tolist()}", f"pbc={value.pbc.tolist()}"]
        return f"Atoms({', '.join(parts)})"
    if isinstance(value, np.ndarray):
        return f"np.array({value.tolist()})"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_expression, value))}]"
    return repr(value)
