"""The quantities that a model predicts and a file labels, each described once.

A record of them (`Prediction`, `Evaluation`, `Frame`, `Batch`, `Predictions`, `Entry`) has a field
for each of the five that ours and most models know, because their presence and type differ from
record to record, and `others` by name for every further one. What treats all alike asks
`value_of` and goes by the table here, so that a further label is one entry:

>>> register_quantity(Quantity("charges", per_atom=True, unit="e", key="REF_charges"))
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from e3sparse.errors import ConfigError, nearest

SPINS = "spin"
"""Name of the array of an `Atoms` object that holds spins, (N, 3)."""


@dataclass(frozen=True)
class Quantity:
    """What a quantity is, how it is batched, and how its error is given.

    Attributes
    ----------
    name
        Of the field, and of its errors: `<name>_mae`, `<name>_rmse`.
    per_atom
        Whether there is one for each atom: a batch of N atoms has (N, …) of it, in the order of
        its frames, and (B, …) otherwise.
    rank
        Of the Cartesian tensor: its shape is (3,) times the rank, () for a scalar.
    unit
        Of label and prediction.
    key
        Name of the label in a file, unless `LabelKeys` says otherwise.
    axial
        Whether an improper rotation acts on it with another sign than on a true tensor.
    time_odd
        Whether it changes its sign under time reversal, as spins do; it turns with the spins then
        where these do not feel the lattice.
    extensive
        Whether n copies of a cell have n times as much; of one for each structure only.
    error_unit, error_scale
        Unit that errors are given in, and how many of them a `unit` is.
    error
        `"components"`, mean absolute and root mean square error of all components, or
        `"moments"`, those of `moment_errors`.
    error_per_atom
        Whether errors are divided by the number of atoms.
    by_element
        Whether the error of each element is given too.
    weight
        In the loss, unless `Loss` says otherwise.
    """

    name: str
    per_atom: bool
    unit: str
    key: str
    rank: int = 0
    axial: bool = False
    time_odd: bool = False
    extensive: bool = False
    error_unit: str = ""
    error_scale: float = 1.0
    error: Literal["components", "moments"] = "components"
    error_per_atom: bool = False
    by_element: bool = False
    weight: float = 1.0

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one, for one structure or one atom."""
        return (3,) * self.rank

    @property
    def title(self) -> str:
        """Its name in sentences, and in the table of the symmetry suite's tolerances."""
        return self.name.replace("_", " ")

    @property
    def unit_of_error(self) -> str:
        """The unit that its errors are given in."""
        return self.error_unit or self.unit


QUANTITIES: dict[str, Quantity] = {
    quantity.name: quantity
    for quantity in (
        Quantity(
            "energy",
            per_atom=False,
            unit="eV",
            key="REF_energy",
            extensive=True,
            error_unit="meV/atom",
            error_scale=1000.0,
            error_per_atom=True,
        ),
        Quantity(
            "forces",
            per_atom=True,
            unit="eV/Å",
            key="REF_forces",
            rank=1,
            error_unit="meV/Å",
            error_scale=1000.0,
            by_element=True,
        ),
        Quantity(
            "stress",
            per_atom=False,
            unit="eV/Å³",
            key="REF_stress",
            rank=2,
            error_unit="meV/Å³",
            error_scale=1000.0,
        ),
        Quantity(
            "moments",
            per_atom=True,
            unit="μ_B",
            key="REF_magmom",
            rank=1,
            axial=True,
            time_odd=True,
            error="moments",
        ),
        Quantity(
            "magnetic_forces",
            per_atom=True,
            unit="eV per radian",
            key="REF_magforces",
            rank=1,
            axial=True,
            time_odd=True,
            error_unit="meV/rad",
            error_scale=1000.0,
            weight=0.0,
        ),
    )
}
"""By name, in the order of tables and of the loss."""

FIELDS = tuple(QUANTITIES)
"""Names of those that records have a field for."""


def register_quantity(quantity: Quantity) -> None:
    """Make a further quantity known to readers, losses, errors and the symmetry suite.

    Raises
    ------
    ConfigError
        If there is another one of that name.
    """
    known = QUANTITIES.setdefault(quantity.name, quantity)
    if known != quantity:
        raise ConfigError(
            f"There is a quantity '{quantity.name}' already, in {known.unit}. Choose another name."
        )


def further_quantities() -> list[Quantity]:
    """Return those that were registered besides the ones that records have a field for."""
    return [quantity for name, quantity in QUANTITIES.items() if name not in FIELDS]


def check_further(names: Iterable[str]) -> None:
    """Refuse a name that is none of `further_quantities`, with a `ValueError` for pydantic."""
    known = [quantity.name for quantity in further_quantities()]
    for name in names:
        if name not in known:
            raise ValueError(
                f"there is no further quantity '{name}'.{nearest(name, known)} "
                f"Registered: {', '.join(known) or 'none'}"
            )


def value_of(record: Any, name: str) -> Any:
    """Return a quantity of a record, None where it has none."""
    return getattr(record, name) if name in FIELDS else record.others.get(name)


def values_of(record: Any) -> dict[str, Any]:
    """Return the quantities that a record has, by name."""
    values = {name: value_of(record, name) for name in QUANTITIES}
    return {name: value for name, value in values.items() if value is not None}


def record_values(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return quantities by name as the arguments that make a record of them."""
    fields: dict[str, Any] = {name: values[name] for name in values if name in FIELDS}
    others = {name: value for name, value in values.items() if name not in FIELDS}
    return {**fields, "others": others}
