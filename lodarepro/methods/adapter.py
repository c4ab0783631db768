"""Sequential bottleneck adapters: small networks that a block's computation passes through.

    h + Up(act(Down(LN(h)))),    Down d x m, Up m x d, biases in both, LN optional

One `attach` serves the published kinds, which differ in sites, LayerNorm and width: adapter-h (Houlsby
et al. 2019; design 2 of Li & Liang's code), adapter-l (Lin et al. 2020; design 1 there), adapter-p
(Pfeiffer et al. 2021) and adapter-drop (Rückle et al. 2021).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lodarepro.config import Adapter
from lodarepro.methods.base import Method
from lodarepro.model import GPT2
from lodarepro.model.gpt2 import LAYER_NORM_EPS

NEAR_ZERO_STD = 1e-2  # standard deviation; Houlsby et al. 2019, section 3.6
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"relu": F.relu, "gelu": F.gelu}


class BottleneckAdapter(nn.Module):
    """One adapter: h (..., d) -> h + Up(act(Down(LN(h)))) (..., d).

    2 d m + m + d parameters, and 2 d more with a LayerNorm.
    """

    def __init__(self, down: Tensor, up: Tensor, *, layer_norm: bool, activation: str) -> None:
        super().__init__()
        d, m = down.shape
        self.norm = nn.LayerNorm(d, eps=LAYER_NORM_EPS, device=down.device) if layer_norm else None
        self.down = nn.Parameter(down)  # (d, m)
        self.down_bias = nn.Parameter(down.new_zeros(m))
        self.up = nn.Parameter(up)  # (m, d)
        self.up_bias = nn.Parameter(up.new_zeros(d))
        self.activation = ACTIVATIONS[activation]

    def forward(self, h: Tensor) -> Tensor:
        """The residual sum of h and the bottleneck's output."""
        x = h if self.norm is None else self.norm(h)
        return h + self.activation(x @ self.down + self.down_bias) @ self.up + self.up_bias

    def macs(self) -> int:
        """Multiply-accumulate operations a token: 2 d m."""
        return self.down.numel() + self.up.numel()


def attach(model: GPT2, config: Adapter, generator: torch.Generator) -> None:
    """Put an adapter at each site of each block but the lowest `drop`; only the adapters train.

    (L - drop) (2 d m + m + d) parameters a site, and 2 d more with a LayerNorm. On GPT-2 Medium
    11,064,576 for adapter-h at m = 112 (no m gives the printed 11.09M); for adapter-l 368,784 at
    m = 6 and 11,089,152 at m = 224 (printed 0.37M and 11.09M); on Large 875,808 at m = 8 and
    23,002,848 at m = 248 (printed 0.88M and 23.00M).
    """
    d, device = model.sizes.n_embd, model.wte.weight.device
    for block in model.h[config.drop :]:
        for site in config.sites:
            down = _near_zero(d, config.bottleneck, generator)
            if config.init == "zero":
                up = torch.zeros(config.bottleneck, d, device="cpu")
            else:
                up = _near_zero(config.bottleneck, d, generator)
            adapter = BottleneckAdapter(
                down.to(device), up.to(device), layer_norm=config.layer_norm, activation=config.activation
            )
            setattr(block, f"after_{site}", adapter)


def _near_zero(rows: int, columns: int, generator: torch.Generator) -> Tensor:
    """A matrix (rows, columns) of normal numbers cut at two deviations, on the CPU: one start for all devices."""
    drawn = torch.empty(rows, columns, device="cpu")
    cut = 2 * NEAR_ZERO_STD
    return nn.init.trunc_normal_(drawn, std=NEAR_ZERO_STD, a=-cut, b=cut, generator=generator)


ADAPTER = Method(attach=attach)
