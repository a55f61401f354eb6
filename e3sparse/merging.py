"""Folding deltas into the weights, and taking them out again to the bit."""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from e3sparse.errors import PatchError
from e3sparse.paths import Layout

Merged = tuple[Mapping[str, Layout], Mapping[str, Tensor]]
"""The layouts and the ΔW of one merged adapter, by module path."""


def fold_target(path: str, layout: Layout, fold_into: Mapping[str, str]) -> str:
    """Return the name of the parameter that a layer's ΔW is folded into.

    Raises
    ------
    PatchError
        If the weight comes from a radial network whose last layer nobody named.
    """
    if layout.parameter is not None:
        return f"{path}.{layout.parameter}"
    if path not in fold_into:
        raise PatchError(
            f"The path weights of '{path}' come from outside, so its delta can only be folded "
            "into the last linear layer of the network that makes them, and that layer is not "
            "known. Name it with patch(…, fold_into={'" + path + "': 'path.of.last.layer'}), or "
            "leave 'tp' out of the targets."
        )
    return f"{fold_into[path]}.weight"


def check_fold(model: nn.Module, path: str, layout: Layout, fold_into: Mapping[str, str]) -> None:
    """Refuse a layer whose delta `refold` could not fold exactly.

    Raises
    ------
    PatchError
        If the layer that a reweighting would be folded into is not known, or is not a plain
        matrix `(hidden, weights)` that feeds this tensor product alone.
    """
    fold_target(path, layout, fold_into)
    if layout.parameter is not None:
        return
    last = fold_into[path]
    problem = None
    try:
        module = model.get_submodule(last)
    except AttributeError:
        raise PatchError(
            f"There is no layer '{last}' to fold the delta of '{path}' into."
        ) from None
    own = {name: p for name, p in module._parameters.items() if p is not None}
    weight = own.get("weight")
    if list(fold_into.values()).count(last) > 1:
        problem = "more than one tensor product is fed by it"
    elif set(own) != {"weight"} or weight is None:
        problem = "its weight is not its only parameter"
    elif isinstance(module, nn.Linear) or weight.ndim != 2 or weight.shape[1] != layout.numel:
        problem = f"its weight is not a matrix with {layout.numel} columns"
    elif getattr(module, "act", None) is not None:
        problem = "an activation follows it"
    if problem:
        raise PatchError(f"The delta of '{path}' cannot be folded into '{last}': {problem}.")


def base_parameter(model: nn.Module, name: str) -> nn.Parameter:
    """Return the stored parameter, past the property of a patched layer."""
    path, _, leaf = name.rpartition(".")
    parameter = model.get_submodule(path)._parameters[leaf]
    assert parameter is not None
    return parameter


@torch.no_grad()
def refold(
    model: nn.Module,
    base: dict[str, Tensor],
    merged: Iterable[Merged],
    fold_into: Mapping[str, str],
) -> dict[str, Tensor]:
    """Write the base weights plus every merged delta into the model.

    The sum is formed from the base weights each time, in the order of the forward pass, so that
    the last merge that is undone leaves the base weights to the bit.

    Parameters
    ----------
    base
        The overwritten base weights by parameter name; kept up to date here.
    merged
        The adapters that are folded in, in the order in which they were added to the model.

    Returns
    -------
    dict
        What each reweighted parameter has been multiplied by, `(weights,)`.
    """
    added: dict[str, Tensor] = {}
    reweighted: dict[str, Tensor] = {}
    for layouts, values in merged:
        for path, delta in values.items():
            name = fold_target(path, layouts[path], fold_into)
            store = added if layouts[path].parameter is not None else reweighted
            if store is added:
                store[name] = delta if name not in store else store[name] + delta
            else:
                store[name] = 1 + delta if name not in store else store[name] * (1 + delta)
    for name in {*added, *reweighted, *base}:
        parameter = base_parameter(model, name)
        weight = base.setdefault(name, parameter.detach().clone()).to(parameter)
        if name in added:
            weight = weight + added[name].to(weight)
        if name in reweighted:
            weight = weight * reweighted[name].to(weight)
        parameter.copy_(weight)
        if name not in added and name not in reweighted:
            del base[name]
    return reweighted
