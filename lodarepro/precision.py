"""The arithmetic of the model's passes: `train.precision` and `decode.precision`."""

from __future__ import annotations

import logging
from contextlib import AbstractContextManager, nullcontext
from functools import cache

import torch

from lodarepro import config

logger = logging.getLogger(__name__)


class Arithmetic:
    """What `precision` names, on a device: a context for the work."""

    def __init__(self, precision: config.Precision, device: torch.device) -> None:
        self.precision, self.device = precision, device
        # Of matrix products on GPUs; stated for every run, as it is torch's global setting.
        torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
        if precision == "bf16" and not bf16_fits(device):
            _warn(device)

    @property
    def dtype(self) -> torch.dtype:
        """Of matrix products."""
        return torch.bfloat16 if self.precision == "bf16" else torch.float32

    def __call__(self) -> AbstractContextManager[object]:
        """The context."""
        return torch.autocast(self.device.type, dtype=torch.bfloat16) if self.precision == "bf16" else nullcontext()


@cache
def _warn(device: torch.device) -> None:
    logger.warning("%s has no bf16 instructions: bf16 will be slower than fp32 here", device)


def bf16_fits(device: torch.device) -> bool:
    """Whether a device multiplies matrices in bf16 by its own instructions."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
