"""The method of the paper, as published: soft-threshold reparametrisation (Eq. 2-4)."""

from collections.abc import Sequence
from math import log
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from e3sparse.deltas.base import Method, ParamGroup, being_traced
from e3sparse.layers.delta import Delta
from e3sparse.layers.layouts import Layout


class _SoftThreshold(torch.autograd.Function):
    """`sign(v) * relu(|v| - δ)`, and its gradient from the result alone.

    At the 10⁷ entries of a large model each new tensor costs as much as the arithmetic on it: in
    place this takes a fifth of the time of the formula.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(v: Tensor, threshold: Tensor) -> Tensor:
        return v.abs().sub_(threshold).relu_().copysign_(v)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(output)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        (values,) = ctx.saved_tensors
        sign = torch.sign(values)
        return grad * sign.abs(), -torch.dot(grad.flatten(), sign.flatten())


class SoftThresholdDelta(Delta):
    """ΔW = sign(v)·relu(|v| − δ) with δ = sigmoid(τ), one τ a layer (Eq. 2)."""

    def __init__(self, layout: Layout, v: Tensor, tau: Tensor) -> None:
        super().__init__(layout)
        self.v = nn.Parameter(v)
        self.tau = nn.Parameter(tau)

    def values(self) -> Tensor:
        threshold = torch.sigmoid(self.tau)
        if being_traced():
            return torch.sign(self.v) * torch.relu(self.v.abs() - threshold)
        values: Tensor = _SoftThreshold.apply(self.v, threshold)
        return values


class SoftThreshold(Method):
    """Settings of the published method.

    The decay of τ pulls δ = sigmoid(τ) from its start towards 0.5, and the loss holds it back:
    the sparsity is whatever that balance leaves. The model at step 0 is not the base model,
    because ΔW starts as noise. Use `budget` to ask for a sparsity.

    Attributes
    ----------
    tau_weight_decay
        λ_τ: 0.01 is the paper's regime L and 0.3 its regime H for MACE (0.03 and 0.1 for
        NequIP-OAM-L).
    tau_lr
        Learning rate of τ; that of v if None.
    weight_decay
        λ_Δ, the decay of v.
    init_threshold, init_std
        δ at the start, and the standard deviation of v.
    """

    name: ClassVar[str] = "soft_threshold"

    tau_weight_decay: float = Field(0.01, ge=0)
    tau_lr: float | None = Field(None, gt=0)
    weight_decay: float = Field(1e-8, ge=0)
    init_threshold: float = Field(1e-3, gt=0, lt=1)
    init_std: float = Field(0.01, gt=0)

    def delta(
        self, layout: Layout, weight: Tensor, generator: torch.Generator
    ) -> SoftThresholdDelta:
        v = torch.randn(layout.shape, generator=generator, dtype=torch.float32) * self.init_std
        tau = weight.new_tensor(log(self.init_threshold / (1 - self.init_threshold)))
        return SoftThresholdDelta(layout, v.to(weight), tau.to(weight))

    def param_groups(self, deltas: Sequence[Delta], lr: float) -> list[ParamGroup]:
        """Return v and τ apart, because their decays are decoupled (Eq. 3 and 4)."""
        parameters = [(n, p) for delta in deltas for n, p in delta.named_parameters()]
        v = [p for name, p in parameters if name == "v"]
        tau = [p for name, p in parameters if name == "tau"]
        return [
            {"params": v, "lr": lr, "weight_decay": self.weight_decay},
            {"params": tau, "lr": self.tau_lr or lr, "weight_decay": self.tau_weight_decay},
        ]
