"""What a method costs, counted on a model without weights."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from lodarepro import config
from lodarepro.methods import attach, trained
from lodarepro.model import GPT2
from lodarepro.model.weights import sizes_of


@dataclass(frozen=True)
class Count:
    """Sizes of a model with its method attached.

    Attributes:
        trainable: parameters that train; the tied embedding once.
        total: all parameters.
        qkv_macs: multiply-accumulate operations a token in all q/k/v projections with their deltas,
            as in LoDA Table 2.
    """

    trainable: int
    total: int
    qkv_macs: int


def count_parameters(model: GPT2) -> Count:
    """Count a model to which its method is attached."""
    return Count(
        trainable=sum(p.numel() for p in trained(model).values()),
        total=sum(p.numel() for p in model.parameters()),
        qkv_macs=sum(dense.macs() for dense in model.denses("q")),
    )


def count(model: config.Model, method: object) -> Count:
    """Count a cell without weights or data, in milliseconds.

    Args:
        model: sizes.
        method: the method's config.
    """
    with torch.device("meta"):
        net = GPT2(sizes_of(model))
        attach(net, method, torch.Generator())
    return count_parameters(net)
