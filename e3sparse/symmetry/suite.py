"""All checks of a potential, in the order in which one failure explains another."""

from collections.abc import Callable, Iterable, Iterator

from ase import Atoms

import e3sparse.symmetry.derivatives as derivatives
import e3sparse.symmetry.dtypes as dtypes
import e3sparse.symmetry.invariances as invariances
import e3sparse.symmetry.time_reversal as time_reversal
from e3sparse.symmetry.check import Check
from e3sparse.symmetry.result import Result

CHECKS: dict[str, Check] = {
    check.name: check
    for check in (
        invariances.check_isolated_atoms,
        invariances.check_translation,
        invariances.check_permutation,
        invariances.check_rotation,
        invariances.check_inversion,
        time_reversal.check_time_reversal,
        time_reversal.check_spin_rotation,
        invariances.check_periodic_images,
        invariances.check_supercell,
        invariances.check_batch,
        invariances.check_cross_frame_gradients,
        derivatives.check_conservation,
        derivatives.check_cutoff,
        derivatives.check_forces,
        derivatives.check_stress,
        time_reversal.check_magnetic_forces,
        dtypes.check_dtype,
    )
}
"""The only list of them: `check_<name>` and `assert_<name>` of the package are made of it."""


def identifier(check: str) -> str:
    """Return the name of a check as Python has it."""
    return check.replace(" ", "_").replace("-", "_")


def run(
    model: object,
    *,
    examples: int = 20,
    seed: int = 0,
    frames: Iterable[Atoms] = (),
    max_atoms: int = 30,
    started: Callable[[Check], None] = lambda check: None,
) -> Iterator[Result]:
    """Yield the result of every check, as it comes; see `Check` for the parameters.

    Parameters
    ----------
    started
        Called with each check before it runs, to show progress.
    """
    structures = tuple(frames)
    for check in CHECKS.values():
        started(check)
        yield check(model, examples=examples, seed=seed, frames=structures, max_atoms=max_atoms)
