"""Beam search as the LoRA paper's code does it (protocol section 3).

It is not the search of common libraries: exactly K candidates are kept of K x V; an ended candidate
holds its slot for one step; the n-gram block looks at generated tokens only and acts before the
softmax, so that the rest is renormalised. The original is right for one prompt at a time; here any
number of prompts gives those figures.

Letters: P prompts, K beams a prompt, R = P K rows, V vocabulary, S generated tokens.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lodarepro import config
from lodarepro.data.batch import PAD
from lodarepro.errors import RunFailed
from lodarepro.model import GPT2, Cache


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
    model: GPT2, prompts: Sequence[Sequence[int]], settings: config.Decode, *, end_ids: Sequence[int]
) -> list[Hypothesis]:
    """Search all prompts at once.

    Args:
        model: in eval mode.
        prompts: ids of each prompt, already cut to its last tokens.
        settings: beam size, penalties, lengths.
        end_ids: tokens that end a hypothesis.

    Returns:
        One hypothesis a prompt, in order.

    Raises:
        RunFailed: the logits are not numbers.
    """
    device = model.wte.weight.device
    P, K, V = len(prompts), settings.beam, model.sizes.vocab_size
    lengths = torch.tensor([len(p) for p in prompts], device=device)
    padded = torch.full((P, int(lengths.max())), PAD, device=device)
    for i, p in enumerate(prompts):
        padded[i, : len(p)] = torch.tensor(p, device=device)
    ends = torch.tensor(sorted(set(end_ids)), device=device)

    cache = Cache(model, lengths, beams=K)
    hidden = model(padded, cache=cache)
    last = hidden[torch.arange(P, device=device), lengths - 1]  # (P, d)
    logits = model.logits(last).float()  # (P, V)

    best: list[Hypothesis | None] = [None] * P
    best_score = torch.full((P,), -math.inf, device=device)
    alive = torch.arange(P, device=device)  # which prompt each present group of K rows belongs to
    generated = torch.empty(P * K, 0, dtype=torch.long, device=device)  # (R, S)
    running = torch.zeros(P, 1, device=device)  # (P, 1) at first, then (P, K): sums of log-probabilities

    for step in range(settings.max_new_tokens):
        if step > 0:
            positions = (lengths[alive].repeat_interleave(K) + step - 1)[:, None]
            hidden = model(generated[:, -1:], positions=positions, cache=cache)
            logits = model.logits(hidden[:, 0]).float()  # (R, V)
            block_ngrams(logits, generated, settings.no_repeat_ngram)
        if step < settings.min_length:
            logits[:, ends] = -math.inf
        log_p = logits.log_softmax(dim=-1).view(len(alive), -1, V)
        total = (running[:, :, None] + log_p).flatten(1)  # (P, V) at first, then (P, K V)
        running, flat = total.topk(K, dim=-1)  # (P, K)
        parent, token = flat // V, flat % V

        # At the first step all K beams grow from the prompt: their rows hold nothing to reorder.
        rows = (torch.arange(len(alive), device=device)[:, None] * K + parent).flatten()
        generated = torch.cat([generated[rows], token.view(-1, 1)], dim=1)

        length = step + 1
        last_step = length == settings.max_new_tokens
        ended = torch.isin(token, ends)
        candidate = running / length**settings.length_penalty
        if not last_step:
            candidate = candidate.masked_fill(~ended, -math.inf)
        score, slot = candidate.max(dim=-1)  # (P,); the first of equals, as a strict comparison in turn
        for group in (score > best_score[alive]).nonzero().flatten().tolist():
            i, k = int(alive[group]), int(slot[group])
            tokens = generated[group * K + k].tolist()
            best[i] = Hypothesis(tokens, float(score[group]), bool(ended[group, k]))
            best_score[i] = score[group]
        if last_step:
            break
        running = running.masked_fill(ended, -math.inf)

        # Exact early stop: log-probabilities only fall and a longer hypothesis divides by more, so
        # the best that a living beam can still reach is its sum now over the last step's length.
        bound = running.max(dim=-1).values / settings.max_new_tokens ** max(settings.length_penalty, 0.0)
        stay = (bound > best_score[alive]).nonzero().flatten()
        if len(stay) == 0:
            break
        if len(stay) < len(alive):
            kept = (stay[:, None] * K + torch.arange(K, device=device)).flatten()
            generated, running, alive, rows = generated[kept], running[stay], alive[stay], rows[kept]
            cache.select(rows, stay)
        else:
            cache.select(rows)
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
