"""Folding deltas into the weights, and taking them out again to the bit."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn
from torch.func import functional_call

from e3sparse.errors import PatchError
from e3sparse.layers.injection import LayerDeltas
from e3sparse.layers.kinds import PassedOver, kind_of, matrix_columns
from e3sparse.layers.layouts import Layout

Merged = tuple[Mapping[str, Layout], Mapping[str, Tensor]]
"""The layouts and the ΔW of one merged adapter, by module path."""


def fold_factors(
    model: nn.Module, path: str, factor: Tensor, fold_into: Mapping[str, str]
) -> dict[str, Tensor]:
    """Return what a reweighting multiplies, by parameter name, broadcastable to each.

    Parameters
    ----------
    model
        The whole model.
    path
        The layer whose weights come from outside.
    factor
        `1 + ΔW`, one number for each of its weights, in their order.
    fold_into
        The last linear layer of the network that makes the weights, by layer.

    Raises
    ------
    PatchError
        If that layer is not known, or cannot take the factors exactly.
    """
    if path not in fold_into:
        raise PatchError(
            f"The path weights of '{path}' come from outside, so its delta can only be folded "
            "into the last linear layer of the network that makes them, and that layer is not "
            "known. Name it with patch(…, fold_into={'" + path + "': 'path.of.last.layer'}), or "
            "leave it out of the targets ('tp:internal' picks products that own their weights)."
        )
    last = fold_into[path]
    try:
        layer = model.get_submodule(last)
    except AttributeError:
        raise PatchError(
            f"There is no layer '{last}' to fold the delta of '{path}' into."
        ) from None
    try:
        if list(fold_into.values()).count(last) > 1:
            raise PassedOver("more than one tensor product is fed by it")
        kind = kind_of(layer)
        columns = matrix_columns if kind is None or kind.columns is None else kind.columns
        return {f"{last}.{name}": f for name, f in columns(layer, factor.reshape(-1)).items()}
    except PassedOver as problem:
        raise PatchError(
            f"The delta of '{path}' cannot be folded into '{last}': {problem}."
        ) from None


def check_fold(
    model: nn.Module,
    path: str,
    layout: Layout,
    fold_into: Mapping[str, str],
    delta: Tensor | None = None,
) -> None:
    """Refuse a layer whose delta `refold` could not fold exactly.

    Parameters
    ----------
    delta
        ΔW as it is now. Where it is given, the network that makes the weights is run with
        random input, as it is and with the factors in its last layer.

    Raises
    ------
    PatchError
        If the layer that a reweighting would be folded into is not known or cannot take it, or
        if something follows it that changes what the factors do.
    """
    if not layout.external:
        return
    like = next(model.parameters(), torch.empty(0)) if delta is None else delta
    factor = torch.ones(layout.numel, dtype=like.dtype, device=like.device)
    flat = None if delta is None else delta.reshape(-1)
    factors = fold_factors(model, path, factor if flat is None else factor + flat, fold_into)
    if flat is None:
        return
    # Random factors as well, so that a ΔW of zeros hides nothing.
    generator = torch.Generator().manual_seed(0)
    random = 1 + torch.rand(layout.numel, generator=generator, dtype=torch.float64)
    factor = (factor + flat) * random.to(factor)
    factors = fold_factors(model, path, factor, fold_into)
    if not commutes(model, path, fold_into[path], factors, factor):
        raise PatchError(
            f"The delta of '{path}' cannot be folded into '{fold_into[path]}': what follows that "
            "layer in its network changes the weights in another way than by a factor for each, "
            "so the merged model would differ from the patched one. Name the last layer."
        )


@torch.no_grad()
def commutes(
    model: nn.Module, path: str, last: str, factors: Mapping[str, Tensor], factor: Tensor
) -> bool:
    """Tell whether factors in a layer are the same as factors on its whole network's output.

    The network is the largest module that holds the layer, but not the tensor product at `path`.
    True also where it cannot be run with a matrix of random numbers.
    """
    steps = last.split(".")
    above = [".".join(steps[:k]) for k in range(1, len(steps))]
    outside = [root for root in above if not f"{path}.".startswith(f"{root}.")]
    if not outside:
        return True
    root = outside[0]
    network = model.get_submodule(root)
    folded = {
        name.removeprefix(f"{root}."): base_parameter(model, name) * by.to(factor)
        for name, by in factors.items()
    }
    modes = {module: module.training for module in network.modules()}
    deltas = [module for module in network.modules() if isinstance(module, LayerDeltas)]
    active = [layer.active for layer in deltas]
    generator = torch.Generator().manual_seed(0)
    try:
        network.eval()
        for layer in deltas:  # the factors are given for the base weights
            layer.active = []
        for width in _input_widths(network):
            x = torch.randn(5, width, generator=generator, dtype=torch.float64).to(factor)
            try:
                plain = network(x)
                merged = functional_call(network, folded, (x,))
            except (RuntimeError, TypeError, ValueError, AssertionError, IndexError, KeyError):
                continue
            if not isinstance(plain, Tensor) or plain.shape[-1:] != factor.shape:
                continue
            expected, noise = plain * factor, torch.finfo(factor.dtype).eps
            # Two orders of rounding: the difference of what is wrong is of order one.
            scale = expected.abs().max() + plain.abs().max()
            return bool((merged - expected).abs().max() <= 1e3 * noise * scale)
    finally:
        for module, mode in modes.items():
            module.training = mode
        for layer, names in zip(deltas, active, strict=True):
            layer.active = names
    return True


@contextmanager
def full_precision() -> Iterator[None]:
    """Switch autocast off: what is folded is formed in the precision of the weights."""
    with ExitStack() as stack:
        for device in ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",):
            stack.enter_context(torch.autocast(device, enabled=False))
        yield


def _input_widths(network: nn.Module) -> list[int]:
    """Return how many numbers a network may take, the likeliest first."""
    widths = [
        size
        for parameter in network.parameters()
        if parameter.ndim == 2
        for size in parameter.shape
    ]
    return list(dict.fromkeys(widths))


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
        What each reweighted parameter has been multiplied by, broadcastable to it.
    """
    added: dict[str, Tensor] = {}
    reweighted: dict[str, Tensor] = {}
    for layouts, values in merged:
        for path, delta in values.items():
            layout = layouts[path]
            if layout.external:
                factor = 1 + delta
                for name, by in fold_factors(model, path, factor, fold_into).items():
                    reweighted[name] = by if name not in reweighted else reweighted[name] * by
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
