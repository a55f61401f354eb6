"""From run folders, adapter folders and model files to `Change`."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from e3sparse.adapter.file import load
from e3sparse.adapter.handle import Adapter
from e3sparse.adapter.patching import adapters
from e3sparse.adapter.targets import candidates
from e3sparse.analysis.change import Change, Rest
from e3sparse.analysis.origin import Origin, distinct, elements_trained_on, find_origin, thresholds
from e3sparse.errors import ConfigError, E3SparseError, PatchError
from e3sparse.layers.layouts import Layout
from e3sparse.layers.merging import base_parameter
from e3sparse.potentials.backends import Potential, load_potential


class _Models:
    """Potentials by how they were loaded: the changes of one page share a base model."""

    def __init__(self) -> None:
        self._loaded: dict[tuple[str, str | None, str | None], Potential] = {}

    def get(self, model: str, backend: str | None, head: str | None) -> Potential:
        key = (model, backend, head)
        if key not in self._loaded:
            self._loaded[key] = load_potential(model, backend=backend, head=head)
        return self._loaded[key]


def read_change(
    source: str | Path,
    *,
    base: str | None = None,
    backend: str | None = None,
    head: str | None = None,
    elements: Sequence[int] | None = None,
) -> Change:
    """Read what one fine-tuning changed.

    Parameters
    ----------
    source
        A run folder, of a delta or of full fine-tuning, or an adapter folder.
    base
        Name or path of the base model; what the folder says if None.
    backend, head
        As for `load_potential`; what the run says if None.
    elements
        Atomic numbers in the training frames; what the folder says if None.

    Raises
    ------
    E3SparseError
        If the folder is neither, its run did not finish, or the base model is not to be found or
        not the one that was fine-tuned.
    """
    return read_changes([source], base=base, backend=backend, head=head, elements=elements)[0]


def read_changes(
    sources: Sequence[str | Path],
    *,
    base: str | None = None,
    backend: str | None = None,
    head: str | None = None,
    elements: Sequence[int] | None = None,
) -> list[Change]:
    """Read what several fine-tunings of one base model changed; see `read_change`.

    Each is named after its folder, and no two alike.

    Raises
    ------
    ConfigError
        Besides, if they are of base models whose layers differ.
    """
    models = _Models()
    changes = []
    for source in map(Path, sources):
        origin = find_origin(source, base, backend, head)
        read = _adapter if origin.adapter is not None else _whole_model
        change = read(origin, models)
        recorded = elements_trained_on(origin) if elements is None else frozenset(elements)
        changes.append(replace(change, trained_on=recorded))
    _check_comparable(changes)
    names = distinct([Path(source) for source in sources])
    return [replace(change, name=name) for change, name in zip(changes, names, strict=True)]


def _base(origin: Origin, models: _Models) -> Potential:
    try:
        return models.get(origin.base, origin.backend, origin.head)
    except E3SparseError as error:
        raise type(error)(
            f"The base model of {origin.source} cannot be loaded. {error} Another name or path of "
            "it can be given with --base."
        ) from error


def change_of(
    adapter: Adapter,
    *,
    name: str | None = None,
    model: str = "",
    trained_on: Iterable[int] | None = None,
) -> Change:
    """Return what an adapter on a model in memory changes.

    Parameters
    ----------
    adapter
        Attached to its model, and not merged.
    name
        What to call it; the adapter's name if None.
    model
        Name or path of the base model; only `ablate`, which loads it, needs it.
    trained_on
        Atomic numbers in the training frames.

    Raises
    ------
    PatchError
        If an adapter of the model is merged, so that the base weights are not in place.
    """
    if adapter.merged or any(other.merged for other in adapters(adapter.model).values()):
        raise PatchError(
            "The adapters are merged into the weights, and the tables need W apart from ΔW: "
            "restore() them and attach() this one first."
        )
    layouts, values = adapter.layouts, adapter.values()
    # In the order of the model, which a saved file need not keep.
    order = [path for path, _ in adapter.model.named_modules() if path in layouts]
    return Change(
        name=name or adapter.name,
        method=adapter.method.name,
        model=model,
        base=model,
        layouts={path: layouts[path] for path in order},
        weights={path: _weight(adapter.model, path, layouts[path]) for path in order},
        deltas={path: values[path].cpu().clone() for path in order},
        numbers=adapter.species.numbers,
        trained_on=None if trained_on is None else frozenset(trained_on),
        energy_references=dict(adapter.energy_references),
        parameters=adapter.sparsity().parameters,
    )


def _adapter(origin: Origin, models: _Models) -> Change:
    assert origin.adapter is not None
    potential = _base(origin, models)
    adapter = load(
        potential.module,
        origin.adapter,
        name="report",
        species=potential.species,
        fold_into=potential.fold_into,
        constants=potential.constants,
    )
    change = change_of(adapter, model=origin.base)
    adapter.remove()
    return replace(
        change,
        thresholds=thresholds(origin, change.layouts),
        backend=origin.backend,
        head=origin.head,
        magnetic=origin.magnetic,
    )


def _weight(module: nn.Module, path: str, layout: Layout) -> Tensor:
    if layout.external:
        return torch.ones(layout.shape)
    parts = [base_parameter(module, f"{path}.{name}") for name in layout.parameters]
    if layout.parameter is not None:
        return parts[0].detach().cpu().clone().reshape(layout.shape)
    flat = torch.cat([part.detach().cpu().reshape(-1) for part in parts])
    return flat.reshape(layout.shape)


@torch.no_grad()
def _whole_model(origin: Origin, models: _Models) -> Change:
    assert origin.run is not None
    files = sorted(origin.run.glob("model.*"))
    if not files:
        raise ConfigError(
            f"{origin.source} has neither an adapter nor a fine-tuned model (model.*)."
        )
    base = _base(origin, models)
    tuned = load_potential(str(files[0]), backend=origin.backend, head=origin.head)
    found = candidates(base.module, base.species).layers
    there = candidates(tuned.module, tuned.species).layers
    # Where weights come from outside, it is the radial network that was trained.
    layouts = {path: layout for path, layout in found.items() if not layout.external}
    if any(path not in there or there[path].shape != v.shape for path, v in layouts.items()):
        raise ConfigError(
            f"{files[0]} and {origin.base} have different architectures, so the second cannot be "
            "the base model of the first: give the right one with --base."
        )
    weights = {path: _weight(base.module, path, layout) for path, layout in layouts.items()}
    deltas = {
        path: _weight(tuned.module, path, layout).double() - weights[path].double()
        for path, layout in layouts.items()
    }
    return Change(
        name=origin.source.name,
        method=origin.method,
        model=str(files[0]),
        base=origin.base,
        layouts=layouts,
        weights=weights,
        deltas=deltas,
        numbers=base.species.numbers,
        parameters=sum(p.numel() for p in base.module.parameters()),
        rest=_rest(base, tuned, layouts),
        backend=origin.backend,
        head=origin.head,
        magnetic=origin.magnetic,
    )


def _rest(base: Potential, tuned: Potential, layouts: dict[str, Layout]) -> Rest:
    covered = {f"{path}.{name}" for path, v in layouts.items() for name in v.parameters}
    now = dict(tuned.module.named_parameters())
    before = {n: p for n, p in base.module.named_parameters() if n not in covered}
    pairs = [(p.double(), now[n].double()) for n, p in before.items() if n in now]
    norm = sum(float(p.square().sum()) for p, _ in pairs) ** 0.5
    moved = sum(float((q - p).square().sum()) for p, q in pairs) ** 0.5
    return Rest(
        entries=sum(p.numel() for p, _ in pairs),
        updated=sum(int(torch.count_nonzero(q - p)) for p, q in pairs),
        relative=moved / norm if norm else float("nan"),
    )


def _check_comparable(changes: Sequence[Change]) -> None:
    first = changes[0]
    for other in changes[1:]:
        if other.numbers != first.numbers:
            raise ConfigError(
                f"{other.name} and {first.name} are of base models that know different elements "
                f"({other.base}, {first.base}), so their patterns cannot be compared."
            )
        for path in first.layouts.keys() & other.layouts.keys():
            if first.layouts[path].shape != other.layouts[path].shape:
                raise ConfigError(
                    f"Layer '{path}' has the shape {first.layouts[path].shape} in {first.name} and "
                    f"{other.layouts[path].shape} in {other.name}: they are of different models."
                )
        if not first.layouts.keys() & other.layouts.keys():
            raise ConfigError(
                f"{other.name} and {first.name} have no layer in common: they are of different "
                "models, or of targets that do not meet."
            )
