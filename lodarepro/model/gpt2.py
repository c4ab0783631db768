"""GPT-2 (Radford et al. 2019) in one file, with the sites where methods attach.

Parameter names and shapes are those of Hugging Face's `GPT2LMHeadModel` less its `transformer.`
prefix; dense weights are (in, out) as there, and the output layer is the embedding. The model has
no dropout of its own: the LoRA paper's code has none, and libraries' default of 0.1 trains
something else (protocol section 2).

Letters: B rows, T tokens, d width, H heads, Dh = d / H, V vocabulary, L blocks; in decoding P
prompts, K beams a prompt, S generated tokens.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

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

    def forward(self, x: Tensor) -> Tensor:
        """Map x (..., d_in) to (..., d_out)."""
        h = F.linear(x, self.weight.t(), self.bias) if self.base is None else self.base(x) + self.bias
        if self.deltas:
            branch = x if self.branch_dropout is None else self.branch_dropout(x)
            for name, delta in self.deltas.items():
                columns = self.slices[name]
                if len(self.slices) == 1:
                    h = h + delta(branch)
                else:
                    h[..., columns] += delta(branch)
        return h

    def replace(self, base: nn.Module) -> None:
        """Let a module stand for W, which the layer then no longer has."""
        self.base = base
        del self.weight

    def macs(self) -> int:
        """Multiply-accumulate operations a token: W or what stands for it, and the deltas."""
        base = self.d_in * self.d_out if self.base is None else self.base.macs()  # type: ignore[operator]
        return base + sum(delta.macs() for delta in self.deltas.values())  # type: ignore[operator]


class Attention(nn.Module):
    """Causal self-attention with a fused q/k/v projection.

    Attributes:
        prefix: site of a method: a module `() -> keys, values`, (H, l, Dh) each, that every token attends to
            before all others; None: none.
    """

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.n_head = sizes.n_head
        self.c_attn = Dense(sizes.n_embd, 3 * sizes.n_embd, "q", "k", "v")
        self.c_proj = Dense(sizes.n_embd, sizes.n_embd, "o")
        self.prefix: nn.Module | None = None

    def forward(self, x: Tensor, cache: LayerCache | None) -> Tensor:
        """Attend; x and the result are (B, T, d)."""
        B, T, d = x.shape
        q, k, v = (
            part.view(B, T, self.n_head, d // self.n_head).transpose(1, 2)  # (B, H, T, Dh)
            for part in self.c_attn(x).split(d, dim=-1)
        )
        if cache is not None and cache.prefilled:
            y = cache.attend(q, k, v)
        else:
            mask = None
            if self.prefix is not None:
                prefix_k, prefix_v = (p.to(q.dtype).expand(B, -1, -1, -1) for p in self.prefix())  # (B, H, l, Dh)
                k, v = torch.cat([prefix_k, k], dim=2), torch.cat([prefix_v, v], dim=2)  # (B, H, l + T, Dh)
                length = prefix_k.shape[2]
                mask = torch.ones(T, length + T, dtype=torch.bool, device=x.device).tril(length)
            if cache is not None:
                cache.prefill(k, v, prefix=k.shape[2] - T)
            y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None)
        return self.c_proj(y.transpose(1, 2).reshape(B, T, d))


class MLP(nn.Module):
    """The position-wise network with GPT-2's tanh form of GELU."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.c_fc = Dense(sizes.n_embd, 4 * sizes.n_embd, "up")
        self.c_proj = Dense(4 * sizes.n_embd, sizes.n_embd, "down")

    def forward(self, x: Tensor) -> Tensor:
        """Map x (B, T, d) to (B, T, d)."""
        return self.c_proj(F.gelu(self.c_fc(x), approximate="tanh"))


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

    def forward(self, x: Tensor, cache: LayerCache | None) -> Tensor:
        """Map x (B, T, d) to (B, T, d)."""
        a = self.attn(self.ln_1(x), cache)
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

    def forward(self, tokens: Tensor, *, positions: Tensor | None = None, cache: Cache | None = None) -> Tensor:
        """The final hidden states.

        Args:
            tokens: (B, T) ids; rows are padded on the right, which causal attention never sees. Ids below 0
                are those of `virtual` and come in a call without a filled cache only: none is generated.
            positions: (B, T) position ids, counted from the first token; None counts from 0.
            cache: filled by the first call (the prompts) and extended by the later ones, which take
                one token a row.

        Returns:
            (B, T, d) after the last LayerNorm; `logits` maps them to the vocabulary.
        """
        if positions is None:
            positions = torch.arange(tokens.shape[1], device=tokens.device)
        if self.virtual is None or (cache is not None and cache.prefilled):
            x = self.wte(tokens)  # (B, T, d)
            states: Sequence[Tensor] = ()
        else:
            own = tokens < 0  # (B, T)
            ids = -1 - tokens[own]  # (N,)
            # Looked up as embeddings are: an indexed tensor's gradient is summed in no fixed order by several threads.
            states = [F.embedding(ids, state) for state in self.virtual()]  # n times (N, d)
            x = self.wte(tokens.clamp(min=0))
            x = x.masked_scatter(own[..., None], states[0].to(x.dtype))
        x = x + self.wpe(positions + self.offset)
        for i, block in enumerate(self.h):
            if 0 < i < len(states):
                x = x.masked_scatter(own[..., None], states[i].to(x.dtype))
            x = block(x, None if cache is None else cache.layers[i])
        return self.ln_f(x)

    def logits(self, hidden: Tensor) -> Tensor:
        """Map hidden states (..., d) to logits (..., V); apply it only where they are needed."""
        return F.linear(hidden, self.wte.weight)

    def macs(self) -> int:
        """Multiply-accumulate operations a token: blocks and output layer, without those between tokens."""
        return sum(block.macs() for block in self.h) + self.wte.weight.numel()  # type: ignore[operator]

    def denses(self, name: str) -> Iterator[Dense]:
        """The dense layer holding the slice `name` (q, k, v, o, up, down) in each block, lowest first."""
        for block in self.h:
            yield from (dense for dense in block.denses() if name in dense.slices)  # type: ignore[operator]

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


class LayerCache:
    """Keys and values of one block: of each prompt once, and of each beam's generated tokens."""

    def __init__(self, lengths: Tensor, beams: int) -> None:
        self.lengths = lengths  # (P,)
        self.beams = beams
        self.prefilled = False
        # Set by the prefill and the first step: masks and keys have no shape before.
        self.mask = self.prompt_k = self.prompt_v = self.own_k = self.own_v = torch.empty(0)

    def prefill(self, k: Tensor, v: Tensor, *, prefix: int) -> None:
        """Keep the prompts' keys and values, (P, H, T, Dh) each, the first `prefix` of which are a method's."""
        P, H, T, Dh = k.shape
        padded = torch.arange(T, device=k.device) >= self.lengths[:, None] + prefix  # (P, T)
        self.mask = torch.zeros(P, 1, 1, T, device=k.device, dtype=k.dtype)
        self.mask.masked_fill_(padded[:, None, None, :], -math.inf)
        self.prompt_k, self.prompt_v = k, v
        self.own_k = self.own_v = k.new_empty(P * self.beams, H, 0, Dh)
        self.prefilled = True

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attention of one new token a beam over its prompt and its own tokens; all (P K, H, 1, Dh)."""
        R, H, _, Dh = q.shape
        P, K, T = R // self.beams, self.beams, self.prompt_k.shape[2]
        self.own_k = torch.cat([self.own_k, k], dim=2)  # (R, H, S, Dh)
        self.own_v = torch.cat([self.own_v, v], dim=2)
        scale = 1.0 / math.sqrt(Dh)
        # The beams of a prompt are the query positions of one product with its keys: the prompt's
        # keys are neither copied nor read once per beam.
        beams = q.view(P, K, H, Dh).transpose(1, 2)  # (P, H, K, Dh)
        prompt = beams @ self.prompt_k.transpose(-1, -2) * scale + self.mask  # (P, H, K, T)
        own = (q @ self.own_k.transpose(-1, -2) * scale).view(P, K, H, -1).transpose(1, 2)  # (P, H, K, S)
        weights = torch.cat([prompt, own], dim=-1).softmax(dim=-1)
        y = (weights[..., :T] @ self.prompt_v).transpose(1, 2).reshape(R, H, 1, Dh)
        return y + weights[..., T:].transpose(1, 2).reshape(R, H, 1, -1) @ self.own_v

    def select(self, rows: Tensor, prompts: Tensor | None) -> None:
        """Keep the given beam rows in the given order and, if given, only these prompts."""
        self.own_k = self.own_k.index_select(0, rows)
        self.own_v = self.own_v.index_select(0, rows)
        if prompts is not None:
            self.prompt_k = self.prompt_k.index_select(0, prompts)
            self.prompt_v = self.prompt_v.index_select(0, prompts)
            self.mask = self.mask.index_select(0, prompts)


class Cache:
    """The key/value cache of a search: P prompts, K beams each."""

    def __init__(self, model: GPT2, lengths: Tensor, *, beams: int) -> None:
        """Make an empty cache.

        Args:
            model: the model that will fill it.
            lengths: (P,) tokens of each prompt; the first forward call takes the prompts.
            beams: K; the later calls take one token for each of P K rows.
        """
        self.layers = [LayerCache(lengths, beams) for _ in range(model.sizes.n_layer)]

    @property
    def prefilled(self) -> bool:
        """Whether the prompts are in it."""
        return self.layers[0].prefilled

    def select(self, rows: Tensor, prompts: Tensor | None = None) -> None:
        """Reorder the beams.

        Args:
            rows: (P' K,) rows of the present beams, in the new order.
            prompts: (P',) the prompts that stay, where some leave.
        """
        for layer in self.layers:
            layer.select(rows, prompts)
