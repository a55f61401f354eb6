"""The same e3nn layers, differentiated faster.

The code that e3nn generates for a tensor product takes a slice of its inputs and of its weights for
each path, and concatenates what comes out. The gradient of a slice is a tensor as large as the
whole, of zeros but for the slice; and the gradient of a concatenation is slices again, which are
differentiated in turn where forces are trained on. Here all slices of a tensor are taken by one
`torch.split`, whose gradient is a concatenation, whose gradient is a `torch.split`. Values and
gradients are the same to the bit.
"""

import operator
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, fx, nn


class Acceleration:
    """Faster code for the e3nn layers of one model; those in TorchScript stay as they are.

    Nothing is changed in the model: the code is in place while a backend evaluates.

    Parameters
    ----------
    model
        Any module tree, patched or not.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self._codes: list[tuple[fx.GraphModule, Callable[..., Any]]] | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.model,)  # functions that were generated cannot be pickled

    @contextmanager
    def __call__(self) -> Iterator[None]:
        """Put the faster code in place."""
        if self._codes is None:
            generated = [m for m in self.model.modules() if isinstance(m, fx.GraphModule)]
            self._codes = [(module, code) for module in generated if (code := cut_at_once(module))]
        try:
            for module, code in self._codes:
                module.__dict__["forward"] = partial(code, module)
            yield
        finally:
            for module, _ in self._codes:
                module.__dict__.pop("forward", None)


def cut_at_once(module: fx.GraphModule) -> Callable[..., Any] | None:
    """Return code for a module's forward, as a function of the module and its inputs.

    None if there is nothing to be gained.
    """
    graph = fx.Graph()
    graph.output(graph.graph_copy(module.graph, {}))
    changed = False
    for node in list(graph.nodes):
        changed |= _split(graph, node) or _join(graph, node)
    if not changed:
        return None
    graph.eliminate_dead_code()
    graph.lint()
    code: Callable[..., Any] = type(fx.GraphModule(module, graph)).forward
    return code


def _split(graph: fx.Graph, node: fx.Node) -> bool:
    """Take the slices of the columns of a matrix at once, if they do not overlap."""
    width = node.args[-1] if node.target == "reshape" and len(node.args) == 3 else None
    slices = {user: cut for user in node.users if (cut := _columns(user)) is not None}
    if not isinstance(width, int) or len(slices) < 2:
        return False
    edges = sorted({0, width, *(edge for cut in slices.values() for edge in cut)})
    places = {cut: index for index, cut in enumerate(pairwise(edges))}
    if not places.keys() >= set(slices.values()):
        return False
    with graph.inserting_after(node):
        parts = graph.call_function(torch.split, (node, [b - a for a, b in places], 1))
    for user, cut in slices.items():
        user.args = (parts, places[cut])
    return True


def _columns(node: fx.Node) -> tuple[int, int] | None:
    """Return a and b of a node that is `x[:, a:b]`."""
    if node.op != "call_function" or node.target is not operator.getitem:
        return None
    match node.args[1]:
        case (slice(start=None, stop=None), slice(start=int(a), stop=int(b), step=None)):
            return a, b
    return None


class _Concatenation(torch.autograd.Function):
    """`torch.cat` of matrices along their columns; its gradient is one `torch.split`."""

    @staticmethod
    def forward(*parts: Tensor) -> Tensor:
        return torch.cat(parts, dim=1)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        ctx.widths = [part.shape[1] for part in inputs]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, ...]:
        return torch.split(grad, ctx.widths, dim=1)


def _joined(*parts: Tensor) -> Tensor:
    joined: Tensor = _Concatenation.apply(*parts)
    return joined


def _join(graph: fx.Graph, node: fx.Node) -> bool:
    """Concatenate with a gradient that is differentiated faster."""
    parts = node.args[0] if node.target is torch.cat and node.kwargs.get("dim") == 1 else None
    if not isinstance(parts, list | tuple):
        return False
    with graph.inserting_before(node):
        joined = graph.call_function(_joined, tuple(parts))
    node.replace_all_uses_with(joined)
    graph.erase_node(node)
    return True
