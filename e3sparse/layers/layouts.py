"""How one layer's flat weight is laid out: its path blocks, in e3nn's own order."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from math import prod

import torch
from torch import Tensor


@dataclass(frozen=True)
class Arrival:
    """How a weight that is no parameter of a layer reaches it.

    Attributes
    ----------
    method
        Name of the method of the layer that the weight comes by.
    argument
        Name of its argument that is the weight, `(…, *shape)`; None where the weight is what the
        method returns.
    """

    method: str = "forward"
    argument: str | None = None


@dataclass(frozen=True)
class Block:
    """The weights of one path (an e3nn `Instruction`), contiguous in the flat weight.

    Attributes
    ----------
    irreps_in, irreps_out
        The irreps that the path joins, such as `"64x1e"`.
    irreps_in2
        The second operand of a tensor product; None for a linear layer.
    shape
        e3nn's `path_shape`; row-major in the flat weight.
    start
        Where the block begins in the last axis of the flat weight.
    path_weight
        e3nn's normalisation of the path: what one weight is multiplied by.
    species_axis
        Axis of `shape` that runs over chemical species, if there is one.
    channel_axis
        Axis of `shape` that runs over the channels of the output, where it is not the last that
        is as long as there are.
    """

    irreps_in: str
    irreps_in2: str | None
    irreps_out: str
    shape: tuple[int, ...]
    start: int
    path_weight: float
    species_axis: int | None = None
    channel_axis: int | None = None

    @property
    def numel(self) -> int:
        return prod(self.shape)


@dataclass(frozen=True)
class Layout:
    """The layout of one layer's weight.

    Attributes
    ----------
    kind
        Name of the layer kind: `"linear"`, `"fctp"`, `"tp"`, `"mlp"`. The `LayerKind` that reads
        a layout sets it to its own name.
    parameter
        Name of the parameter that holds the weight. None where the weight arrives from outside,
        per edge: a delta then reweights paths, `w * (1 + ΔW)`.
    parts
        Names of the parameters, one for each block, where the weight is spread over several of
        them; the flat weight is theirs one after the other. Then `parameter` is None.
    arrival
        How the weight reaches the layer, where it arrives from outside.
    lead
        Axes in front of the flat weight (`f_in, f_out` of an e3nn `Linear`), mostly none.
    shape
        Shape of the weight, and of ΔW.
    blocks
        The paths, in the order of the flat weight.
    """

    kind: str
    parameter: str | None
    irreps_in: str
    irreps_in2: str | None
    irreps_out: str
    shape: tuple[int, ...]
    blocks: tuple[Block, ...]
    lead: tuple[int, ...] = ()
    parts: tuple[str, ...] = ()
    arrival: Arrival | None = None

    @property
    def numel(self) -> int:
        return prod(self.shape)

    @property
    def external(self) -> bool:
        """Whether the weight arrives from outside."""
        return self.parameter is None and not self.parts

    @property
    def parameters(self) -> tuple[str, ...]:
        """Names of the parameters that hold the weight; none where it arrives from outside."""
        return self.parts if self.parameter is None else (self.parameter,)

    def split(self, weight: Tensor) -> dict[str, Tensor]:
        """Return what belongs to each of `parameters`, in its own shape."""
        if self.parameter is not None:
            return {self.parameter: weight}
        views = (view for _, view in self.views(weight))
        return dict(zip(self.parts, views, strict=True)) if self.parts else {}

    @property
    def irreps(self) -> str:
        operands = (
            self.irreps_in if self.irreps_in2 is None else f"{self.irreps_in} x {self.irreps_in2}"
        )
        return f"{operands} -> {self.irreps_out}"

    def views(self, weight: Tensor) -> Iterator[tuple[Block, Tensor]]:
        """Yield each block with its view `(*lead, *block.shape)` of `weight`."""
        flat = weight.reshape(*self.lead, -1)
        for block in self.blocks:
            part = flat.narrow(-1, block.start, block.numel)
            yield block, part.reshape(*self.lead, *block.shape)

    @property
    def by_species(self) -> bool:
        """Whether the layer has weights that are of one species."""
        return any(block.species_axis is not None for block in self.blocks)

    def of_no_species(self, count: int) -> Tensor | None:
        """Mark the entries that are of none of the first `count` species.

        Returns
        -------
        Tensor or None
            bool, of the weight's shape; None where there are none.
        """
        rows = self.species_rows(list(range(count)))
        shared = torch.ones(self.shape, dtype=torch.bool) if rows is None else ~rows
        return shared if shared.any() else None

    def species_rows(self, indices: list[int]) -> Tensor | None:
        """Mark the entries that belong to the species `indices`.

        Returns
        -------
        Tensor or None
            bool, of the weight's shape; None where the layer has no species axis.
        """
        if not self.by_species:
            return None
        rows = torch.zeros(self.shape, dtype=torch.bool)
        for block, view in self.views(rows):
            if block.species_axis is not None:
                view.index_fill_(
                    len(self.lead) + block.species_axis,
                    torch.tensor(indices, dtype=torch.long),
                    True,
                )
        return rows

    def with_species(self, axis: int, count: int) -> "Layout":
        """Return this layout with `axis` named as the species axis of its blocks.

        Of every block that is at least `count` long there: SevenNet puts modalities behind the
        elements, in blocks of their own.
        """
        return replace(
            self,
            blocks=tuple(
                replace(b, species_axis=axis)
                if axis < len(b.shape) and b.shape[axis] >= count
                else b
                for b in self.blocks
            ),
        )


@dataclass(frozen=True)
class Species:
    """Which elements a model tells apart, and where.

    Attributes
    ----------
    numbers
        Atomic numbers in the order of the model's one-hot axis.
    axes
        Module path of each layer that is fed the one-hot species, and the axis of its blocks'
        shape that runs over them.
    """

    numbers: tuple[int, ...] = ()
    axes: Mapping[str, int] = field(default_factory=dict)
