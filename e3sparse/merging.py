"""Folding deltas into the weights, and taking them out again to the bit."""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from e3sparse.errors import PatchError
from e3sparse.paths import Layout

Merged = tuple[Mapping[str, Layout], Mapping[str, Tensor]]
"""The layouts and the ΔW of one merged adapter, by module path."""


def fold_target(path: str, fold_into: Mapping[str, str]) -> str:
    """Return the name of the parameter that the delta of external weights is folded into.

    Raises
    ------
    PatchError
        If nobody named the last layer of the radial network.
    """
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
    if not layout.external:
        return
    fold_target(path, fold_into)
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
    """Return the stored parameter, past the properties of a patched layer."""
    *path, leaf = name.lstrip(".").split(".")
    module = model
    for step in path:
        child = module._modules[step]
        assert child is not None
        module = child
    parameter = module._parameters[leaf]
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
            layout = layouts[path]
            if layout.external:
                name = fold_target(path, fold_into)
                factor = 1 + delta
                reweighted[name] = factor if name not in reweighted else reweighted[name] * factor
            for own, part in layout.split(delta).items():
                name = f"{path}.{own}"
                added[name] = part if name not in added else added[name] + part
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
