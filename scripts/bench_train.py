"""Time a step of training with LoRA: ours beside `transformers` + `peft`, and beside the LoRA paper's own code.

    python scripts/bench_train.py --data FOLDER --tokenizer tokenizer.json [--original LoRA] \
        [--out results/benchmarks/train.md]

All train the same GPT-2 on the same batches of real E2E pairs, from the same weights, with LoRA of rank 4 and dropout
0.1 and no dropout of the model's own. A step is all of it: laying out the batch, forward pass, loss, backward pass,
update. What differs is what each makes of it:

    ours       no padding outside attention, output layer on the tokens that carry loss, label smoothing 0.1
    peft       padding to the longest pair of the batch, `transformers`' own loss, which has no smoothing, fused AdamW
    original   padding to 512, its own AdamW, label smoothing 0.1 (microsoft/LoRA, examples/NLG, `gpt2_ft.py`)
"""

from __future__ import annotations

import argparse
import sys
from argparse import Namespace
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import peft
import torch
from contest import (
    OURS,
    Ceiling,
    Done,
    Entrant,
    Report,
    argument_parser,
    contest,
    data_of_original,
    described,
    drawn_ids,
    model_of_original,
    model_of_transformers,
    of_original,
    read_e2e,
    read_tokenizer,
    run,
    shape,
    table,
)
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import default_collate

from lodarepro import config, cost
from lodarepro.data.batch import epoch_order
from lodarepro.data.tokenise import Encoded, encode
from lodarepro.errors import BadInput
from lodarepro.methods import attach, param_groups
from lodarepro.model import GPT2, weights
from lodarepro.precision import Arithmetic
from lodarepro.report.summary import counted
from lodarepro.train.optim import make_optimizer
from lodarepro.train.step import Step

FILE = "valid.txt"
CONTEXT_TOKENS, COMPLETION_TOKENS = 31, 28  # of a mean pair of that file in GPT-2's tokens, end tokens included
IGNORED = -100  # the label of a token without loss in `transformers`
METHOD = config.Lora()
PROTOCOL = config.Protocol("lora")


@dataclass(frozen=True)
class Task:
    """What all contestants do in a turn.

    Attributes:
        model: sizes.
        data: tokenised pairs.
        batches: rows of each step.
        settings: of the optimisation, with the precision.
        device: where.
    """

    model: config.Model
    data: Encoded
    batches: list[list[int]]
    settings: config.Train
    device: torch.device

    def pair(self, row: int) -> tuple[list[int], list[int]]:
        """Context and completion."""
        ids, cut = self.data.sequence(row).tolist(), int(self.data.contexts[row])
        return ids[:cut], ids[cut:]

    def tokens(self, batches: Sequence[Sequence[int]]) -> int:
        """In the pairs of these."""
        return sum(len(self.data.sequence(row)) for rows in batches for row in rows)

    def flops(self) -> float:
        """Of a mean step."""
        pairs = [self.pair(row) for rows in self.batches for row in rows]
        width = round(self.tokens(self.batches) / len(pairs))
        targets = sum(len(completion) for _, completion in pairs)
        whole = cost.training_step(self.model, METHOD, rows=len(pairs), width=width, targets=targets)
        return whole.flops / len(self.batches)


# --- contestants -----------------------------------------------------------------------------------------


class Ours:
    """The step of `lodarepro.train`."""

    def __init__(self, task: Task, tensors: Mapping[str, Tensor]) -> None:
        self.task = task
        model = GPT2(weights.sizes_of(task.model))
        model.load_state_dict(tensors)
        attach(model, METHOD, torch.Generator().manual_seed(0))
        model.to(task.device).train()
        arithmetic = Arithmetic(task.settings.precision, task.device)
        model.pack(arithmetic.dtype, training=True)
        self.gradient = Step(model, task.data, task.settings, protocol=PROTOCOL, arithmetic=arithmetic)
        self.optimizer = make_optimizer(param_groups(model, METHOD), task.settings)

    def __call__(self) -> Done:
        """A turn."""
        losses = []
        for rows in self.task.batches:
            losses.append(self.gradient(rows))
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
        return Done(len(losses), self.task.tokens(self.task.batches), float(losses[0]))


class Peft:
    """`transformers` with `peft`, as a plain loop around it would be."""

    def __init__(self, task: Task, tensors: Mapping[str, Tensor]) -> None:
        self.task, settings = task, task.settings
        model = model_of_transformers(task.model, tensors)
        model.config.use_cache = False  # as its Trainer does
        adapted = peft.LoraConfig(
            task_type="CAUSAL_LM",
            target_modules=["c_attn"],
            r=METHOD.rank,
            lora_alpha=int(METHOD.alpha),
            lora_dropout=METHOD.dropout,
            fan_in_fan_out=True,
        )
        self.model = peft.get_peft_model(model, adapted).to(task.device).train()
        self.arithmetic = Arithmetic(settings.precision, task.device)
        self.optimizer = torch.optim.AdamW(
            (p for p in self.model.parameters() if p.requires_grad),
            lr=settings.lr,
            betas=settings.betas,
            eps=settings.eps,
            weight_decay=settings.weight_decay,
            fused=True,
        )

    def batch(self, rows: Sequence[int]) -> dict[str, Tensor]:
        """Padded on the right to the longest."""
        pairs = [self.task.pair(row) for row in rows]
        ids = [torch.tensor(context + completion) for context, completion in pairs]
        labels = [torch.tensor([IGNORED] * len(context) + completion) for context, completion in pairs]
        tensors = {
            "input_ids": pad_sequence(ids, batch_first=True),
            "attention_mask": pad_sequence([torch.ones_like(each) for each in ids], batch_first=True),
            "labels": pad_sequence(labels, batch_first=True, padding_value=IGNORED),
        }
        return {name: tensor.to(self.task.device) for name, tensor in tensors.items()}

    def __call__(self) -> Done:
        """A turn."""
        losses = []
        for rows in self.task.batches:
            with self.arithmetic():
                loss = self.model(**self.batch(rows)).loss
            loss.backward()
            losses.append(loss.detach())
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
        return Done(len(losses), self.task.tokens(self.task.batches), float(losses[0]))


class Original:
    """The LoRA paper's code; a turn is one step, as each takes the same time whatever its pairs."""

    def __init__(self, task: Task, checkout: Path, tensors: Mapping[str, Tensor]) -> None:
        self.task, settings = task, task.settings
        self.code = of_original(checkout, "gpt2_ft")
        size = settings.batch_size
        pairs = [task.pair(row) for row in task.batches[0]]
        self.data = data_of_original(checkout, pairs, size, PROTOCOL.max_length)
        lora = {
            "lora_attn_dim": METHOD.rank,
            "lora_attn_alpha": int(METHOD.alpha),
            "lora_dropout": METHOD.dropout,
        }
        self.model = model_of_original(checkout, task.model, tensors, **lora).to(task.device).train()
        self.code.lora.mark_only_lora_as_trainable(self.model)
        self.optimizer = self.code.create_adam_optimizer(
            self.model,
            settings.lr,
            settings.weight_decay,
            beta1=settings.betas[0],
            beta2=settings.betas[1],
            adam_epislon=settings.eps,
        )

    def __call__(self) -> Done:
        """A turn."""
        data = default_collate([self.data[i] for i in range(self.task.settings.batch_size)])
        inputs, targets, mask = (data[name].to(self.task.device) for name in ("input", "target", "mask"))
        smoothing = self.task.settings.label_smoothing
        _, loss = self.model(inputs, lm_labels=targets, lm_mask=mask, label_smooth=smoothing)
        loss = loss.mean()
        self.code.optimizer_step(loss, self.optimizer, self.model, None, Namespace(fp16=False, clip=0.0))
        return Done(1, self.task.tokens(self.task.batches[:1]), float(loss.detach()))


# --- benchmark -------------------------------------------------------------------------------------------


def read_pairs(given: argparse.Namespace, n: int) -> tuple[Encoded, str]:
    """Tokenised pairs, at least so many, and what they are."""
    if given.tokenizer is None:
        contexts, completions = drawn_ids(n, CONTEXT_TOKENS), drawn_ids(n, COMPLETION_TOKENS)
        described_as = (
            f"random ids, {CONTEXT_TOKENS} of context and {COMPLETION_TOKENS} of completion a pair, which are E2E's "
            "means: nothing is padded (real rows need --tokenizer)"
        )
        print(described_as, file=sys.stderr)
        return Encoded.of(list(zip(contexts, completions, strict=True))), described_as
    tokenizer = read_tokenizer(given.tokenizer, entries=shape(given.shape).vocab_size)
    data = encode(read_e2e(given.data, FILE), tokenizer, PROTOCOL, cache=None)
    return data, f"E2E's {FILE}, {len(data):,} pairs, {len(data.tokens) / len(data):.1f} tokens each"


def benchmark(given: argparse.Namespace) -> Report:
    """Time all contestants at each precision."""
    model = shape(given.shape)
    n = given.batch_size * given.steps
    data, rows_are = read_pairs(given, n)
    if len(data) < n:
        raise BadInput(f"--steps {given.steps}: {n} pairs are needed, and there are {len(data)}")
    order = epoch_order(len(data), 0, batch_size=given.batch_size, seed=1, shuffle=True, fill=False)[:n].tolist()
    batches = [order[i : i + given.batch_size] for i in range(0, n, given.batch_size)]
    rows, losses = [], []
    for precision in given.precision:
        settings = config.Train(batch_size=given.batch_size, precision=precision)
        task = Task(model, data, batches, settings, torch.device(given.device))
        entrants = [Entrant(OURS, partial(Ours, task)), Entrant("peft", partial(Peft, task))]
        if given.original and precision == "fp32":
            made = partial(Original, task, given.original)
            entrants.append(Entrant("original", made, rounds=given.original_repeats, warm=False))
        ceiling = Ceiling(precision, task.device)
        standings = contest(entrants, precision, given=given, model=model, ceiling=ceiling)
        rows += described(standings, {"precision": precision}, flops=task.flops(), ceiling=ceiling)
        found = ", ".join(f"{s.name} {s.first.answer:.4f}" for s in standings if s.first)
        losses.append(f"{precision}: {found}")
    tokens, widest = task.tokens(batches), sum(max(len(data.sequence(row)) for row in b) for b in batches) / given.steps
    notes = [
        f"GPT-2 {given.shape}, random weights; LoRA of rank {METHOD.rank} on q and v (peft: on the fused projection).",
        f"Pairs: {rows_are}; a round is {given.steps} steps of {given.batch_size}, the same in every round: "
        f"{tokens:,} tokens, padded to {widest:.1f} on average; {counted(given.repeats, 'round')}. The original's: one "
        "step, without a warm-up.",
        f"Loss of the first step (peft's has no smoothing): {'; '.join(losses)}.",
    ]
    settings_tree = {
        "shape": given.shape,
        "batch_size": given.batch_size,
        "steps": given.steps,
        "repeats": given.repeats,
        "threads": torch.get_num_threads(),
        "device": given.device,
        "pairs": rows_are,
        "tokens_a_round": tokens,
    }
    title = "Training: a step beside peft and the original code"
    return Report(title, rows, table(rows, ["precision"], "step"), notes, settings_tree)


def main(argv: list[str] | None = None) -> int:
    """The command line."""
    parser = argument_parser("time a step of training with LoRA", repeats=5)
    parser.add_argument("--batch-size", type=int, default=8, help="pairs a step (%(default)s)")
    parser.add_argument("--steps", type=int, default=4, help="steps a round (%(default)s)")
    return run(benchmark, parser, sys.argv[1:] if argv is None else argv)


if __name__ == "__main__":
    sys.exit(main())
