"""GPT-2 (Radford et al. 2019) in one file, with the sites where methods attach.

Parameter names and shapes are those of Hugging Face's `GPT2LMHeadModel` less its `transformer.`
prefix; dense weights are (in, out) as there, and the output layer is the embedding. Dropout of the
model's own is 0 unless it is set: the LoRA paper's code has none, and libraries' default of 0.1 trains
something else (protocol section 2).

Letters: B rows, T tokens, N tokens that are not padding, d width, H heads, Dh = d / H, V vocabulary, L
blocks; in decoding P prompts, K beams a prompt, C columns of a cache: tokens that can be attended to.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import Function

from lodarepro.model.products import Product

LAYER_NORM_EPS = 1e-5  # as in every published GPT-2 checkpoint
INIT_STD = 0.02  # GPT-2's initialisation; residual projections are scaled by 1 / sqrt(2 L)


@dataclass(frozen=True)
class Sizes:
    """The shape of a GPT-2.

    Attributes:
        n_layer: blocks L.
        n_head: heads H; divides `n_embd`.
        n_embd: width d.
        vocab_size: entries V.
        n_positions: longest sequence, tokens.
    """

    n_layer: int
    n_head: int
    n_embd: int
    vocab_size: int
    n_positions: int


class _Taken(Function):
    """Rows at places, each of which is named once, so that the gradient is a copy and not a sum."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, places: Tensor) -> Tensor:
        ctx.save_for_backward(places)
        ctx.rows = x.shape[0]
        return x.index_select(0, places)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor, None]:
        (grad,) = grads
        (places,) = ctx.saved_tensors
        return grad.new_zeros(ctx.rows, grad.shape[1]).index_copy_(0, places, grad), None


def take(x: Tensor, places: Tensor) -> Tensor:
    """The rows of x (N, w) at places (M,), each named once: (M, w)."""
    taken: Tensor = _Taken.apply(x, places) if torch.is_grad_enabled() else x.index_select(0, places)
    return taken


@dataclass(frozen=True)
class Packing:
    """Where the tokens of a packed batch stand: only attention sees rows, all else runs on the N tokens alone.

    Attributes:
        slots: (N,) place of each token in its padded batch, row after row: row * width + column.
        rows: B.
        width: T.
    """

    slots: Tensor
    rows: int
    width: int

    def pad(self, x: Tensor) -> Tensor:
        """Packed (N, w) to padded (B, T, w), zero where no token is."""
        padded = x.new_zeros(self.rows * self.width, x.shape[-1]).index_copy(0, self.slots, x)
        return padded.view(self.rows, self.width, -1)

    def unpad(self, x: Tensor) -> Tensor:
        """Padded (B, T, w) to packed (N, w)."""
        return take(x.flatten(0, 1), self.slots)


class Dense(nn.Module):
    """A dense layer `h = x W + b`, the site of parallel deltas and of what stands for W.

    A fused projection (q, k and v in one product) has several named column slices; each may carry
    one delta, a module `x (..., d_in) -> dh (..., width of the slice)` with a method `macs()`.

    Attributes:
        d_in, d_out: widths of input and output.
        slices: name of a slice (`q`, `k`, `v`, `o`, `up`, `down`) to its columns.
        base: a module `x (..., d_in) -> (..., d_out)` with a method `macs()` that stands for W (not for
            b), or None; `replace` puts it there.
        deltas: name of a slice to its delta; empty before a method attaches.
        branch_dropout: applied once to the input that all deltas of this layer share, so that they
            see one mask, as in the LoRA paper's code.
    """

    def __init__(self, d_in: int, d_out: int, *names: str) -> None:
        super().__init__()
        self.d_in, self.d_out = d_in, d_out
        self.weight = nn.Parameter(torch.empty(d_in, d_out))
        self.bias = nn.Parameter(torch.zeros(d_out))
        width = d_out // len(names)
        self.slices = {name: slice(i * width, (i + 1) * width) for i, name in enumerate(names)}
        self.base: nn.Module | None = None
        self.deltas = nn.ModuleDict()
        self.branch_dropout: nn.Dropout | None = None
        self.product: Product | None = None  # with W, where `GPT2.pack` made one

    def forward(self, x: Tensor) -> Tensor:
        """Map x (..., d_in) to (..., d_out)."""
        parts = self.parts(x)
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)

    def parts(self, x: Tensor) -> list[Tensor]:
        """Map x (..., d_in) to the layer's slices in their order, which saves putting them together."""
        if self.product is not None:
            h = self.product(x, self.bias)
        elif self.base is not None:
            h = self.base(x) + self.bias
        else:
            h = F.linear(x, self.weight.t(), self.bias)
        if not self.deltas:
            return list(h.chunk(len(self.slices), dim=-1))
        branch = x if self.branch_dropout is None else self.branch_dropout(x)
        return [
            part + self.deltas[name](branch) if name in self.deltas else part
            for name, part in zip(self.slices, h.chunk(len(self.slices), dim=-1), strict=True)
        ]

    def replace(self, base: nn.Module) -> None:
        """Let a module stand for W, which the layer then no longer has."""
        self.base = base
        del self.weight

    def macs(self) -> int:
        """Multiply-accumulate operations a token: W or what stands for it, and the deltas."""
        base = self.d_in * self.d_out if self.base is None else self.base.macs()  # type: ignore[operator]
        return base + sum(delta.macs() for delta in self.deltas.values())  # type: ignore[operator]


def _attention(q: Tensor, k: Tensor, v: Tensor, *, mask: Tensor | None, dropout: float) -> Tensor:
    """Attention of tokens to those before them, or to what a mask says; (B, H, T, Dh)."""
    if q.device.type == "cpu" and q.dtype == torch.bfloat16:
        # PyTorch's kernel for CPUs takes five times longer for a backward pass in bf16 than in fp32.
        with torch.autocast("cpu", enabled=False):
            return _attention(q.float(), k.float(), v.float(), mask=mask, dropout=dropout)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None, dropout_p=dropout)


def _packs(W: Tensor, dtype: torch.dtype, training: bool) -> bool:
    return Product.pays(W, dtype) and not (training and W.requires_grad)


class Attention(nn.Module):
    """Causal self-attention with a fused q/k/v projection.

    Attributes:
        prefix: site of a method: a module `() -> keys, values`, (H, l, Dh) each, that every token attends to
            before all others; None: none.
        dropout: of attention weights and of the output, in training.
    """

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.n_head = sizes.n_head
        self.c_attn = Dense(sizes.n_embd, 3 * sizes.n_embd, "q", "k", "v")
        self.c_proj = Dense(sizes.n_embd, sizes.n_embd, "o")
        self.prefix: nn.Module | None = None
        self.dropout = 0.0

    def forward(self, x: Tensor, *, packing: Packing | None, cache: LayerCache | None, keep: Tensor | None) -> Tensor:
        """Attend; x is (B, T, d), or (N, d) if packed, and so is the result, or (M, d) of the M tokens to `keep`."""
        parts = self.c_attn.parts(x)
        if packing is not None:
            parts = [packing.pad(part) for part in parts]
        B, T, d = parts[0].shape
        q, k, v = (part.view(B, T, self.n_head, d // self.n_head).transpose(1, 2) for part in parts)  # (B, H, T, Dh)
        p = self.dropout if self.training else 0.0
        if cache is not None and cache.filled:
            y = F.scaled_dot_product_attention(q, *cache.extend(k, v), attn_mask=cache.whole.mask(q))
        else:
            mask = None
            if self.prefix is not None:
                prefix_k, prefix_v = (part.to(q.dtype).expand(B, -1, -1, -1) for part in self.prefix())  # (B, H, l, Dh)
                k, v = torch.cat([prefix_k, k], dim=2), torch.cat([prefix_v, v], dim=2)  # (B, H, l + T, Dh)
                length = prefix_k.shape[2]
                mask = torch.ones(T, length + T, dtype=torch.bool, device=x.device).tril(length)
            if cache is not None:
                cache.fill(k, v)
            y = _attention(q, k, v, mask=mask, dropout=p)
        y = y.transpose(1, 2).reshape(B, T, d)
        if packing is not None:
            y = packing.unpad(y)
        if keep is not None:
            y = take(y.flatten(0, -2), keep)
        return F.dropout(self.c_proj(y), p)


class MLP(nn.Module):
    """The position-wise network with GPT-2's tanh form of GELU.

    Attributes:
        dropout: of the output, in training.
    """

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.c_fc = Dense(sizes.n_embd, 4 * sizes.n_embd, "up")
        self.c_proj = Dense(4 * sizes.n_embd, sizes.n_embd, "down")
        self.dropout = 0.0

    def forward(self, x: Tensor) -> Tensor:
        """Map x (..., d) to (..., d)."""
        return F.dropout(self.c_proj(F.gelu(self.c_fc(x), approximate="tanh")), self.dropout, self.training)


class Block(nn.Module):
    """One pre-norm transformer block.

    Attributes:
        after_attn, after_mlp: sites of sequential methods, applied to a sub-layer's output before
            its residual sum; None leaves it as it is. Each is a module with a method `macs()`.
        after_block: likewise, applied to the block's output.
    """

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(sizes.n_embd, eps=LAYER_NORM_EPS)
        self.attn = Attention(sizes)
        self.ln_2 = nn.LayerNorm(sizes.n_embd, eps=LAYER_NORM_EPS)
        self.mlp = MLP(sizes)
        self.after_attn: nn.Module | None = None
        self.after_mlp: nn.Module | None = None
        self.after_block: nn.Module | None = None

    def forward(
        self,
        x: Tensor,
        *,
        packing: Packing | None = None,
        cache: LayerCache | None = None,
        keep: Tensor | None = None,
    ) -> Tensor:
        """Map x (B, T, d), or (N, d) if packed, to the same shape, or to (M, d) of the M tokens to `keep`."""
        a = self.attn(self.ln_1(x), packing=packing, cache=cache, keep=keep)
        if keep is not None:
            x = take(x.flatten(0, -2), keep)
        x = x + (a if self.after_attn is None else self.after_attn(a))
        m = self.mlp(self.ln_2(x))
        x = x + (m if self.after_mlp is None else self.after_mlp(m))
        return x if self.after_block is None else self.after_block(x)

    def denses(self) -> tuple[Dense, ...]:
        """The block's dense layers in the order of the computation."""
        return (self.attn.c_attn, self.attn.c_proj, self.mlp.c_fc, self.mlp.c_proj)

    def macs(self) -> int:
        """Multiply-accumulate operations a token, without those between tokens."""
        inserted = [site for site in (self.after_attn, self.after_mlp, self.after_block) if site is not None]
        return sum(part.macs() for part in (*self.denses(), *inserted))  # type: ignore[operator]


class GPT2(nn.Module):
    """The language model: embeddings, blocks, final LayerNorm; the output layer is the embedding.

    Attributes:
        virtual: site of a method: a module that owns the tokens -1, -2, ..., -l, which a method's layout may put
            into a context: `() -> (n, l, d)`, the hidden states of its l tokens before each of the first n blocks,
            the first of them embeddings to which positions are added. None: there are no such tokens.
        offset: position of the first token; prefixes of keys and values stand before it.
        dropout: of the sum of the embeddings, in training; `set_dropout` sets all of the model's own.
    """

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.sizes = sizes
        self.wte = nn.Embedding(sizes.vocab_size, sizes.n_embd)
        self.wpe = nn.Embedding(sizes.n_positions, sizes.n_embd)
        self.h = nn.ModuleList(Block(sizes) for _ in range(sizes.n_layer))
        self.ln_f = nn.LayerNorm(sizes.n_embd, eps=LAYER_NORM_EPS)
        self.virtual: nn.Module | None = None
        self.offset = 0
        self.dropout = 0.0
        self.output: Product | None = None  # with the output layer, where `pack` made one

    def forward(
        self,
        tokens: Tensor,
        *,
        positions: Tensor | None = None,
        packing: Packing | None = None,
        cache: Cache | None = None,
        keep: Tensor | None = None,
    ) -> Tensor:
        """The final hidden states.

        Args:
            tokens: (B, T) ids, rows padded on the right, which causal attention never sees; or (N,) ids of a packed
                batch. Ids below 0 are those of `virtual` and come in a call without a filled cache only: none is
                generated.
            positions: position ids of the tokens, counted from the first of their row; None: from 0, and from 0 in
                each row if packed.
            packing: where packed tokens stand.
            cache: filled by the first call (the prompts, B = P) and extended by the later ones, which take a token
                for each beam (B = P, T = K).
            keep: (M,) the tokens whose states are asked for, as indices of the tokens row after row; None: all. The
                last block's MLP runs on those alone.

        Returns:
            (B, T, d), or (N, d) if packed, or (M, d), after the last LayerNorm; `logits` maps them to the vocabulary.
        """
        if positions is None:
            width = tokens.shape[1] if packing is None else packing.width
            positions = torch.arange(width, device=tokens.device)
            if packing is not None:
                positions = positions[packing.slots % width]
        if self.virtual is None or (cache is not None and cache.filled):
            x = self.wte(tokens)  # (B, T, d) or (N, d)
            states: Sequence[Tensor] = ()
        else:
            own = tokens < 0  # as tokens
            ids = -1 - tokens[own]
            # Looked up as embeddings are: an indexed tensor's gradient is summed in no fixed order by several threads.
            states = [F.embedding(ids, state) for state in self.virtual()]  # n times (tokens of its own, d)
            x = self.wte(tokens.clamp(min=0))
            x = x.masked_scatter(own[..., None], states[0].to(x.dtype))
        x = F.dropout(x + self.wpe(positions + self.offset), self.dropout, self.training)
        for i, block in enumerate(self.h):
            if 0 < i < len(states):
                x = x.masked_scatter(own[..., None], states[i].to(x.dtype))
            last = i + 1 == len(self.h)
            layer_cache = None if cache is None else cache.layers[i]
            x = block(x, packing=packing, cache=layer_cache, keep=keep if last else None)
        return self.ln_f(x)

    def logits(self, hidden: Tensor) -> Tensor:
        """Map hidden states (..., d) to logits (..., V); apply it only where they are needed."""
        return F.linear(hidden, self.wte.weight) if self.output is None else self.output(hidden)

    def set_dropout(self, p: float) -> None:
        """Set the dropout of the model's own, on embeddings, attention weights and sub-layers' outputs."""
        for module in self.modules():
            if isinstance(module, GPT2 | Attention | MLP):
                module.dropout = p

    def pack(self, dtype: torch.dtype, *, training: bool) -> None:
        """Keep copies of the large frozen matrices as this machine multiplies by them fastest.

        Args:
            dtype: of the products; the caller runs the model under autocast to it.
            training: trained matrices stay as they are, and gradients are asked for; else none changes or has a
                gradient, and the output layer's products are fp32: a search compares logits, and numbers around 100
                have steps of 0.5 in bf16.
        """
        self.unpack()
        for dense in self.denses():
            if dense.base is None and _packs(dense.weight, dtype, training):
                dense.product = Product(dense.weight, dtype, gradient=training)
        output = dtype if training else torch.float32
        if _packs(self.wte.weight, output, training):
            self.output = Product(self.wte.weight.t(), output, gradient=training)

    def unpack(self) -> None:
        """Drop the copies."""
        self.output = None
        for dense in self.denses():
            dense.product = None

    def macs(self) -> int:
        """Multiply-accumulate operations a token: blocks and output layer, without those between tokens."""
        return sum(block.macs() for block in self.h) + self.wte.weight.numel()  # type: ignore[operator]

    def denses(self, name: str | None = None) -> Iterator[Dense]:
        """The dense layers, block after block, or of each the one holding the slice `name` (q, k, v, o, up, down)."""
        for block in self.h:
            for dense in block.denses():  # type: ignore[operator]
                if name is None or name in dense.slices:
                    yield dense

    @torch.no_grad()
    def initialise(self, generator: torch.Generator) -> None:
        """Random weights as GPT-2's, for pretraining from scratch (Radford et al. 2019, section 2.3)."""
        for name, p in self.named_parameters():
            if name.endswith("bias"):
                p.zero_()
            elif ".ln_" in name or name.startswith("ln_f"):
                p.fill_(1.0)
            else:
                residual = name.endswith("c_proj.weight")
                std = INIT_STD / math.sqrt(2 * self.sizes.n_layer) if residual else INIT_STD
                p.normal_(0.0, std, generator=generator)


class Cache:
    """Keys and values of a search: those of each prompt once, and those of every token that a beam was extended by.

    Nothing is moved when beams are reordered: a token's keys and values stay in the column where it was generated, the
    beams of a prompt share all columns, and a mask says which of them are a beam's own past.

    Attributes:
        layers: one for each block.
        past: (P, K, C) bool, the columns that a beam attends to; filled from the left.
        columns: how many of the C are in use.
    """

    def __init__(self, model: GPT2, lengths: Tensor, *, width: int, beams: int, steps: int) -> None:
        """Make an empty cache.

        Args:
            model: the model that will fill it.
            lengths: (P,) tokens of each prompt.
            width: T, tokens to which the prompts are padded.
            beams: K; the calls after the first take up to K tokens a prompt.
            steps: how many of those calls there will be at most.
        """
        prefix = model.h[0].attn.prefix  # type: ignore[union-attr]
        ahead = 0 if prefix is None else prefix()[0].shape[1]  # type: ignore[operator]
        real = torch.arange(ahead + width, device=lengths.device) < lengths[:, None] + ahead  # (P, l + T)
        self.past = torch.zeros(
            len(lengths), beams, ahead + width + beams * steps, dtype=torch.bool, device=real.device
        )
        self.past[:, :, : ahead + width] = real[:, None]
        self.columns = ahead + width
        self.layers = [LayerCache(self) for _ in range(model.sizes.n_layer)]
        self._additive: Tensor | None = None

    @property
    def filled(self) -> bool:
        """Whether the prompts are in it."""
        return self.layers[0].filled

    def grow(self, parents: Tensor | None) -> None:
        """Make room for one token more of each beam, which it attends to itself.

        Args:
            parents: (P, K) the beam that each beam goes on from; None where all go on from the prompt.
        """
        if parents is not None:
            used = self.past[:, :, : self.columns]
            self.past[:, :, : self.columns] = used.gather(1, parents[:, :, None].expand(-1, -1, self.columns))
        beams = torch.arange(self.past.shape[1], device=self.past.device)
        self.past[:, beams, self.columns + beams] = True
        self.columns += len(beams)
        self._additive = None

    def mask(self, q: Tensor) -> Tensor:
        """What is added to the products of queries and keys, (P, 1, K, columns in use); one for all blocks."""
        if self._additive is None or self._additive.dtype != q.dtype:
            used = self.past[:, None, :, : self.columns]
            self._additive = torch.zeros(used.shape, dtype=q.dtype, device=q.device).masked_fill_(~used, -math.inf)
        return self._additive

    def select(self, prompts: Tensor) -> None:
        """Keep only some prompts, (P',) their places."""
        self.past = self.past.index_select(0, prompts)
        self._additive = None
        for layer in self.layers:
            layer.select(prompts)


class LayerCache:
    """Keys and values of one block, (P, H, C, Dh) each."""

    def __init__(self, whole: Cache) -> None:
        self.whole = whole
        self.keys = self.values = torch.empty(0)  # there is no dtype before the first keys

    @property
    def filled(self) -> bool:
        """Whether the prompts are in it."""
        return self.keys.numel() > 0

    def fill(self, k: Tensor, v: Tensor) -> None:
        """Keep the prompts' keys and values with a method's own before them, (P, H, l + T, Dh) each."""
        P, H, T, Dh = k.shape
        self.keys, self.values = (k.new_empty(P, H, self.whole.past.shape[2], Dh) for _ in range(2))
        self.keys[:, :, :T], self.values[:, :, :T] = k, v

    def extend(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Add those of one token a beam, (P, H, K, Dh) each, in the columns of the last `grow`; give all in use."""
        end = self.whole.columns
        new = slice(end - k.shape[2], end)
        self.keys[:, :, new], self.values[:, :, new] = k, v
        return self.keys[:, :, :end], self.values[:, :, :end]

    def select(self, prompts: Tensor) -> None:
        """As `Cache.select`."""
        self.keys, self.values = self.keys.index_select(0, prompts), self.values.index_select(0, prompts)
