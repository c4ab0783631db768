"""Prefixes: trained activations that a frozen model finds beside its own.

- Embeddings of virtual tokens before the context and after its separator (Hu et al. 2021, section 5.1,
  PreEmbed; Li & Liang 2021, section 7.2, embedding-only).
- Activations in every block: keys and values before all others (Li & Liang 2021, section 4.2), or the
  hidden states of virtual tokens (Hu et al. 2021, section 5.1, PreLayer).

In training the activations come from an MLP (Li & Liang 2021, section 4.3) unless `hidden` is null;
`finalize` drops it and leaves the activations themselves, which are what the papers count.

A virtual token has an id below 0 and a position, as any token; after a prefix of keys and values tokens
stand as after a cache. Virtual tokens count among the `protocol.max_length` of a sequence. It is cut at
its end in training, where those after the context go only with the whole completion, and at the
context's start in decoding, where those before it stay.

Letters: l virtual tokens or prefix positions, l_p before and l_i after the context; d width, H heads,
Dh = d / H, L blocks.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from tokenizers import Tokenizer
from torch import Tensor, nn

from lodarepro.config import PrefixEmbed, PrefixLayer
from lodarepro.data.tokenise import Layout
from lodarepro.methods.base import Method
from lodarepro.model import GPT2

DIRECT_STD = 0.02  # of activations that train themselves: GPT-2's embeddings (ours; the papers train no such ones)


class Activations(nn.Module):
    """Activations that are parameters themselves: (..., l, w)."""

    def __init__(self, states: Tensor) -> None:
        super().__init__()
        self.states = nn.Parameter(states)

    def forward(self) -> Tensor:
        """The parameters."""
        return self.states


class Inner(nn.Module):
    """The part of the MLP that all blocks share: tanh(P' W + b), from P' (l, d) to (l, hidden)."""

    def __init__(self, P: Tensor, dense: nn.Linear) -> None:
        super().__init__()
        self.P = nn.Parameter(P)
        self.dense = dense

    def forward(self) -> Tensor:
        """The activations of the hidden layer."""
        return self.dense(self.P).tanh()


class Reparameterised(nn.Module):
    """Activations (..., l, w) that an MLP gives: its hidden layer, and the output layer's columns for these.

    Columns of a linear layer start and train as a layer of their own does, so a block has its own and
    computes no other's.
    """

    def __init__(self, inner: Inner, out: nn.Linear, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.inner, self.out, self.shape = inner, out, shape

    def forward(self) -> Tensor:
        """The output layer's rows, one a position, as activations."""
        *_, positions, width = self.shape
        rows = self.out(self.inner())  # (l, ... w)
        return rows.view(positions, -1, width).transpose(0, 1).reshape(self.shape)


def activations(
    model: GPT2, number: int, shape: tuple[int, ...], *, hidden: int | None, generator: torch.Generator
) -> list[nn.Module]:
    """Modules `() -> (..., l, w)` to train.

    Args:
        model: whose device and width they have.
        number: of modules.
        shape: (..., l, w), what each gives.
        hidden: width of the MLP that they share; None: each is a parameter. With n activations a position in
            all of them it trains l d + (d + 1) hidden + (hidden + 1) n parameters.
        generator: CPU generator of the start: N(0, 1) for P' and PyTorch's default for linear layers, or
            N(0, 0.02).
    """
    device = model.wte.weight.device

    def drawn(size: tuple[int, ...], fill: Callable[[Tensor], Tensor]) -> Tensor:
        if device.type == "meta":  # nothing to draw where a model is only counted
            return torch.empty(size, device=device)
        return fill(torch.empty(size, device="cpu")).to(device)  # the same bits on every device

    def dense(d_in: int, d_out: int) -> nn.Linear:
        layer = nn.utils.skip_init(nn.Linear, d_in, d_out, device=device)
        bound = 1.0 / math.sqrt(d_in)
        layer.weight = nn.Parameter(drawn((d_out, d_in), lambda t: t.uniform_(-bound, bound, generator=generator)))
        layer.bias = nn.Parameter(drawn((d_out,), lambda t: t.uniform_(-bound, bound, generator=generator)))
        return layer

    if hidden is None:
        return [
            Activations(drawn(shape, lambda t: t.normal_(0.0, DIRECT_STD, generator=generator))) for _ in range(number)
        ]
    d, positions = model.sizes.n_embd, shape[-2]
    inner = Inner(drawn((positions, d), lambda t: t.normal_(generator=generator)), dense(d, hidden))
    return [Reparameterised(inner, dense(hidden, math.prod(shape) // positions), shape) for _ in range(number)]


def around(before: int, after: int) -> Layout:
    """Virtual tokens -1, -2, ... before each context and, the ids going on, after its separator."""
    ids = [-1 - i for i in range(before + after)]
    return Layout(
        key=f"virtual tokens {before} {after}", apply=lambda context: [*ids[:before], *context, *ids[before:]]
    )


def attach_embed(model: GPT2, config: PrefixEmbed, generator: torch.Generator) -> None:
    """Give each virtual token a trained embedding.

    d (l_p + l_i) parameters are kept: 10,240 at length 10 on GPT-2 Medium.
    """
    shape = (1, config.length + config.infix, model.sizes.n_embd)
    (model.virtual,) = activations(model, 1, shape, hidden=config.hidden, generator=generator)


def layout_embed(config: PrefixEmbed, tokenizer: Tokenizer) -> Layout:
    """Virtual tokens on both sides of each context."""
    del tokenizer
    return around(config.length, config.infix)


def attach_layer(model: GPT2, config: PrefixLayer, generator: torch.Generator) -> None:
    """Give every block trained keys and values, or trained hidden states of the virtual tokens.

    Keys and values: 2 L d l parameters are kept, 245,760 at length 5 on GPT-2 Medium; the first token stands at
    position l. Hidden states: L d (l_p + l_i) parameters, what each block reads: the embeddings, to which positions
    are added, and the outputs of all blocks but the last. Those of the last block no token reads, and at the last
    position before the completion the first prediction is made from them: a trained one would be the same for every
    context.
    """
    sizes = model.sizes
    if config.form == "hidden-states":
        shape: tuple[int, ...] = (sizes.n_layer, config.length + config.infix, sizes.n_embd)
        (model.virtual,) = activations(model, 1, shape, hidden=config.hidden, generator=generator)
        return
    shape = (2, sizes.n_head, config.length, sizes.n_embd // sizes.n_head)
    prefixes = activations(model, sizes.n_layer, shape, hidden=config.hidden, generator=generator)
    for block, prefix in zip(model.h, prefixes, strict=True):
        block.attn.prefix = prefix  # type: ignore[union-attr]
    model.offset = config.length


def layout_layer(config: PrefixLayer, tokenizer: Tokenizer) -> Layout:
    """Virtual tokens on both sides of each context; none where keys and values stand before it."""
    del tokenizer
    return around(config.length, config.infix) if config.form == "hidden-states" else around(0, 0)


@torch.no_grad()
def finalize(model: GPT2, config: PrefixEmbed | PrefixLayer) -> None:
    """Leave the activations as parameters, without what they came from."""
    del config
    if model.virtual is not None:
        model.virtual = Activations(model.virtual())
    for block in model.h:
        if (prefix := block.attn.prefix) is not None:  # type: ignore[union-attr]
            block.attn.prefix = Activations(prefix())  # type: ignore[union-attr, operator]


PREFIX_EMBED = Method(attach=attach_embed, layout=layout_embed, finalize=finalize)
PREFIX_LAYER = Method(attach=attach_layer, layout=layout_layer, finalize=finalize)
