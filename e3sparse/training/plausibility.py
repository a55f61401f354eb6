"""Labels that cannot be meant: another unit, another sign, one frame that is nothing like the rest.

The base model is the measure. It need not be right, only nearer to the truth than a wrong unit is.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from e3sparse.frames.evaluation import Predictions
from e3sparse.frames.reading import Array, Frame
from e3sparse.frames.references import outlying, reference_energy, robust_shifts

_EV_PER_GPA = 1 / 160.21766
FACTORS: dict[str, dict[str, float]] = {
    "forces": {
        "of the other sign (gradients, not forces)": -1.0,
        "in Hartree/Bohr": 51.422067,
        "in Hartree/Bohr and of the other sign": -51.422067,
        "in Hartree/Å": 27.211386,
        "in Rydberg/Bohr": 25.711034,
        "in kcal/mol/Å": 0.04336410,
        "in kJ/mol/Å": 0.01036427,
        "in meV/Å": 0.001,
    },
    "stress": {
        "of the other sign": -1.0,
        "in kbar": 0.1 * _EV_PER_GPA,
        "in kbar and of the other sign, as VASP prints it": -0.1 * _EV_PER_GPA,
        "in GPa": _EV_PER_GPA,
        "in GPa and of the other sign": -_EV_PER_GPA,
        "in bar": 1e-4 * _EV_PER_GPA,
        "in Hartree/Bohr³": 183.63152,
        "in Rydberg/Bohr³": 91.81576,
        "in meV/Å³": 0.001,
    },
    "energy": {
        "in Hartree": 27.211386,
        "in Rydberg": 13.605693,
        "in kcal/mol": 0.04336410,
        "in kJ/mol": 0.01036427,
        "in meV": 0.001,
        "of the other sign": -1.0,
    },
}
"""What a label may be instead, and the factor that makes it eV, eV/Å or eV/Å³."""

_EXPECTED = {"energy": "eV", "forces": "eV/Å", "stress": "eV/Å³, positive under tension"}
_CLOSER, _CLOSE = 0.4, 0.5
_NEARER, _NEAR = 0.02, 0.95
"""What is 50 times nearer than the labels as they are may be as far off as nothing at all."""
_NOTHING = 1e-6
"""Predictions below it, as of perfect crystals' forces, tell no unit from another."""
_ORDERS = {
    (0, 1, 2): "yz xz xy",
    (0, 2, 1): "yz xy xz",
    (1, 0, 2): "xz yz xy",
    (1, 2, 0): "xy yz xz",
    (2, 0, 1): "xz xy yz",
    (2, 1, 0): "xy xz yz",
}
"""Where yz, xz and xy are to be found in three numbers, and what these are then."""
_ENOUGH, _UNLIKE, _HELD = 3, 0.1, 0.1
"""Frames that show something; a cosine of nothing in common; eV/Å that hold no atom in place."""
_SAME, _SOME = 1e-3, {"forces": 0.05, "stress": 1e-3}
"""In eV/atom, eV/Å and eV/Å³: what a base model must say for labels to be without meaning."""
_MANY, _LARGE = 1000.0, {"forces": 100.0, "stress": 10.0}


class Fault(NamedTuple):
    """A frame that stands apart from the others: its number among them, and why."""

    number: int
    why: str


def faulty_frames(frames: Sequence[Frame], predicted: Predictions) -> list[Fault]:
    """Return the frames whose labels, or predictions, are nothing like those of the rest."""
    faults: dict[int, str] = {}
    for index, (energy, forces) in enumerate(zip(predicted.energy, predicted.forces, strict=True)):
        if not (np.isfinite(energy) and np.isfinite(forces).all()):
            faults[index] = "the base model's energy or forces are not finite"
    for name in ("forces", "stress"):
        largest = np.array([_largest(getattr(frame, name)) for frame in frames])
        for index in _apart(largest, _LARGE[name]):
            unit = "eV/Å" if name == "forces" else "eV/Å³"
            faults.setdefault(
                index,
                f"the {name} label reaches {largest[index]:.3g} {unit}, {_MANY:g} times the rest",
            )
    largest = np.array([_largest(forces) for forces in predicted.forces])
    for index in _apart(largest, _LARGE["forces"]):
        faults.setdefault(
            index,
            f"the base model's forces reach {largest[index]:.3g} eV/Å: are two atoms too close?",
        )
    known = [n for n, f in enumerate(frames) if np.isfinite(f.energy) and n not in faults]
    if known:
        some = [frames[n] for n in known]
        off = outlying(some, predicted.energy[known])
        for position, per_atom in off.items():
            faults.setdefault(
                known[position],
                f"its energy is {per_atom:+.3g} eV/atom from what the base model and all other "
                "frames say",
            )
    return [Fault(index, faults[index]) for index in sorted(faults)]


def said(frames: Sequence[Frame], faults: Sequence[Fault], most: int = 8) -> str:
    """Return a sentence that names faulty frames with file and index."""
    listing = "; ".join(f"{frames[f.number].where}: {f.why}" for f in faults[:most])
    return listing + (f"; and {len(faults) - most} more" if len(faults) > most else "") + "."


def other_units(frames: Sequence[Frame], predicted: Predictions) -> list[str]:
    """Return a sentence for each kind of label that seems to be in another unit or of another sign.

    A factor is named where the labels times it are near to the base model, and without it are not.
    """
    found = _one_energy(frames, predicted)
    for name, pairs in (
        ("energy", _energies(frames, predicted)),
        ("forces", _forces(frames, predicted)),
        ("stress", [(f.stress, p) for f, p in zip(frames, predicted.stress, strict=True)]),
    ):
        known = [(a, b) for a, b in pairs if a is not None and b is not None]
        known = [(a, b) for a, b in known if np.isfinite(a).all() and np.isfinite(b).all()]
        if not known:
            continue
        labels, model = [a for a, _ in known], [b for _, b in known]
        if name in _SOME and (blank := _zeros(name, labels, model)) is not None:
            found.append(blank)
            continue
        factors = FACTORS[name]
        scaled = {meant: [factor * a for a in labels] for meant, factor in factors.items()}
        hints = {meant: f"multiply by {factor:.6g}" for meant, factor in factors.items()}
        if name == "stress":
            volumes = [f.atoms.get_volume() for f in frames if f.stress is not None]
            for sign, meant in ((1.0, "stress × volume"), (-1.0, "virials, -stress × volume")):
                scaled[meant] = [sign * a / v for a, v in zip(labels, volumes, strict=True)]
                hints[meant] = f"multiply by {sign:g}/volume"
        off = {meant: _distance(values, model) for meant, values in scaled.items()}
        best = min(off, key=lambda meant: off[meant])
        as_it_is = _distance(labels, model)
        # A factor of 1,600 shows whatever the base model is worth, one of 2 does not.
        if off[best] < max(_CLOSE, min(_NEAR, _NEARER * as_it_is)) and (
            off[best] < _CLOSER * as_it_is
        ):
            found.append(
                f"The {name} labels seem to be {best}: as they are they do not agree with the "
                f"base model, and so they do. Expected are {_EXPECTED[name]}: {hints[best]}."
            )
        elif name == "stress" and (order := _other_order(labels, model)) is not None:
            found.append(order)
    return found


def doubts(frames: Sequence[Frame], predicted: Predictions) -> list[str]:
    """Return a sentence for what is strange of forces, though the labels may be right."""
    pairs = [(a, b) for a, b in _forces(frames, predicted) if np.isfinite(b).all()]
    pairs = [(a, b) for a, b in pairs if _large(a, b)]
    along = [np.vdot(a, b) / (np.linalg.norm(a) * np.linalg.norm(b)) for a, b in pairs]
    doubtful = []
    if len(along) >= _ENOUGH and np.median(along) < _UNLIKE:
        doubtful.append(
            "Forces labels and the base model's have nothing to do with each other (the cosine "
            f"between them is {np.median(along):.2f} for the median frame). Are the atoms, or x, y "
            "and z, of the forces in the order of the positions?"
        )
    zero = [
        (~f.forces.any(axis=1)) & (np.linalg.norm(p, axis=1) > _HELD)
        for f, p in zip(frames, predicted.forces, strict=True)
    ]
    some = [n for n, of in enumerate(zero) if of.any() and frames[n].forces.any()]
    if some:
        count = sum(int(zero[n].sum()) for n in some)
        doubtful.append(
            f"{count} atoms of {len(some)} frames have forces of exactly 0 where the base model's "
            f"are larger than {_HELD} eV/Å ({frames[some[0]].where} is the first). If they were "
            "fixed, these are no forces: write what the code had before it applied the "
            "constraints, or keep the constraints in the file (move_mask), and they are left out."
        )
    return doubtful


def _forces(frames: Sequence[Frame], predicted: Predictions) -> list[tuple[Array, Array]]:
    """Return forces labels and predictions, of the atoms that have a label."""
    pairs = []
    for frame, forces in zip(frames, predicted.forces, strict=True):
        known = ~np.isnan(frame.forces).any(axis=1)
        if known.any():
            pairs.append((frame.forces[known], forces[known]))
    return pairs


def _large(label: Array, forces: Array) -> bool:
    size = min(np.linalg.norm(label), np.linalg.norm(forces))
    return bool(size > _HELD) and label.size > 3  # of one atom, any direction may come about


def _one_energy(frames: Sequence[Frame], predicted: Predictions) -> list[str]:
    """Say that all structures, different as they are, have the same energy."""
    known = [n for n, frame in enumerate(frames) if np.isfinite(frame.energy)]
    energies = {frames[n].energy for n in known}
    per_atom = [predicted.energy[n] / len(frames[n].atoms) for n in known]
    if len(known) < _ENOUGH or len(energies) > 1 or np.ptp(per_atom) < _SAME:
        return []
    return [
        f"All energy labels are {energies.pop():g} eV: they are none. Remove them from the file, "
        "or write those that were computed."
    ]


def _zeros(name: str, labels: Sequence[Array], model: Sequence[Array]) -> str | None:
    """Say that labels are but zeros where the base model's are not."""
    size = float(np.median([np.abs(b).max() for b in model]))
    if any(a.any() for a in labels) or size < _SOME[name]:
        return None
    unit = "eV/Å" if name == "forces" else "eV/Å³"
    return (
        f"All {name} labels are 0, where the base model's reach {size:.3g} {unit}: they are none. "
        "Remove them from the file, or write those that were computed."
    )


def _other_order(labels: Sequence[Array], model: Sequence[Array]) -> str | None:
    """Say that xy, yz and zx of stresses seem to stand in another order."""
    shear = [np.array([a[1, 2], a[0, 2], a[0, 1]]) for a in labels]
    wanted = [np.array([b[1, 2], b[0, 2], b[0, 1]]) for b in model]
    off = {order: _distance([s[list(order)] for s in shear], wanted) for order in _ORDERS}
    best = min(off, key=lambda order: off[order])
    if len(labels) < _ENOUGH or not off[best] < min(_CLOSE, _CLOSER * off[0, 1, 2]):
        return None
    return (
        f"The stress labels seem to be in the order xx yy zz {_ORDERS[best]}: so they agree with "
        "the base model, and as they are they do not. Expected of 6 numbers are xx yy zz yz xz xy."
    )


def _distance(labels: Sequence[Array], model: Sequence[Array]) -> float:
    """Return how far the labels of a typical frame are from a model, in units of its own size."""
    size = float(np.median([np.linalg.norm(b) for b in model]))
    off = [np.linalg.norm(a - b) for a, b in zip(labels, model, strict=True)]
    return float(np.median(off)) / size if size > _NOTHING else np.inf


def _energies(frames: Sequence[Frame], predicted: Predictions) -> list[tuple[Array, Array]]:
    """Return labels and predictions per atom, less what depends on the composition alone."""
    known = [n for n, frame in enumerate(frames) if np.isfinite(frame.energy)]
    some = [frames[n] for n in known]
    elements = {int(z) for frame in some for z in frame.atoms.numbers}
    if len(some) < 4 + 2 * len(elements):
        return []
    labels = np.array([frame.energy for frame in some])
    sides = []
    for energies in (labels, predicted.energy[known]):
        shifts = robust_shifts(some, energies)
        left = [e - reference_energy(f, shifts) for e, f in zip(energies, some, strict=True)]
        sides.append(np.array(left) / [len(f.atoms) for f in some])
    return list(zip(*(list(side[:, None]) for side in sides), strict=True))


def _largest(values: Array | None) -> float:
    if values is None or not np.isfinite(values).any():
        return 0.0
    return float(np.nanmax(np.abs(values)))


def _apart(largest: Array, floor: float) -> list[int]:
    """Return where values are a thousand times their median, and large in themselves."""
    typical = float(np.median(largest[largest > 0])) if (largest > 0).any() else 0.0
    bound = max(_MANY * typical, floor)
    return [int(n) for n in np.flatnonzero(largest > bound)]
