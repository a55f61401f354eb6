"""What is added to a layer's weight: a module that returns ΔW. How it is made is a method's."""

from abc import ABC, abstractmethod

from torch import Tensor, nn

from e3sparse.layers.layouts import Layout


class Delta(nn.Module, ABC):
    """The trainable ΔW of one layer.

    `forward()` returns ΔW in the weight's shape. Entries that `freeze` marked are exactly zero,
    whatever the method does.
    """

    frozen: Tensor | None

    def __init__(self, layout: Layout) -> None:
        super().__init__()
        self.layout = layout
        # Derived from the data set at every start, so a checkpoint does not carry it.
        self.register_buffer("frozen", None, persistent=False)

    @abstractmethod
    def values(self) -> Tensor:
        """Return ΔW before frozen entries are taken out."""

    def forward(self) -> Tensor:
        values = self.values()
        return values if self.frozen is None else values.masked_fill(self.frozen, 0.0)

    def freeze(self, rows: Tensor) -> None:
        """Hold the entries marked in `rows` (bool, of the weight's shape) at zero."""
        rows = rows.to(next(self.parameters()).device)
        self.frozen = rows if self.frozen is None else self.frozen | rows
