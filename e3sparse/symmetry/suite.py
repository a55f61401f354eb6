"""All checks of a potential, in the order in which one failure explains another."""

from collections.abc import Callable, Iterable, Iterator

from ase import Atoms

from e3sparse.symmetry.check import Check
from e3sparse.symmetry.derivatives import (
    check_conservation,
    check_cutoff,
    check_forces,
    check_stress,
)
from e3sparse.symmetry.dtypes import check_dtype
from e3sparse.symmetry.invariances import (
    check_batch,
    check_cross_frame_gradients,
    check_inversion,
    check_isolated_atoms,
    check_periodic_images,
    check_permutation,
    check_rotation,
    check_supercell,
    check_translation,
)
from e3sparse.symmetry.result import Result
from e3sparse.symmetry.time_reversal import (
    check_magnetic_forces,
    check_spin_rotation,
    check_time_reversal,
)

CHECKS: dict[str, Check] = {
    check.name: check
    for check in (
        check_isolated_atoms,
        check_translation,
        check_permutation,
        check_rotation,
        check_inversion,
        check_time_reversal,
        check_spin_rotation,
        check_periodic_images,
        check_supercell,
        check_batch,
        check_cross_frame_gradients,
        check_conservation,
        check_cutoff,
        check_forces,
        check_stress,
        check_magnetic_forces,
        check_dtype,
    )
}


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
