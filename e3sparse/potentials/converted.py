"""A model converted to another library, called with the weights of the one that is trained.

The deltas stay on the original, so that an adapter, a merge and a saved model are what they are
without it. Weights of the two forms differ by a fixed linear map, which is applied to W + ΔW in
each step.
"""

import copy
import importlib.util
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn
from torch.func import functional_call

from e3sparse.adapter.effective import effective_weights
from e3sparse.adapter.patching import adapters
from e3sparse.errors import ConfigError


class Converted(nn.Module):
    """Another form of a model, which owns no weights.

    Parameters
    ----------
    original
        Patched or not.
    form
        What its framework made of it. Parameters and buffers that have the name of one of the
        original, and as many numbers, are those of the original.
    others
        The rest: for the name of a parameter of `form`, a function of the original's weights.

    Raises
    ------
    ConfigError
        If a parameter of `form` has no counterpart.
    """

    def __init__(
        self,
        original: nn.Module,
        form: nn.Module,
        others: Mapping[str, Callable[[Mapping[str, Tensor]], Tensor]] | None = None,
    ) -> None:
        super().__init__()
        self._original = [original]  # in a list, so that it is no submodule
        self.form = form.requires_grad_(False)
        self.others = dict(others or {})
        own = original.state_dict()
        self.shapes = {
            name: value.shape
            for name, value in form.state_dict().items()
            if name in own and own[name].numel() == value.numel() and name not in self.others
        }
        lacking = {name for name, _ in form.named_parameters()} - {*self.shapes, *self.others}
        if lacking:
            raise ConfigError(
                f"The converted model has weights that the original has not: "
                f"{', '.join(sorted(lacking)[:3])}. Is this a version of the framework that "
                "converts in another way?"
            )

    @property
    def original(self) -> nn.Module:
        """The model that is trained."""
        return self._original[0]

    def weights(self) -> dict[str, Tensor]:
        """Return the parameters and buffers of the form, as functions of the original's."""
        own = {**dict(self.original.named_buffers()), **effective_weights(self.original)}
        mapped = {name: own[name].reshape(shape) for name, shape in self.shapes.items()}
        return mapped | {name: make(own) for name, make in self.others.items()}

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Call the form with the weights that the original has now."""
        self.form.train(self.original.training)
        return functional_call(self.form, self.weights(), args, kwargs)


def without_adapters(model: nn.Module) -> Any:
    """Return a copy of the base model, which a framework's conversion understands."""
    bare = copy.deepcopy(model)
    for adapter in adapters(bare).values():
        adapter.remove()
    return bare


def need(library: str, package: str) -> None:
    """Raise unless a package is there.

    Raises
    ------
    ConfigError
        With what to install.
    """
    if importlib.util.find_spec(package) is None:
        raise ConfigError(
            f"{library} is not installed: pip install {package.replace('_', '-')}, and on a GPU "
            "its operators for the CUDA version there."
        )
