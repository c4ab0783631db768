"""Time beam search: ours beside `transformers`' generate, and beside the LoRA paper's own code.

    python scripts/bench_decode.py --data FOLDER --tokenizer tokenizer.json [--original LoRA] \
        [--out results/benchmarks/decode.md]

All search the same contexts of E2E with the same GPT-2 (without adapters, as if merged), with 10 beams, 64 new tokens
and no 4-gram twice. With random weights end tokens are barred, so that every search runs to its end; with those of
`--model`, timed as well, searches end where the model ends them. A round searches the same contexts at each batch size.

    ours           `lodarepro.decode.beam.search`
    transformers   generate: padded on the left, keys and values cached, no early stopping; its search is another one,
                   with candidates of twice the beams and n-grams of the prompt counted in, so its texts differ
    original       prompts padded to 512 tokens, one at a time (microsoft/LoRA, examples/NLG, `gpt2_beam.py`)
"""

from __future__ import annotations

import argparse
import json
import sys
from argparse import Namespace
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

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
from torch.utils.data import default_collate

from lodarepro import config, cost
from lodarepro.data.batch import prompt
from lodarepro.data.tokenise import encode_contexts, token_id
from lodarepro.data.types import segments
from lodarepro.decode.beam import search
from lodarepro.errors import BadInput
from lodarepro.model import GPT2, Sizes, weights
from lodarepro.precision import Arithmetic
from lodarepro.report.summary import counted

FILE = "test.txt"
CONTEXT_TOKENS = 36  # of a mean context of that file in GPT-2's tokens, its separator included
PLAIN = config.Ft()  # a method that adds nothing to the model
PROTOCOL = config.Protocol("lora")
SETTINGS = config.Decode()
END = 50256  # of GPT-2: end of text


@dataclass(frozen=True)
class Task:
    """What all contestants do in a turn.

    Attributes:
        model: sizes, and the folder of its weights if they are not random.
        prompts: ids, sorted by length.
        batch: prompts searched at once.
        end_ids: tokens that end a text.
        barred: whether they are barred, so that all steps run.
        precision: of the arithmetic.
        device: where.
    """

    model: config.Model
    prompts: list[list[int]]
    batch: int
    end_ids: list[int]
    barred: bool
    precision: config.Precision
    device: torch.device

    def batches(self) -> Iterator[list[list[int]]]:
        """Prompts searched at once."""
        for i in range(0, len(self.prompts), self.batch):
            yield self.prompts[i : i + self.batch]

    def done(self, texts: Sequence[Sequence[int]]) -> Done:
        """What the outputs amount to, each up to its first end token."""
        cut = []
        for text in texts:
            ends = [i for i, token in enumerate(text) if token in self.end_ids]
            cut.append(list(text[: ends[0] + 1] if ends else text))
        return Done(len(cut), sum(map(len, cut)), cut)

    def flops(self) -> float | None:
        """Of a mean text, if every search runs to its end."""
        if not self.barred:
            return None
        texts, tokens = len(self.prompts), sum(map(len, self.prompts))
        # The first token comes from the prompt's own pass.
        new, mean = texts * SETTINGS.beam * (SETTINGS.max_new_tokens - 1), tokens / texts
        read = cost.forward_flops(self.model, PLAIN, tokens=tokens, targets=texts, context=mean / 2)
        context = mean + SETTINGS.max_new_tokens / 2
        written = cost.forward_flops(self.model, PLAIN, tokens=new, targets=new, context=context)
        return (read + written) / texts


# --- contestants -----------------------------------------------------------------------------------------


class Ours:
    """The search of `lodarepro.decode`."""

    def __init__(self, task: Task, tensors: Mapping[str, Tensor]) -> None:
        self.task = task
        self.model = GPT2(weights.sizes_of(task.model))
        self.model.load_state_dict(tensors)
        self.model.to(task.device).eval()
        self.arithmetic = Arithmetic(task.precision, task.device)
        self.model.pack(self.arithmetic.dtype, training=False)
        self.ends = {"banned_ids": task.end_ids, "end_ids": []} if task.barred else {"end_ids": task.end_ids}

    def __call__(self) -> Done:
        """A turn."""
        with self.arithmetic():
            found = [search(self.model, prompts, SETTINGS, **self.ends) for prompts in self.task.batches()]
        return self.task.done([hypothesis.tokens for batch in found for hypothesis in batch])


class Transformers:
    """`generate` of `transformers`; in bf16 the whole model is."""

    def __init__(self, task: Task, tensors: Mapping[str, Tensor]) -> None:
        self.task = task
        dtype = Arithmetic(task.precision, task.device).dtype
        self.model = model_of_transformers(task.model, tensors).eval()
        torch.nn.Module.to(self.model, task.device, dtype)  # its own `to` has no types

    def __call__(self) -> Done:
        """A turn."""
        texts: list[list[int]] = []
        for prompts in self.task.batches():
            width = max(map(len, prompts))
            pad = self.task.end_ids[0]
            ids = torch.tensor([[pad] * (width - len(p)) + p for p in prompts], device=self.task.device)
            real = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=self.task.device)
            found = self.model.generate(
                input_ids=ids,
                attention_mask=real,
                do_sample=False,
                num_beams=SETTINGS.beam,
                max_new_tokens=SETTINGS.max_new_tokens,
                min_new_tokens=SETTINGS.max_new_tokens if self.task.barred else None,
                no_repeat_ngram_size=SETTINGS.no_repeat_ngram,
                length_penalty=SETTINGS.length_penalty,
                early_stopping=False,
                use_cache=True,
                pad_token_id=pad,
                eos_token_id=self.task.end_ids,
            )
            texts += found[:, width:].tolist()
        return self.task.done(texts)


class Original:
    """The LoRA paper's code; a turn is the first prompt, as each takes the same time whatever its length."""

    def __init__(self, task: Task, checkout: Path, tensors: Mapping[str, Tensor]) -> None:
        self.task = task
        self.code = of_original(checkout, "gpt2_beam")
        self.data = data_of_original(
            checkout, [(task.prompts[0], [END])], 1, PROTOCOL.max_length, SETTINGS.max_new_tokens
        )
        self.model = model_of_original(checkout, task.model, tensors).to(task.device)
        self.gathered: list[Tensor] = []
        # It wants several processes, and a global `args`; and the process of rank 0 writes a file.
        self.code.distributed_gather = self._gather
        self.code.distributed_sync = lambda args: None
        self.code.args = Namespace(
            rank=1,
            device=task.device,
            beam=SETTINGS.beam,
            eval_len=SETTINGS.max_new_tokens,
            min_length=SETTINGS.max_new_tokens if task.barred else 0,
            length_penalty=SETTINGS.length_penalty,
            no_repeat_ngram_size=SETTINGS.no_repeat_ngram,
            repetition_penalty=1.0,
            eos_token_id=task.end_ids,
        )

    def _gather(self, args: Namespace, tensor: Tensor) -> Tensor:
        self.gathered.append(tensor)
        return tensor[None]

    def __call__(self) -> Done:
        """A turn."""
        self.gathered.clear()
        self.code.beam(self.model, [default_collate([self.data[0]])], self.code.args)
        _, sequences = self.gathered
        return self.task.done(sequences.tolist())


# --- benchmark -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Subject:
    """A model with its prompts.

    Attributes:
        name: for the report.
        model: sizes, and the folder of its weights if they are not random.
        prompts: ids.
        end_ids: tokens that end a text.
        rows_are: what the prompts are.
    """

    name: str
    model: config.Model
    prompts: list[list[int]]
    end_ids: list[int]
    rows_are: str


def read_prompts(given: argparse.Namespace, tokenizer: Path, entries: int) -> tuple[list[list[int]], list[int], str]:
    """Contexts from all over the file, shorter ones first; end tokens; what the contexts are."""
    known = read_tokenizer(tokenizer, entries=entries)
    contexts = [segment.context for segment in segments(read_e2e(given.data, FILE))]
    n = min(given.limit_prompts, len(contexts))
    spread = [contexts[i * len(contexts) // n] for i in range(n)]
    prompts = [
        prompt(ids, max_length=PROTOCOL.max_length, max_new_tokens=SETTINGS.max_new_tokens)
        for ids in encode_contexts(spread, known, PROTOCOL)
    ]
    ends = [token_id(known, text, "end token") for text in SETTINGS.end_tokens]
    mean = sum(map(len, prompts)) / n
    return sorted(prompts, key=len), ends, f"{n} of E2E's {FILE}, {mean:.1f} tokens each"


def random_subject(given: argparse.Namespace) -> Subject:
    """A GPT-2 of the shape asked for, with random weights."""
    model = shape(given.shape)
    if given.tokenizer is None:
        rows_are = (
            f"{given.limit_prompts} of {CONTEXT_TOKENS} random ids, which is E2E's mean: nothing is padded (real "
            "contexts need --tokenizer)"
        )
        print(rows_are, file=sys.stderr)
        prompts, ends = drawn_ids(given.limit_prompts, CONTEXT_TOKENS), [END]
    else:
        prompts, ends, rows_are = read_prompts(given, given.tokenizer, model.vocab_size)
    return Subject(f"{given.shape}, random", model, prompts, ends, rows_are)


def trained_subject(given: argparse.Namespace) -> Subject:
    """The model of the folder asked for.

    Raises:
        BadInput: it is none in Hugging Face layout.
    """
    try:
        sizes = json.loads((given.model / weights.CONFIG).read_text(encoding="utf-8"))
        found: dict[str, Any] = {f.name: int(sizes[f.name]) for f in fields(Sizes)}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BadInput(f"--model {given.model}: no GPT-2 in Hugging Face layout ({error})") from None
    model = config.Model(name=given.model.resolve().name, path=str(given.model), **found)
    weights.find(model)
    if model.n_positions < PROTOCOL.max_length:
        raise BadInput(f"--model {given.model}: {model.n_positions} positions, fewer than {PROTOCOL.max_length}")
    prompts, ends, rows_are = read_prompts(given, given.model / weights.TOKENIZER, model.vocab_size)
    return Subject(f"{model.name}, trained", model, prompts, ends, rows_are)


def benchmark(given: argparse.Namespace) -> Report:
    """Time all contestants on each model, at each precision and batch size."""
    subjects = [random_subject(given)]
    if given.model:
        subjects.append(trained_subject(given))
    device = torch.device(given.device)
    rows, same = [], []
    for subject in subjects:
        for precision in given.precision:
            ceiling = Ceiling(precision, device)
            for batch in given.batch:
                barred = subject.model.path is None
                task = Task(subject.model, subject.prompts, batch, subject.end_ids, barred, precision, device)
                entrants = [Entrant(OURS, partial(Ours, task)), Entrant("transformers", partial(Transformers, task))]
                if given.original and precision == "fp32" and batch == 1:
                    made = partial(Original, task, given.original)
                    entrants.append(Entrant("original", made, rounds=given.original_repeats, warm=False))
                case = {"model": subject.name, "precision": precision, "batch": batch}
                label = ", ".join(map(str, case.values()))
                standings = contest(entrants, label, given=given, model=task.model, ceiling=ceiling)
                rows += described(standings, case, flops=task.flops(), ceiling=ceiling)
                first = {standing.name: standing.first.answer for standing in standings if standing.first}
                if "original" in first:
                    equal = first["original"][0] == first[OURS][0]
                    same.append(f"{subject.name}: the original's text is {'' if equal else 'NOT '}ours to the token")
    notes = [
        f"GPT-2 without adapters; beam {SETTINGS.beam}, {SETTINGS.max_new_tokens} new tokens at most, no "
        f"{SETTINGS.no_repeat_ngram}-gram twice, length penalty {SETTINGS.length_penalty}. With random weights end "
        "tokens are barred, so that all steps run; `batch` is contexts searched at once.",
        *(f"Contexts, {subject.name}: {subject.rows_are}." for subject in subjects),
        f"A round is all of them, at every batch size; {counted(given.repeats, 'round')}. tokens/s: of the texts, not "
        "of all beams. The original's: one context, without a warm-up.",
        *(f"{said}." for said in same),
    ]
    settings = {
        "models": [subject.name for subject in subjects],
        "batch": given.batch,
        "repeats": given.repeats,
        "threads": torch.get_num_threads(),
        "device": given.device,
        "contexts": [subject.rows_are for subject in subjects],
    }
    title = "Decoding: beam search beside transformers and the original code"
    return Report(title, rows, table(rows, ["model", "precision", "batch"], "text"), notes, settings)


def main(argv: list[str] | None = None) -> int:
    """The command line."""
    parser = argument_parser("time beam search", repeats=3)
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 16], help="contexts searched at once (1 16)")
    parser.add_argument("--limit-prompts", type=int, default=16, help="contexts of a round (%(default)s)")
    parser.add_argument("--model", type=Path, help="folder of a trained model in Hugging Face layout, timed as well")
    return run(benchmark, parser, sys.argv[1:] if argv is None else argv)


if __name__ == "__main__":
    sys.exit(main())
