"""What a method costs, counted on a model without weights."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

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
    deltas = any(len(layer.deltas) for layer in model.denses())
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
    key = _key(model, method)
    if key not in _COUNTS:
        with torch.device("meta"):
            net = GPT2(sizes_of(model))
            attach(net, method, torch.Generator())
            finalize(net, method)
        _COUNTS[key] = count_parameters(net)
    return _COUNTS[key]


def _key(model: config.Model, method: object) -> str:
    """What a count follows from: configs may hold dictionaries, so their text; a user's methods, their module too."""
    return repr((model, type(method).__module__, method))


_COUNTS: dict[str, Count] = {}
_FLOPS: dict[str, int] = {}


@dataclass(frozen=True)
class StepCost:
    """What one step takes, counted without weights or data.

    Attributes:
        flops: floating-point operations of the matrix products, two a multiply-accumulate.
        activation_bytes: of what the forward pass keeps for the backward pass, fp32, besides parameters.
    """

    flops: int
    activation_bytes: int


def training_step(model: config.Model, method: object, *, rows: int, width: int, targets: int) -> StepCost:
    """Count a step of training, forward and backward, by running it on tensors without content.

    What has no gradient costs none: the count follows from what the method left trainable, as the step itself does.

    Args:
        model: sizes.
        method: the method's config.
        rows: sequences in the batch.
        width: tokens of each.
        targets: tokens that carry loss, of which alone the output layer sees anything.
    """
    with torch.device("meta"):
        net = _without_content(model, method)
        parameters = {p.untyped_storage()._cdata for p in net.parameters()}
        kept: dict[int, Tensor] = {}

        def keep(tensor: Tensor) -> Tensor:
            kept[tensor.untyped_storage()._cdata] = tensor
            return tensor

        with FlopCounterMode(display=False) as counter:
            with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
                hidden = net(torch.zeros(rows, width, dtype=torch.long)).flatten(0, 1)[:targets]  # (N, d)
                loss = F.cross_entropy(net.logits(hidden), torch.zeros(len(hidden), dtype=torch.long), reduction="sum")
            if loss.requires_grad:
                loss.backward()
    activations = sum(t.untyped_storage().nbytes() for key, t in kept.items() if key not in parameters)
    return StepCost(int(counter.get_total_flops()), activations)


def forward_flops(model: config.Model, method: object, *, tokens: float, targets: float, context: float) -> float:
    """Floating-point operations of a forward pass over some tokens, as they are executed.

    Args:
        model: sizes.
        method: the method's config.
        tokens: that go through the blocks.
        targets: of which the output layer sees these.
        context: tokens that each attends to, on average.
    """
    # In the attention of a lone token to itself is the first of those that it attends to.
    attention = 4.0 * max(0.0, context - 1) * model.n_embd * model.n_layer  # scores and their weighted sum
    output = 2.0 * model.vocab_size * model.n_embd
    return tokens * (_flops_a_token(model, method) + attention) + targets * output


def _flops_a_token(model: config.Model, method: object) -> int:
    """Operations of the blocks for one token more; what a call does once, whatever its tokens, is not among them."""
    key = _key(model, method)
    if key not in _FLOPS:
        with torch.device("meta"), torch.no_grad():
            net = _without_content(model, method)
            finalize(net, method)
            totals = []
            for rows in (1, 2):
                with FlopCounterMode(display=False) as counter:
                    net(torch.zeros(rows, 1, dtype=torch.long))
                totals.append(int(counter.get_total_flops()))
        _FLOPS[key] = totals[1] - totals[0]
    return _FLOPS[key]


def _without_content(model: config.Model, method: object) -> GPT2:
    """A model with its method attached, on the device `meta`."""
    net = GPT2(sizes_of(model))
    attach(net, method, torch.Generator())
    if net.virtual is not None:
        # Which tokens are a method's own follows from the data; as for them, the gradient reaches the first block.
        net.virtual = None
        net.wpe.weight.requires_grad_(True)
    return net
