"""`e3sparse inspect`: what a model is, and what each target would patch."""

from collections.abc import Iterator, Sequence
from itertools import pairwise
from shlex import quote
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from e3sparse.cli.options import BackendOption, HeadOption, ModelArgument, TrustOption
from e3sparse.cli.tables import out
from e3sparse.errors import TargetError

if TYPE_CHECKING:
    from e3sparse.potentials.backends import Potential

FEW = 20
"""Elements up to which each is listed."""


def inspect(
    model: ModelArgument,
    targets: Annotated[
        list[str] | None, typer.Option(help="List the layers that these would patch.")
    ] = None,
    backend: BackendOption = None,
    head: HeadOption = None,
    trust_model: TrustOption = False,
) -> None:
    """Show what a model is, which layers it has, and what each target would patch."""
    from e3sparse.adapter.targets import candidates, passed_over, select
    from e3sparse.potentials.backends import load_potential
    from e3sparse.potentials.refusals import HeadNotChosenError

    try:
        potential = load_potential(model, backend=backend, head=head)
    except HeadNotChosenError as several:
        # The layers are the same, whichever head is trained.
        potential = load_potential(model, backend=backend, head=several.heads[0])
    facts = Table.grid(padding=(0, 2))
    facts.add_column()
    facts.add_column(overflow="fold")
    for name, value in facts_of(potential):
        facts.add_row(name, value)
    out.print(facts)
    shares = target_shares(potential)
    overview = Table("targets", "layers", "entries", "share of parameters")
    for name, (layers, entries, share) in shares.items():
        overview.add_row(name, str(layers), f"{entries:,}", f"{share:.2%}")
    out.print(overview)
    command = finetune_command(potential, model, backend, head, trust_model, tuple(shares))
    out.print(f"Fine-tune it: {command}", soft_wrap=True)
    found = candidates(potential.module, potential.species)
    picked = (
        select(potential.module, potential.resolve(targets), potential.species)
        if targets
        else found
    )
    listing = Table(title="Layers")
    for column in ("layer", "kind", "entries", "species axis", "irreps"):
        listing.add_column(column, overflow="fold")
    for path, layout in picked.layers.items():
        axis = layout.blocks[0].species_axis
        listing.add_row(
            path, layout.kind, f"{layout.numel:,}", "" if axis is None else str(axis), layout.irreps
        )
    out.print(listing)
    for line in passed_over(picked.skipped, _parameters(potential)):
        out.print(f"Passed over: {line}", soft_wrap=True)


def facts_of(potential: "Potential") -> Iterator[tuple[str, str]]:
    """Yield what a person asks of a model first: what its framework knows, then what all have."""
    yield "model", potential.name
    told = dict(potential.describe())
    theory = told.pop("level of theory", None)
    yield from told.items()
    yield "framework", ", ".join(f"{name} {number}" for name, number in potential.framework.items())
    yield "symmetry", "O(3)" if potential.parity else "SO(3): it claims nothing of mirror images"
    yield "precision", str(potential.dtype).removeprefix("torch.")
    yield "parameters", f"{_parameters(potential):,}"
    yield "cutoff", f"{potential.cutoff:g} Å"
    yield "elements", elements(potential.species.numbers)
    if len(potential.heads) > 1:
        yield "heads", f"{', '.join(potential.heads)} (choose one by --head)"
    if potential.frame_inputs:
        yield "read of a frame", f"{', '.join(potential.frame_inputs)}, besides its structure"
    yield "level of theory", theory or "the file does not say"


def target_shares(potential: "Potential") -> dict[str, tuple[int, int, float]]:
    """Return layers, entries and share of the parameters of each target that the model has."""
    from e3sparse.adapter.targets import select
    from e3sparse.layers.kinds import kind_names

    parameters = _parameters(potential)
    shares = {}
    for name in (
        *kind_names(),
        *dict.fromkeys(("all", *potential.aliases, "species", "everything")),
    ):
        try:
            chosen = select(potential.module, potential.resolve(name), potential.species)
        except TargetError:
            continue
        layers = list(chosen.layers.values())
        # Reweighted paths are no parameters of the model: their weights come from the radial net.
        owned = sum(layout.numel for layout in layers if not layout.external)
        entries = sum(layout.numel for layout in layers)
        shares[name] = len(layers), entries, owned / parameters
    return shares


def finetune_command(
    potential: "Potential",
    model: str,
    backend: str | None,
    head: str | None,
    trusted: bool,
    targets: Sequence[str],
) -> str:
    """Return a command that fine-tunes this model, with TRAIN in the place of the data."""
    words = ["e3sparse", "finetune", quote(model), "TRAIN"]
    if backend is not None:
        words += ["--backend", backend]
    if len(potential.heads) > 1:
        words += ["--head", quote(head) if head else "HEAD"]
    if "linear" not in targets:
        # The kind that holds most of the model, such as Allegro's scalar layers.
        shares = target_shares(potential)
        kinds = [name for name in targets if name not in ("all", "species", "everything")]
        if kinds:
            words += ["--targets", max(kinds, key=lambda name: shares[name][2])]
    if trusted:
        words.append("--trust-model")
    return " ".join([*words, "--out", "run/"])


def elements(numbers: Sequence[int]) -> str:
    """Return how many elements there are and which: ranges of atomic numbers where many are.

    Types that are no element have atomic number 0.
    """
    from ase.data import chemical_symbols

    known = sorted({number for number in numbers if number > 0})
    others = sum(number <= 0 for number in numbers)
    runs: list[list[int]] = []
    for before, number in pairwise([-1, *known]):
        if len(known) > FEW and number == before + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    named = [
        "–".join(dict.fromkeys(chemical_symbols[number] for number in (run[0], run[-1])))
        for run in runs
    ]
    counted = f"{len(known)}: {', '.join(named)}" if known else "none"
    return counted + (f", and {others} types that are no element" if others else "")


def _parameters(potential: "Potential") -> int:
    return sum(p.numel() for p in potential.module.parameters())
