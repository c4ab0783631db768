"""What a method costs, counted on a model without weights."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch

from lodarepro import config
from lodarepro.methods import attach, finalize, mergeable, trained
from lodarepro.model import GPT2, Sizes
from lodarepro.model.weights import sizes_of


@dataclass(frozen=True)
class Count:
    """Sizes of a model with its method attached. A MAC is a multiply-accumulate operation of a matrix product.

    MACs of element-wise steps are not counted, nor those of attention between tokens: they grow with the text, and
    only a prefix changes them.

    Attributes:
        trainable: parameters that train; the tied embedding once.
        total: all parameters.
        pretrained: parameters of the model before the method was attached.
        adapter_bytes: of the trained tensors as an adapter file holds them, fp32; without the file's header, which
            names them and describes the method (some kB).
        qkv_macs: MACs a token in all q/k/v projections with what is attached there, as in LoDA Table 2.
        qkv_macs_merged: with the deltas folded into the weights; None: that can't be, or there are no deltas.
        macs: MACs a token in all blocks and the output layer.
    """

    trainable: int
    total: int
    pretrained: int
    adapter_bytes: int
    qkv_macs: int
    qkv_macs_merged: int | None
    macs: int

    @property
    def share(self) -> float:
        """Parameters that train, in per cent of the pretrained model's, which are those of full fine-tuning."""
        return 100 * self.trainable / self.pretrained


def count_parameters(model: GPT2) -> Count:
    """Count a model to which its method is attached."""
    dense = list(model.denses("q"))
    deltas = any(len(layer.deltas) for block in model.h for layer in block.denses())  # type: ignore[operator]
    trains = trained(model).values()
    return Count(
        trainable=sum(p.numel() for p in trains),
        total=sum(p.numel() for p in model.parameters()),
        pretrained=_pretrained(model.sizes),
        adapter_bytes=sum(p.nbytes for p in trains),
        qkv_macs=sum(layer.macs() for layer in dense),
        # Merged, a model is a plain GPT-2.
        qkv_macs_merged=sum(d.d_in * d.d_out for d in dense) if deltas and mergeable(model) is None else None,
        macs=model.macs(),
    )


@cache
def _pretrained(sizes: Sizes) -> int:
    with torch.device("meta"):
        return sum(p.numel() for p in GPT2(sizes).parameters())


def count(model: config.Model, method: object) -> Count:
    """Count what is kept of a cell after training, without weights or data, in a fraction of a second.

    Published counts are of what is kept: what a prefix is made from while it trains is dropped.

    Args:
        model: sizes.
        method: the method's config.
    """
    with torch.device("meta"):
        net = GPT2(sizes_of(model))
        attach(net, method, torch.Generator())
        finalize(net, method)
    return count_parameters(net)
