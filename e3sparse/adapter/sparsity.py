"""How much of a model a delta changes: the counts, defined once."""

from dataclasses import dataclass

from e3sparse.adapter.targets import Skipped, passed_over


@dataclass(frozen=True)
class Sparsity:
    """Counts of one adapter.

    Attributes
    ----------
    entries
        Entries of the patched weights.
    updated
        Entries of ΔW that are not exactly zero.
    parameters
        All parameters of the base model.
    """

    entries: int
    updated: int
    parameters: int

    @property
    def layerwise(self) -> float:
        """Share of exact zeros among the entries of the patched weights."""
        return 1 - self.updated / self.entries if self.entries else 1.0

    @property
    def total(self) -> float:
        """Unchanged share of all model parameters."""
        return 1 - self.updated / self.parameters if self.parameters else 1.0

    @property
    def updated_share(self) -> float:
        """Updated parameters as a share of all model parameters."""
        return 1 - self.total

    def __str__(self) -> str:
        return (
            f"{self.updated:,} updated of {self.entries:,} patched entries "
            f"(layer-wise sparsity {self.layerwise:.2%}); the model has {self.parameters:,} "
            f"parameters (total sparsity {self.total:.2%}, updated {self.updated_share:.2%})"
        )


@dataclass(frozen=True)
class LayerRow:
    """One patched layer in a summary."""

    path: str
    kind: str
    irreps: str
    numel: int
    updated: int

    @property
    def zero_share(self) -> float:
        return 1 - self.updated / self.numel


@dataclass(frozen=True)
class Summary:
    """What an adapter patches and what it passes over; printable."""

    adapter: str
    method: str
    rows: tuple[LayerRow, ...]
    skipped: tuple[Skipped, ...]
    trainable: int
    sparsity: Sparsity

    def plan(self, final_sparsity: float | None = None) -> str:
        """Return what will be trained, and how much of it is kept if that is known beforehand."""
        entries, layers = self.sparsity.entries, len(self.rows)
        share = entries / self.sparsity.parameters if self.sparsity.parameters else 0.0
        of = "" if self.trainable == entries else f" for {entries:,} entries"
        said = (
            f"{self.trainable:,} trainable parameters{of} in {layers} "
            f"{'layer' if layers == 1 else 'layers'} ({share:.0%} of the model)"
        )
        if final_sparsity is not None:
            said += f", {round((1 - final_sparsity) * entries):,} entries kept at the end"
        return said

    def __str__(self) -> str:
        width = max((len(row.path) for row in self.rows), default=5)
        lines = [
            f"adapter '{self.adapter}', method {self.method}, {self.trainable:,} trainable "
            f"|| {self.sparsity}",
            f"{'layer':<{width}}  kind    entries    updated    zero  irreps",
        ]
        lines += [
            f"{row.path:<{width}}  {row.kind:<6}{row.numel:>9,}  {row.updated:>9,}  "
            f"{row.zero_share:>6.1%}  {row.irreps}"
            for row in self.rows
        ]
        if self.skipped:
            lines.append("passed over:")
            lines += [f"  {line}" for line in passed_over(self.skipped, self.sparsity.parameters)]
        return "\n".join(lines)
