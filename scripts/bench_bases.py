"""Time the frozen q/k/v projection and its low-rank stand-in on this CPU, d = 1024 as in GPT-2 Medium and R = 300.

    OMP_NUM_THREADS=1 python scripts/bench_bases.py [--rank 300] [--rounds 31]

The dense product (d x 3 d), the low-rank one in two products, and the dense product of the sparse stand-in take turns,
so that what else the machine does slows down all of them; medians are shown, and their ratios to the dense product. A
sparse stand-in is a dense product with zeros here and can't be faster.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import Tensor

from lodarepro import provenance
from lodarepro.config import Base
from lodarepro.methods import approx
from lodarepro.model import GPT2, Sizes
from lodarepro.model.gpt2 import Dense
from lodarepro.report.summary import markdown

WIDTH = 1024  # d of GPT-2 Medium
TOKENS = (1, 10, 64, 512, 2048)  # in one product: a decoding step of one text, of ten beams, and longer prompts


def projection(base: Base, weight: Tensor) -> Dense:
    """The q/k/v projection of a model of one block, with `base` in place of the given weight (d, 3 d)."""
    net = GPT2(Sizes(n_layer=1, n_head=16, n_embd=WIDTH, vocab_size=1, n_positions=1)).requires_grad_(False)
    (dense,) = net.denses("q")
    dense.weight.copy_(weight)
    approx.attach(net, base)
    return dense


def interleaved(calls: Mapping[str, Callable[[], object]], rounds: int, repeats: int) -> dict[str, float]:
    """Median seconds of each call over the rounds; a round times each once, `repeats` calls together."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            began = time.perf_counter()
            for _ in range(repeats):
                call()
            seconds[name].append((time.perf_counter() - began) / repeats)
    return {name: statistics.median(each) for name, each in seconds.items()}


@torch.inference_mode()
def main() -> None:
    """Print a Markdown table and the machine."""
    parser = argparse.ArgumentParser(description="time the frozen q/k/v projection and its stand-ins")
    parser.add_argument("--rank", type=int, default=300, help="R of low-rank (300)")
    parser.add_argument("--keep", type=float, default=0.4, help="fraction of entries of sparse (0.4)")
    parser.add_argument("--rounds", type=int, default=31, help="turns that the median is of (31)")
    given = parser.parse_args()

    generator = torch.Generator().manual_seed(0)
    weight = torch.empty(WIDTH, 3 * WIDTH).normal_(0.0, 0.02, generator=generator)
    layers = [
        projection(base, weight)
        for base in (Base(), Base("low-rank", rank=given.rank), Base("sparse", keep=given.keep))
    ]
    rows = [["tokens", "dense ms", "low-rank ms", "ratio", "sparse ms", "ratio"]]
    for tokens in TOKENS:
        x = torch.empty(tokens, WIDTH).normal_(generator=generator)
        calls = {name: partial(layer, x) for name, layer in zip("dls", layers, strict=True)}
        interleaved(calls, 3, 1)  # warm up
        times = interleaved(calls, given.rounds, max(1, 64 // tokens))
        shown = [f"{1000 * times['d']:.2f}"]
        for name in "ls":
            shown += [f"{1000 * times[name]:.2f}", f"{times[name] / times['d']:.2f}"]
        rows.append([str(tokens), *shown])
    macs = [layer.macs() for layer in layers]
    rows.append(
        ["MACs", f"{macs[0]:,}", f"{macs[1]:,}", f"{macs[1] / macs[0]:.2f}", f"{macs[2]:,}", f"{macs[2] / macs[0]:.2f}"]
    )
    print(markdown(rows))
    machine = provenance.machine()
    print(
        f"\nd = {WIDTH}, R = {given.rank}, s = {given.keep}; medians of {given.rounds} turns; {machine['processor']}, "
        f"{machine['cores']} cores, {torch.get_num_threads()} threads used, torch {torch.__version__}, load "
        f"{os.getloadavg()[0]:.1f}"
    )


if __name__ == "__main__":
    main()
