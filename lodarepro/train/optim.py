"""The optimizer's update rule and the learning-rate schedule."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from lodarepro import config

LATE = 1e9  # a step at which b1^k and b2^k are 0


class LoraAdamW(Optimizer):
    """AdamW as the LoRA paper's code writes it (microsoft/LoRA c4593f0, `optimizer.py`).

        m = b1 m + (1 - b1) g
        v = b2 v + (1 - b2) g^2
        p -= lr sqrt(1 - b2^k) / (1 - b1^k) m / (sqrt(v) + eps)
        p -= lr wd p

    PyTorch's AdamW decays first and adds eps after the bias correction: over 20 steps of the golden
    trajectory the two part by 1.4e-3 in parameters. Its fused kernel computes this rule too, in one pass over all
    parameters, if it is told other numbers:

        p = (1 - lr' wd') p - lr' m / (sqrt(v) + eps),  lr' = (1 - lr wd) lr sqrt(1 - b2^k) / (1 - b1^k),
                                                        wd' = lr wd / lr'

    and a step count so late that its own bias correction is 1.
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        *,
        lr: float,
        betas: tuple[float, float],
        eps: float,
        weight_decay: float,
        bias_correction: bool,
    ) -> None:
        """Make the optimizer; `bias_correction=False` leaves the two powers out of the rule."""
        defaults = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "bias_correction": bias_correction,
        }
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        """Apply one update to every parameter that has a gradient; no closure is taken."""
        if closure is not None:
            raise TypeError("LoraAdamW takes no closure")
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            if not params:
                continue
            of_age: dict[int, list[Tensor]] = {}  # updates to parameters that have had as many
            for p in params:
                if not self.state[p]:
                    self.state[p] = {"step": 0, "exp_avg": torch.zeros_like(p), "exp_avg_sq": torch.zeros_like(p)}
                self.state[p]["step"] += 1
                of_age.setdefault(self.state[p]["step"], []).append(p)
            for k, alike in of_age.items():
                self._update(alike, k, group)

    def _update(self, params: list[Tensor], k: int, group: dict[str, Any]) -> None:
        """Update k of these parameters."""
        b1, b2 = group["betas"]
        size = group["lr"]
        if group["bias_correction"]:
            size *= (1 - b2**k) ** 0.5 / (1 - b1**k)
        decay = group["lr"] * group["weight_decay"]
        size *= 1 - decay
        torch._fused_adamw_(
            params,
            [p.grad for p in params if p.grad is not None],  # all have one
            [self.state[p]["exp_avg"] for p in params],
            [self.state[p]["exp_avg_sq"] for p in params],
            [],
            [torch.full((), LATE, device=params[0].device)] * len(params),
            lr=size,
            beta1=b1,
            beta2=b2,
            weight_decay=decay / size if size else 0.0,
            eps=group["eps"],
            amsgrad=False,
            maximize=False,
        )


def make_optimizer(groups: list[dict[str, Any]], settings: config.Train) -> Optimizer:
    """The optimizer that `train.optimizer` names, over groups with `params` and `lr_scale`."""
    if settings.optimizer == "lora":
        return LoraAdamW(
            groups,
            lr=settings.lr,
            betas=settings.betas,
            eps=settings.eps,
            weight_decay=settings.weight_decay,
            bias_correction=settings.bias_correction,
        )
    return torch.optim.AdamW(
        groups, lr=settings.lr, betas=settings.betas, eps=settings.eps, weight_decay=settings.weight_decay, fused=True
    )


def learning_rate(settings: config.Train, step: int, total: int) -> float:
    """The rate of step `step` (from 0) out of `total`: linear warm-up from 0, then the schedule."""
    if step < settings.warmup_steps:
        return settings.lr * step / settings.warmup_steps
    if settings.schedule == "constant":
        return settings.lr
    return settings.lr * max(0.0, (total - step) / max(1, total - settings.warmup_steps))
