"""What was found in a file, what of it is used, and what is left out and why."""

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from e3sparse.frames.label_keys import LabelKeys
from e3sparse.potentials.quantities import QUANTITIES

if TYPE_CHECKING:
    from e3sparse.frames.reading import Frame


@dataclass
class Account:
    """Counts of one file.

    Attributes
    ----------
    held
        Frames in the file.
    labels
        Frames that have a label, by quantity and the key that it was read from.
    left_out
        What is not used and why, a few words each.
    """

    held: int = 0
    labels: Counter[tuple[str, str]] = field(default_factory=Counter)
    left_out: list[str] = field(default_factory=list)

    def add(self, frame: "Frame", keys: LabelKeys, stress_key: str | None) -> None:
        """Count the labels of a frame that is used."""
        if not np.isnan(frame.energy):
            self.labels["energy", keys.energy] += 1
        if not np.isnan(frame.forces).all():
            self.labels["forces", keys.forces] += 1
        if frame.stress is not None and stress_key is not None:
            self.labels["stress", stress_key] += 1
        if frame.moments is not None:
            self.labels["moments", keys.moments] += 1
        if frame.magnetic_forces is not None:
            self.labels["magnetic_forces", keys.magnetic_forces] += 1
        for name in frame.others:
            self.labels[name, keys.others.get(name, QUANTITIES[name].key)] += 1

    def without(
        self, faulty: int, stresses: Counter[tuple[str, bool]], unread: list[str], partly: int
    ) -> None:
        """Note what is not used.

        Parameters
        ----------
        faulty
            Frames that cannot be used.
        stresses
            Frames by the key of their stress label, and whether it is used.
        unread
            Keys that sound like a stress and were not asked for.
        partly
            Frames of whose fixed atoms the forces are not used.
        """
        no_volume = sum(count for (_, used), count in stresses.items() if not used)
        for count, what in (
            (faulty, "frames: faulty"),
            (no_volume, "stresses: no volume"),
            (partly, "frames: zero forces of fixed atoms"),
        ):
            if count:
                self.left_out.append(f"{count:,} {what}")
        self.left_out += [f"'{key}': not asked for" for key in unread]
