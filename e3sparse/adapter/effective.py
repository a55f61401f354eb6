"""The weights that a patched model works with, as functions of its deltas."""

from torch import Tensor, nn

from e3sparse.adapter.state import state_of
from e3sparse.layers.injection import SUBMODULE, LayerDeltas
from e3sparse.layers.merging import base_parameter, fold_factors


def effective_weights(model: nn.Module) -> dict[str, Tensor]:
    """Return what a merge would write, by the name of the parameter, with its gradient.

    Another form of the model (converted to another library, say) is trained through them: by
    `torch.func.functional_call` it uses weights that are functions of the deltas of this one.

    Parameters
    ----------
    model
        Patched or not. Weights that no active adapter changes are the parameters themselves.

    Raises
    ------
    PatchError
        If a reweighting of weights that come from outside cannot be folded into the layer that
        makes them.
    """
    weights: dict[str, Tensor] = dict(model.named_parameters())
    state = state_of(model)
    if state is None:
        return weights
    external: list[tuple[str, LayerDeltas]] = []
    for name, deltas in model.named_modules():
        if not isinstance(deltas, LayerDeltas):
            continue
        layout, prefix = deltas.layout, name.removesuffix(SUBMODULE)
        own: dict[str, Tensor] = {
            name: base_parameter(model, f"{prefix}{name}") for name in layout.parameters
        }
        if layout.external:
            external.append((prefix.removesuffix("."), deltas))
        elif layout.parts:
            summed = deltas.added_to_parts(own)
            weights |= {f"{prefix}{name}": weight for name, weight in summed.items()}
        else:
            ((name, weight),) = own.items()
            weights[f"{prefix}{name}"] = deltas.added_to(weight)
    for path, deltas in external:
        if not deltas.active:
            continue
        like = next(iter(deltas.deltas.parameters()))
        factor = deltas.reweighted(like.new_ones(deltas.layout.numel))
        for name, by in fold_factors(model, path, factor, state.fold_into).items():
            weights[name] = weights[name] * by
    return {name: weight for name, weight in weights.items() if f".{SUBMODULE}." not in name}
