"""Beam search as the LoRA paper's code does it (protocol section 3), and as Li & Liang's does.

Neither is the search of common libraries. The LoRA code keeps exactly K candidates of K x V; an ended candidate
holds its slot for one step; the n-gram block looks at generated tokens only and acts before the
softmax, so that the rest is renormalised. The original is right for one prompt at a time; here any
number of prompts gives those figures. Li & Liang 2021 used transformers 3.2.0: K candidates that have not ended are
kept of the 2 K best, ended ones go into a pool of the K best, divided by a length that counts the prompt and not the
end token, and nothing is renormalised.

Letters: P prompts, K beams a prompt, R rows that the model is run on, V vocabulary, d width, S steps.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lodarepro import config
from lodarepro.errors import RunFailed
from lodarepro.model import GPT2, Cache
from lodarepro.model.gpt2 import Packing

KEPT_SHARE = 0.75  # of the searches: once no more than this go on, the others' keys and values are dropped


@dataclass(frozen=True)
class Hypothesis:
    """The best sequence found for one prompt.

    Attributes:
        tokens: generated ids, with the end token if `finished`.
        score: sum of log-probabilities / length ** length_penalty, by the search's count of the length.
        finished: whether it ended by itself rather than at the last step.
    """

    tokens: list[int]
    score: float
    finished: bool


@torch.inference_mode()
def search(
    model: GPT2,
    prompts: Sequence[Sequence[int]],
    settings: config.Decode,
    *,
    end_ids: Sequence[int],
    banned_ids: Sequence[int] = (),
) -> list[Hypothesis]:
    """Search all prompts at once.

    Args:
        model: in eval mode.
        prompts: ids of each prompt, already cut to its last tokens.
        settings: whose search, beam size, penalties, lengths.
        end_ids: tokens that end a hypothesis.
        banned_ids: tokens that are never generated.

    Returns:
        One hypothesis a prompt, in order.

    Raises:
        RunFailed: the logits are not numbers.
    """
    device = model.wte.weight.device
    P, K, S = len(prompts), settings.beam, settings.max_new_tokens
    lengths = torch.tensor([len(p) for p in prompts])
    width = int(lengths.max())
    slots = (torch.arange(width) < lengths[:, None]).flatten().nonzero()[:, 0]  # (N,)
    tokens = torch.tensor([token for p in prompts for token in p], device=device)  # (N,)
    lasts = (lengths.cumsum(0) - 1).to(device)  # (P,)
    lengths = lengths.to(device)
    ends = torch.tensor(sorted(set(end_ids)), dtype=torch.long, device=device)
    banned = torch.tensor(sorted(set(banned_ids)), dtype=torch.long, device=device)
    choose = (_LoraChoice if settings.search == "lora" else _PoolChoice)(settings, lengths, ends)

    cache = Cache(model, lengths, width=width, beams=K, steps=S - 1)
    hidden = model(tokens, packing=Packing(slots.to(device), P, width), cache=cache, keep=lasts)  # (P, d)
    rows = torch.arange(P, device=device)  # (R,) places in (P, beams) that the R rows of hidden states are of
    found: list[Hypothesis | None] = [None] * P
    present = torch.arange(P, device=device)  # the prompts whose searches go on
    generated = torch.empty(P, 1, 0, dtype=torch.long, device=device)  # (P, 1, 0) at first, then (P, K, length)
    running = torch.zeros(P, 1, device=device)  # (P, 1) at first, then (P, K): sums of log-probabilities

    for length in range(1, S + 1):
        with torch.autocast(device.type, enabled=False):
            logits = model.logits(hidden.float())  # (R, V)
        before = logits.logsumexp(dim=-1, keepdim=True) if not choose.renormalised else None
        block_ngrams(logits, generated.flatten(0, 1)[rows], settings.no_repeat_ngram)
        if settings.min_length:
            so_far = choose.counted(lengths[present[rows // running.shape[1]]]) + length - 1  # (R, 1)
            logits[:, ends] = torch.where(so_far < settings.min_length, -math.inf, logits[:, ends])
        logits[:, banned] = -math.inf
        # The best of all are among the best of each row.
        values, token = logits.topk(min(choose.candidates, logits.shape[1]), dim=-1)  # (R, candidates)
        if before is None:
            top = values[:, :1]
            log_p = (values - top) - (logits - top).exp_().sum(dim=-1, keepdim=True).log_()
        else:
            log_p = values - before
        total = running.new_full((running.numel(), values.shape[1]), -math.inf)  # (P beams, candidates)
        total[rows] = running.flatten()[rows, None] + log_p
        of_rows = torch.zeros_like(total, dtype=torch.long)
        of_rows[rows] = token
        sums, flat = total.view(len(present), -1).topk(choose.candidates, dim=-1)  # (P, candidates)
        token = of_rows.view(len(present), -1).gather(1, flat)
        parent = flat // values.shape[1]

        new, place, score, kept, alive = choose(length, present, sums, token)
        texts = torch.cat([generated[new, parent[new, place]], token[new, place, None]], dim=1)
        finished = torch.isin(texts[:, -1], ends)
        for i, *found_now in zip(*(x.tolist() for x in (present[new], texts, score, finished)), strict=True):
            found[i] = Hypothesis(*found_now)
        running, parent, token = (x.gather(1, kept) for x in (sums, parent, token))  # (P, K)
        going_on = alive.any(dim=-1).nonzero().flatten()
        if len(going_on) == 0 or length == S:
            break
        past = generated.gather(1, parent[:, :, None].expand(-1, -1, length - 1))
        generated = torch.cat([past, token[:, :, None]], dim=2)  # (P, K, length)
        cache.grow(parent if length > 1 else None)
        if len(going_on) <= KEPT_SHARE * len(present):
            cache.select(going_on)
            generated, running, alive = generated[going_on], running[going_on], alive[going_on]
            token, present = token[going_on], present[going_on]
        rows = alive.flatten().nonzero().flatten()  # (R,)
        hidden = model(
            token.flatten()[rows],
            positions=lengths[present[rows // K]] + length - 1,
            packing=Packing(rows, len(present), K),
            cache=cache,
        )  # (R, d)
    complete = [hypothesis for hypothesis in found if hypothesis is not None]
    if len(complete) < P:
        raise RunFailed("beam search found no sequence of finite score: the model's logits are not numbers")
    return complete


class _LoraChoice:
    """Which candidates go on, in the LoRA code's search.

    Three things are left out that no output depends on: prompts whose search is decided, beams that have ended, and
    beams that can't win any more. As log-probabilities only fall and a longer hypothesis divides by more, a beam's sum
    over the last step's length bounds what it can still reach. A beam whose bound does not exceed its prompt's best
    hypothesis is lost, and so is every candidate that ranks below its children: to leave it out frees slots for the
    lost alone.
    """

    renormalised = True

    def __init__(self, settings: config.Decode, lengths: Tensor, ends: Tensor) -> None:
        self.candidates, self.steps, self.penalty = settings.beam, settings.max_new_tokens, settings.length_penalty
        self.ends = ends
        self.best = torch.full(lengths.shape, -math.inf, device=lengths.device)

    def counted(self, prompts: Tensor) -> Tensor:
        """What of prompts of these lengths counts for `decode.min_length`, as (R, 1)."""
        return torch.zeros_like(prompts)[:, None]

    def __call__(self, length: int, present: Tensor, sums: Tensor, token: Tensor) -> _Chosen:
        ended = torch.isin(token, self.ends)  # (P, K)
        last = length == self.steps
        score, place = (sums / length**self.penalty).masked_fill(~(ended | last), -math.inf).max(dim=-1)  # (P,)
        better = score > self.best[present]  # strictly, and of equals the first
        self.best[present] = torch.where(better, score, self.best[present])
        bound = sums / self.steps ** max(self.penalty, 0.0)
        alive = ~ended & (bound > self.best[present, None])
        new = better.nonzero()[:, 0]
        return new, place[new], score[new], torch.arange(sums.shape[1], device=sums.device).expand_as(sums), alive


class _PoolChoice:
    """Which candidates go on, in the search of transformers 3.2.0 without early stopping.

    Of 2 K candidates the K best that have not ended go on; one that has ended goes into the pool if it is among the K
    best. A search is done once the pool is full and its worst is not below the best candidate's sum over the length
    so far; if it is never done, the last beams go into the pool too.
    """

    renormalised = False

    def __init__(self, settings: config.Decode, lengths: Tensor, ends: Tensor) -> None:
        self.beam, self.steps, self.penalty = settings.beam, settings.max_new_tokens, settings.length_penalty
        self.candidates = 2 * settings.beam
        self.ends, self.lengths = ends, lengths
        self.pool = torch.full((len(lengths), self.beam), -math.inf, device=lengths.device)  # scores, best first

    def counted(self, prompts: Tensor) -> Tensor:
        """As `_LoraChoice.counted`: all of it."""
        return prompts[:, None]

    def __call__(self, length: int, present: Tensor, sums: Tensor, token: Tensor) -> _Chosen:
        K, last = self.beam, length == self.steps
        ended = torch.isin(token, self.ends)  # (P, 2 K)
        alive_sums, kept = sums.masked_fill(ended, -math.inf).topk(K, dim=-1)  # (P, K)
        whole = (self.lengths[present, None] + length - 1).float()  # without the end token
        divisor = whole**self.penalty
        scores = (sums / divisor).masked_fill(~ended, -math.inf)
        scores[:, K:] = -math.inf
        before = self.pool[present]
        pool = torch.cat([before, scores], dim=1).topk(K, dim=-1).values
        done = pool[:, -1] >= (sums / divisor)[:, 0]
        if last:
            alive_scores = alive_sums / (whole + 1) ** self.penalty
            scores = scores.scatter(1, kept, alive_scores.masked_fill(done[:, None], -math.inf))
        self.pool[present] = pool
        score, place = scores.max(dim=-1)
        new = (score > before[:, 0]).nonzero()[:, 0]
        return new, place[new], score[new], kept, (alive_sums > -math.inf) & ~done[:, None]


_Chosen = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]
"""(n,) the present prompts that have a better hypothesis than before, its place among their candidates, its score; then
(P, K) the candidates that become the beams, and on which of them the model is to be run"""


def block_ngrams(logits: Tensor, generated: Tensor, n: int) -> None:
    """Bar, in place, every token that would repeat an n-gram of a row's generated tokens.

    Args:
        logits: (R, V).
        generated: (R, S) ids.
        n: size of the n-grams; 0 bars nothing.
    """
    if n == 0 or generated.shape[1] < n:
        return
    grams = generated.unfold(1, n, 1)  # (R, S - n + 1, n)
    tail = generated[:, None, generated.shape[1] - n + 1 :]  # (R, 1, n - 1)
    repeats = (grams[..., :-1] == tail).all(dim=-1)  # (R, S - n + 1)
    row, place = repeats.nonzero(as_tuple=True)
    logits[row, grams[row, place, -1]] = -math.inf
