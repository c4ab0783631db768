"""Beam search as the LoRA paper's code does it (protocol section 3).

It is not the search of common libraries: exactly K candidates are kept of K x V; an ended candidate
holds its slot for one step; the n-gram block looks at generated tokens only and acts before the
softmax, so that the rest is renormalised. The original is right for one prompt at a time; here any
number of prompts gives those figures.

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
        score: sum of log-probabilities / length ** length_penalty.
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

    Three things are left out that no output depends on: prompts whose search is decided, beams that have ended, and
    beams that can't win any more. As log-probabilities only fall and a longer hypothesis divides by more, a beam's sum
    over the last step's length bounds what it can still reach. A beam whose bound does not exceed its prompt's best
    hypothesis is lost, and so is every candidate that ranks below its children: to leave it out frees slots for the
    lost alone.

    Args:
        model: in eval mode.
        prompts: ids of each prompt, already cut to its last tokens.
        settings: beam size, penalties, lengths.
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

    cache = Cache(model, lengths, width=width, beams=K, steps=S - 1)
    hidden = model(tokens, packing=Packing(slots.to(device), P, width), cache=cache, keep=lasts)  # (P, d)
    rows = torch.arange(P, device=device)  # (R,) places in (P, beams) that the R rows of hidden states are of

    best: list[Hypothesis | None] = [None] * P
    best_score = torch.full((P,), -math.inf, device=device)
    prompt_of = torch.arange(P, device=device)  # of the present searches, fewer and fewer
    generated = torch.empty(P, 1, 0, dtype=torch.long, device=device)  # (P, 1, 0) at first, then (P, K, length)
    running = torch.zeros(P, 1, device=device)  # (P, 1) at first, then (P, K): sums of log-probabilities

    for length in range(1, S + 1):
        logits = model.logits(hidden).float()  # (R, V)
        block_ngrams(logits, generated.flatten(0, 1)[rows], settings.no_repeat_ngram)
        if length <= settings.min_length:
            logits[:, ends] = -math.inf
        logits[:, banned] = -math.inf
        # The best K of all are among the best K of each row.
        values, token = logits.topk(K, dim=-1)  # (R, K)
        log_p = values - values[:, :1] - (logits - values[:, :1]).exp_().sum(dim=-1, keepdim=True).log_()
        total = running.new_full((running.numel(), K), -math.inf)  # (P beams, K)
        total[rows] = running.flatten()[rows, None] + log_p
        candidates = torch.zeros_like(total, dtype=torch.long)
        candidates[rows] = token
        running, flat = total.view(len(prompt_of), -1).topk(K, dim=-1)  # (P, K)
        token = candidates.view(len(prompt_of), -1).gather(1, flat)
        parent = flat // K
        past = generated.gather(1, parent[:, :, None].expand(-1, -1, length - 1))
        generated = torch.cat([past, token[:, :, None]], dim=2)  # (P, K, length)

        ended = torch.isin(token, ends)
        candidate = running / length**settings.length_penalty
        if length < S:
            candidate = candidate.masked_fill(~ended, -math.inf)
        score, slot = candidate.max(dim=-1)  # (P,); the first of equals, as a strict comparison in turn
        for search_ in (score > best_score[prompt_of]).nonzero().flatten().tolist():
            i, k = int(prompt_of[search_]), int(slot[search_])
            best[i] = Hypothesis(generated[search_, k].tolist(), float(score[search_]), bool(ended[search_, k]))
            best_score[i] = score[search_]
        if length == S:
            break

        bound = running / S ** max(settings.length_penalty, 0.0)
        alive = ~ended & (bound > best_score[prompt_of][:, None])  # (P, K)
        cache.grow(parent if length > 1 else None)
        going_on = alive.any(dim=-1).nonzero().flatten()
        if len(going_on) == 0:
            break
        if len(going_on) <= KEPT_SHARE * len(prompt_of):
            cache.select(going_on)
            generated, running, alive = generated[going_on], running[going_on], alive[going_on]
            token, prompt_of = token[going_on], prompt_of[going_on]
        rows = alive.flatten().nonzero().flatten()  # (R,)
        hidden = model(
            token.flatten()[rows],
            positions=lengths[prompt_of[rows // K]] + length - 1,
            packing=Packing(rows, len(prompt_of), K),
            cache=cache,
        )  # (R, d)
    found = [hypothesis for hypothesis in best if hypothesis is not None]
    if len(found) < P:
        raise RunFailed("beam search found no sequence of finite score: the model's logits are not numbers")
    return found


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
