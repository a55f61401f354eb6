"""What a run begins with: the base model, the frames, energy references, and the delta to train."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rich.console import Console

from e3sparse.adapter.handle import Adapter
from e3sparse.frames.evaluation import Predictions, errors
from e3sparse.frames.facts import facts_of
from e3sparse.frames.on_disk import sample, without
from e3sparse.frames.reading import Frame
from e3sparse.potentials.backends import Potential
from e3sparse.training.config import FinetuneConfig
from e3sparse.training.energy_zero import choose_references, fate_of_isolated, said_of_references
from e3sparse.training.fisher import Fisher, checked_for, fisher_for, prices_of
from e3sparse.training.inputs import Inputs
from e3sparse.training.replay import replay_frames
from e3sparse.training.scrutiny import examined, what_was_read
from e3sparse.training.spin_layers import with_spin_layers
from e3sparse.training.waiting import predict_with_bar


@dataclass(frozen=True)
class Beginning:
    """A run before its first step.

    Attributes
    ----------
    potential
        The base model, patched if there is an adapter, with spin-aware layers if it gets some.
    adapter
        None if the whole model is trained.
    splits
        Frames to train and to validate on, and to test on if there are any.
    looked_at
        The same, or a sample of them, which the base model was asked about.
    before
        What it says of these.
    references
        Energy shifts in eV by atomic number, which the base model lacks.
    isolated
        Isolated atoms of the training file, by atomic number.
    to_replay, fisher
        What is to hold the model near the base, if anything.
    """

    potential: Potential
    adapter: Adapter | None
    splits: dict[str, Sequence[Frame]]
    looked_at: dict[str, list[Frame]]
    before: dict[str, Predictions]
    references: dict[int, float]
    isolated: dict[int, Frame]
    to_replay: list[Frame] | None
    fisher: Fisher | None

    def errors_before(self) -> dict[str, dict[str, float]]:
        """Return the errors of the base model with the references, by row of a table."""
        return {
            f"{name} before": errors(frames, self.before[name], self.references)
            for name, frames in self.looked_at.items()
        }


def begin(config: FinetuneConfig, inputs: Inputs, console: Console) -> Beginning:
    """Examine what was read, choose energy references, and patch the model.

    Raises
    ------
    E3SparseError
        If something in the inputs cannot be trained on.
    """
    potential, splits, isolated = inputs.potential, dict(inputs.splits), inputs.isolated
    _say_what_was_read(config, inputs, console)
    if config.method == "scratch":
        potential.reinitialize(config.seed)  # before references are fitted to what it predicts
    looked_at = _sampled(config, splits, console)
    to_replay = replay_frames(config, potential, console) if config.replay else None
    before = predicted(potential, looked_at, console)
    if config.method != "scratch":
        asked = looked_at
        looked_at, before = examined(config, looked_at, before, console)
        for name, frames in asked.items():
            gone = {f.where for f in frames} - {f.where for f in looked_at[name]}
            splits[name] = without(splits[name], gone)
    train = looked_at["train"], before["train"]
    references = choose_references(config, potential, *train, isolated["train"])
    for name, atoms in isolated.items():
        if atoms:
            console.print(fate_of_isolated(config, name, atoms), markup=False)
    console.print(said_of_references(references, isolated["train"]))
    if isolated["train"] and references:
        off = errors(*train, references).get("energy_mae", 0.0)
        console.print(f"With these references the base model is off by {off:.1f} meV/atom on train")
    if config.magnetic:
        potential = with_spin_layers(config, potential, looked_at["train"])
        count = sum(p.numel() for p in potential.fresh_parameters())
        console.print(f"Spin-aware layers: {count:,} parameters, trained in full")
    fisher = fisher_for(config, potential, console) if config.fisher else None
    adapter = None if config.whole_model else _patched(config, potential, splits["train"])
    if adapter is not None:
        if fisher is not None:
            fisher = checked_for(fisher, adapter)
            if config.fisher_price > 0:
                adapter.set_prices(prices_of(fisher, config.fisher_price))
        adapter.energy_references.update(references)
        console.print(adapter.summary().plan(adapter.method.final_sparsity))
    return Beginning(
        potential,
        adapter,
        splits,
        looked_at,
        before,
        references,
        isolated["train"],
        to_replay,
        fisher,
    )


def _say_what_was_read(config: FinetuneConfig, inputs: Inputs, console: Console) -> None:
    parameters = sum(p.numel() for p in inputs.potential.module.parameters())
    counts = ", ".join(f"{len(frames)} {name}" for name, frames in inputs.splits.items())
    console.print(
        f"{inputs.potential.name}: {parameters:,} parameters, {counts} frames", markup=False
    )
    console.print(what_was_read(config, inputs))
    for note in inputs.notes:
        console.print(note, soft_wrap=True, markup=False)


def _sampled(
    config: FinetuneConfig, splits: Mapping[str, Sequence[Frame]], console: Console
) -> dict[str, list[Frame]]:
    found = {n: sample(f, config.examined_frames, config.seed) for n, f in splits.items()}
    for name, frames in found.items():
        if len(frames) < len(splits[name]):
            console.print(
                f"{name}: the base model is asked about {len(frames):,} of {len(splits[name]):,} "
                "frames, drawn at random; units, faults, references and errors are of these."
            )
    return found


def predicted(
    potential: Potential, splits: Mapping[str, Sequence[Frame]], console: Console
) -> dict[str, Predictions]:
    """Evaluate a potential on each split, under a bar."""
    return {
        name: predict_with_bar(potential, frames, f"Evaluating {name}", console)
        for name, frames in splits.items()
    }


def _patched(config: FinetuneConfig, potential: Potential, train: Sequence[Frame]) -> Adapter:
    adapter = potential.patch(
        config.targets, config.method, seed=config.seed, **config.method_settings
    )
    adapter.freeze_absent_species(facts_of(train).there)
    return adapter
