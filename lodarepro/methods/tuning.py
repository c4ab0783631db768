"""Methods that train part of the model itself."""

from __future__ import annotations

import torch

from lodarepro.config import Ft
from lodarepro.methods.base import Method
from lodarepro.model import GPT2


def attach_ft(model: GPT2, config: Ft, generator: torch.Generator) -> None:
    """Full fine-tuning: every parameter trains; 354,823,168 on GPT-2 Medium (papers print 354.92M)."""
    del config, generator
    model.requires_grad_(True)


FT = Method(attach=attach_ft)
