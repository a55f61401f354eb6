"""Which layers of a model get a delta."""

import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

import torch
from torch import nn

from e3sparse.errors import TargetError, nearest
from e3sparse.layers.kinds import PassedOver, kind_names, layers_of_a_kind
from e3sparse.layers.layouts import Layout, Species
from e3sparse.layers.merging import base_parameter

Targets = str | Sequence[str] | Callable[[str, nn.Module], bool]
"""A layer kind, `"everything"`, a glob or regex on module paths, a list, or a callable."""

EVERYTHING = ("all", "everything")
SPECIES = "species"
"""The layers whose every weight is of one element: structures without it do not change."""
WEIGHTS = ("internal", "external")
"""Whose the weights of a layer are, as in `"tp:internal"`."""


UNKNOWN = "of no kind that e3sparse knows"
"""Why a module that owns parameters gets no delta."""


@dataclass(frozen=True)
class Skipped:
    """A module with parameters that gets no delta, and why.

    Attributes
    ----------
    path, reason
        Where it is, and why it is passed over.
    kind
        Its layer kind; its class if it is of none that is known.
    parameters
        How many it owns.
    """

    path: str
    kind: str
    reason: str
    parameters: int = 0


@dataclass(frozen=True)
class Selection:
    """What `targets` picked: layouts by module path, and all else that owns parameters."""

    layers: dict[str, Layout]
    skipped: tuple[Skipped, ...]


def candidates(model: nn.Module, species: Species | None = None) -> Selection:
    """Find every layer of a known kind, and every module of another one that owns parameters."""
    species = species or Species()
    layers: dict[str, Layout] = {}
    skipped: list[Skipped] = []
    for path, module, kind in layers_of_a_kind(model):
        try:
            layout = _patchable_layout(module, kind.layout)
        except PassedOver as why:
            skipped.append(Skipped(path, kind.name, str(why), _parameters(module)))
            continue
        if path in species.axes:
            axis = species.axes[path]
            layout = layout.with_species(axis, len(species.numbers))
            if not layout.by_species:
                raise TargetError(
                    f"Axis {axis} of '{path}' does not run over {len(species.numbers)} species."
                )
        layers[path] = layout
    known = {*layers, *(skip.path for skip in skipped)}
    for path in species.axes:
        if path not in known:
            raise TargetError(
                f"The species axis of '{path}' is given, and the model has no such layer."
                f"{nearest(path, known)}"
            )
    return Selection(layers, (*skipped, *_unknown(model, known)))


def _unknown(model: nn.Module, known: set[str]) -> Iterator[Skipped]:
    for path, module in model.named_modules():
        own = sum(p.numel() for p in module.parameters(recurse=False))
        inside = path in known or any(not of or path.startswith(f"{of}.") for of in known)
        if own and not inside:
            yield Skipped(path, type(module).__name__, UNKNOWN, own)


def select(model: nn.Module, targets: Targets, species: Species | None = None) -> Selection:
    """Pick the layers that `targets` names.

    Parameters
    ----------
    model
        Any module tree with e3nn layers.
    targets
        `"linear"`, `"fctp"`, `"tp"`, `"mlp"`, or another registered kind, of which
        `"tp:internal"` means the layers that own their weights and `"tp:external"` those that
        are given them, as convolutions are by a radial network; `"everything"` or
        `"all"` for all kinds (a backend may have a narrower `"all"`); `"species"` for the layers
        in which each element has weights of its own; a glob or a regular
        expression on module paths (a path picks everything below it); a list of such; or a
        callable `(path, module) -> bool`. A name that is both means the kind, if the model has
        layers of it.
    species
        Which layers have an axis over chemical species, where the backend knows.

    Raises
    ------
    TargetError
        If `targets`, or one entry of the list, matches nothing; the message names what the model
        does hold.
    """
    found = candidates(model, species)
    if callable(targets):
        modules = dict(model.named_modules())
        chosen = {path for path in found.layers if targets(path, modules[path])}
        if not chosen:
            raise TargetError(
                f"The callable given as targets accepted no layer. {_holdings(found)}"
            )
    else:
        chosen, held = set(), {layout.kind for layout in found.layers.values()}
        for pattern in [targets] if isinstance(targets, str) else targets:
            kind, _, weights = pattern.partition(":")
            if pattern == SPECIES:
                matches = {path for path, layout in found.layers.items() if layout.by_species}
                if not matches:
                    raise TargetError(_no_species(found, species))
            elif kind in held and weights in ("", *WEIGHTS):
                matches = {
                    path
                    for path, layout in found.layers.items()
                    if layout.kind == kind and weights in ("", WEIGHTS[layout.external])
                }
            else:
                matches = {path for path in found.layers if _matches(pattern, path)}
            if not matches:
                known = [*EVERYTHING, SPECIES, *held, *found.layers]
                says = f"targets='{pattern}' matches no layer that can be patched."
                if kind in kind_names():
                    raise TargetError(f"{says} {_holdings(found)}")
                raise TargetError(f"{says}{nearest(pattern, known)} {_holdings(found)}")
            chosen |= matches
        if not chosen:
            raise TargetError(f"targets is an empty list. {_holdings(found)}")
    layers = {path: layout for path, layout in found.layers.items() if path in chosen}
    _refuse_shared_weights(model, layers)
    left_out = tuple(
        Skipped(path, layout.kind, "not among the targets", _parameters(model.get_submodule(path)))
        for path, layout in found.layers.items()
        if path not in chosen
    )
    return Selection(layers, left_out + found.skipped)


def passed_over(skipped: Sequence[Skipped], parameters: int) -> list[str]:
    """Return a line for each kind and reason: how many modules, their share of `parameters`."""
    groups: dict[tuple[str, str], list[Skipped]] = {}
    for skip in skipped:
        groups.setdefault((skip.kind, skip.reason), []).append(skip)
    lines = []
    for (kind, reason), group in groups.items():
        own = sum(skip.parameters for skip in group)
        share = f", {own / parameters:.1%} of the parameters" if own and parameters else ""
        shown = ", ".join(skip.path or "the model itself" for skip in group[:3])
        more = ", …" if len(group) > 3 else ""
        lines.append(f"{len(group)} x {kind}: {reason}{share} ({shown}{more})")
    return lines


def _parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def _patchable_layout(module: nn.Module, layout: Callable[[nn.Module], Layout]) -> Layout:
    if isinstance(module, torch.jit.ScriptModule):
        raise PassedOver("it is compiled with TorchScript")
    if "forward" in vars(module):
        raise PassedOver("it has a forward of its own that would not see the delta")
    if hasattr(module, "parametrizations"):
        raise PassedOver("it is parametrized by torch.nn.utils.parametrize already")
    return layout(module)


def _matches(pattern: str, path: str) -> bool:
    if pattern in EVERYTHING:
        return True
    parents = [path[: m.start()] for m in re.finditer(r"\.", path)]
    if pattern in (path, *parents) or fnmatchcase(path, pattern):
        return True
    try:
        return re.fullmatch(pattern, path) is not None
    except re.error:
        return False


def _refuse_shared_weights(model: nn.Module, layers: dict[str, Layout]) -> None:
    owners: dict[int, list[str]] = {}
    for path, module in model.named_modules():
        for parameter in module._parameters.values():
            owners.setdefault(id(parameter), []).append(path)
    for path, layout in layers.items():
        for parameter in layout.parameters:
            weight = base_parameter(model, f"{path}.{parameter}")
            if len(paths := owners[id(weight)]) > 1:
                raise TargetError(
                    f"'{paths[0]}' and '{paths[1]}' share one weight tensor, so a delta on one "
                    "would be merged into both. Leave them out of targets, or give each its own "
                    "weight."
                )


def _no_species(found: Selection, species: Species | None) -> str:
    """Say why no layer has weights of one element."""
    says = "targets='species' means layers in which each element has weights of its own"
    named = set(species.axes) if species is not None else set()
    lost = [f"{s.path}: {s.reason}" for s in found.skipped if s.path in named]
    if lost:
        return f"{says}, and those of this model were passed over ({lost[0]}). {_holdings(found)}"
    if named or (species is not None and species.numbers):
        return f"{says}, and in this model all elements share the weights. {_holdings(found)}"
    return (
        f"{says}, and of this model it is not known which they are. Load it with its backend "
        "(e3sparse.potentials.backends.load_potential), or name them with patch(…, "
        "species=Species(atomic_numbers, {path: axis}))."
    )


def _holdings(found: Selection) -> str:
    counts = Counter(layout.kind for layout in found.layers.values())
    if not counts:
        reasons = sorted({f"{s.kind}: {s.reason}" for s in found.skipped if s.reason != UNKNOWN})
        tail = f" Layers passed over: {'; '.join(reasons)}." if reasons else ""
        return "The model holds no layer of a kind that e3sparse knows." + tail
    kinds = ", ".join(f"{number} {kind}" for kind, number in sorted(counts.items()))
    return f"The model holds {kinds} (try targets='{max(counts, key=counts.__getitem__)}')."
