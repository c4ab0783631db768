"""Pretrain `gpt2-nano`, the model that the package carries, from scratch on a CPU.

A fifth of the tokens read is public-domain prose (`--corpus`: gzipped text, one paragraph a line), the rest
comes from `kv_corpus.py` as fine-tuning has it: each document a row of its own, `context <|endoftext|> text
<|endoftext|>`, with the loss on its text alone. Writes the Hugging Face layout with fp16 weights and a model card.

    torchrun --nproc-per-node 2 scripts/pretrain_nano.py --corpus books.txt.gz --out lodarepro/model/gpt2-nano

is the command behind the model in the package: an hour on two idle cores, each of which has a process with its share
of every batch. Without `torchrun` one process does all of it; texts then begin at other positions, so the weights
differ.

An interrupted run started again with the same arguments goes on from its last checkpoint and ends with the
same bits: every batch, and where its texts begin, is a function of seed, step and process, and nothing else is random
after the initialisation.
"""

import argparse
import dataclasses
import gzip
import json
import math
import os
import random
import re
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import kv_corpus
import torch
from tokenizers import AddedToken, Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer

from lodarepro.data.batch import Batch, collate
from lodarepro.data.tokenise import Encoded
from lodarepro.distributed import ALONE, Processes, joined
from lodarepro.errors import BadInput, LodareproError
from lodarepro.model import weights
from lodarepro.model.gpt2 import GPT2, Sizes
from lodarepro.train.loss import token_losses
from lodarepro.train.step import batch_loss, counted_states

END = "<|endoftext|>"
BREAK = "\n\n"  # one token, as in GPT-2's vocabulary: some protocols end a text with it
BETAS = (0.9, 0.95)
CLIP = 1.0  # largest norm of a step's gradient
FINAL_LR = 0.01  # share of the peak at the last step
HELD_OUT = 0.01  # share of the books' paragraphs kept for evaluation, from the end
TOKENIZER_DOCUMENTS = 40_000  # documents of kv_corpus that the tokenizer sees
EVAL_STEPS = 8  # batches of each held-out set
POOL = 8  # steps whose documents are drawn together and sorted by length, for rows of one batch to be alike
EVAL_PROMPTS = 64  # held-out prompts that are decoded in the end
NANO = Sizes(n_layer=4, n_head=4, n_embd=128, vocab_size=2048, n_positions=512)


@dataclass(frozen=True)
class Settings:
    """What the resulting weights depend on, beside the corpus and the machine's arithmetic."""

    steps: int  # optimizer steps
    seed: int
    processes: int = 1  # each draws where its texts begin
    sizes: Sizes = NANO
    book_rows: int = 6  # rows of prose a step, half of n_positions tokens each
    kv_tokens: int = 6144  # tokens of records a step, about
    lr: float = 4e-3  # peak of a cosine after warm-up
    warmup: int = 200  # steps
    weight_decay: float = 0.1  # matrices only
    bf16: bool = True  # autocast


# --- data ----------------------------------------------------------------------------------------------


def read_books(path: Path) -> tuple[list[str], list[str]]:
    """The paragraphs for training and the held-out ones.

    Raises:
        BadInput: the file is missing or is not gzipped text.
    """
    try:
        with gzip.open(path, "rt", encoding="utf-8") as file:
            paragraphs = [line.strip() for line in file if line.strip()]
    except (OSError, EOFError, UnicodeDecodeError) as e:
        reason = getattr(e, "strerror", None) or str(e)
        raise BadInput(f"--corpus {path}: {reason}; give gzipped UTF-8 prose, one paragraph a line") from None
    held = max(1, round(len(paragraphs) * HELD_OUT))
    return paragraphs[:-held], paragraphs[-held:]


def train_tokenizer(paragraphs: list[str], settings: Settings) -> Tokenizer:
    """A byte-level BPE as GPT-2's, its last two entries being `<|endoftext|>` and two newlines."""
    source = kv_corpus.documents(random.Random(f"{settings.seed}/tokenizer"))

    def texts() -> Iterator[str]:
        for document in islice(source, min(TOKENIZER_DOCUMENTS, 10 * len(paragraphs))):
            yield f"{document.context} {document.text}"
        yield from paragraphs

    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = BpeTrainer(
        vocab_size=settings.sizes.vocab_size - 2,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts(), trainer)
    tokenizer.add_tokens([AddedToken(BREAK, normalized=False)])
    tokenizer.add_special_tokens([AddedToken(END, normalized=False, special=True)])
    return tokenizer


def end_of(tokenizer: Tokenizer) -> int:
    """The id of `<|endoftext|>`."""
    end: int | None = tokenizer.token_to_id(END)
    assert end is not None
    return end


Pair = tuple[list[int], list[int]]  # tokens of a context and of its text, with their end marks; or prose and nothing


class Batches:
    """Batches of prose and of records, each a function of its name."""

    def __init__(self, tokenizer: Tokenizer, *, paragraphs: list[str], settings: Settings) -> None:
        self.tokenizer, self.settings = tokenizer, settings
        self.end = end_of(tokenizer)
        self.width = settings.sizes.n_positions // 2  # tokens of a row of prose
        encoded = tokenizer.encode_batch_fast([paragraph + BREAK for paragraph in paragraphs])
        self.stream = [token for paragraph in encoded for token in paragraph.ids]
        while len(self.stream) <= self.width:  # a corpus shorter than a row is repeated
            self.stream += self.stream
        self.pool: tuple[str, list[list[Pair]]] = ("", [])

    def books(self, name: str, processes: Processes = ALONE) -> Batch:
        """A process's share of windows of the books; all tokens but the first of each carry loss."""
        rng = random.Random(f"{name}/books")
        starts = [rng.randrange(len(self.stream) - self.width) for _ in range(self.settings.book_rows)]
        rows: list[Pair] = [(self.stream[start : start + self.width], []) for start in processes.share(starts)]
        return self._batch(rows, loss_on="all")

    def records(self, run: str, step: int, processes: Processes = ALONE) -> Batch:
        """A process's share of the documents of a step; their texts carry loss."""
        name = f"{run}/{step // POOL}"
        if self.pool[0] != name:
            self.pool = (name, self._drawn(random.Random(f"{name}/kv")))
        documents = processes.share(self.pool[1][step % len(self.pool[1])])
        return self._batch(documents, loss_on="completion")

    def _drawn(self, rng: random.Random) -> list[list[Pair]]:
        """`POOL` batches in random order, the documents of each similar in length."""
        pairs: list[Pair] = []
        total = 0
        for document in kv_corpus.documents(rng):
            context = [*self.tokenizer.encode(document.context).ids, self.end]
            text = [*self.tokenizer.encode(f" {document.text}").ids, self.end]
            if len(context) + len(text) <= self.settings.sizes.n_positions:
                pairs.append((context, text))
                total += len(context) + len(text)
            if total >= POOL * self.settings.kv_tokens:
                break
        pairs.sort(key=lambda pair: len(pair[0]) + len(pair[1]))
        batches: list[list[Pair]] = [[] for _ in range(POOL)]
        before = 0
        for pair in pairs:
            batches[before * POOL // total].append(pair)
            before += len(pair[0]) + len(pair[1])
        rng.shuffle(batches)
        return [batch for batch in batches if batch]

    def _batch(self, pairs: Sequence[Pair], *, loss_on: str) -> Batch:
        longest = self.settings.sizes.n_positions
        return collate(Encoded.of(pairs), range(len(pairs)), max_length=longest, loss_on=loss_on)


# --- training ------------------------------------------------------------------------------------------


def learning_rate(step: int, settings: Settings) -> float:
    """Linear warm-up, then a cosine to `FINAL_LR` of the peak."""
    if step < settings.warmup:
        return settings.lr * (step + 1) / settings.warmup
    done = (step - settings.warmup) / max(1, settings.steps - settings.warmup)
    return settings.lr * (FINAL_LR + (1 - FINAL_LR) * 0.5 * (1 + math.cos(math.pi * done)))


def autocast(settings: Settings) -> AbstractContextManager[None]:
    """The arithmetic of the forward pass."""
    return torch.autocast("cpu", dtype=torch.bfloat16, enabled=settings.bf16)


def start_of(name: str, *, width: int, settings: Settings) -> int:
    """The position of a batch's first tokens: 0 in half of the batches, anywhere in the others.

    Methods put tokens of their own before a context, and a model that has seen every text begin at 0 can't have it
    begin elsewhere.
    """
    rng = random.Random(f"{name}/start")
    return rng.choice((0, rng.randint(0, settings.sizes.n_positions - width)))


def gradients(
    net: GPT2, batches: list[Batch], *, name: str, settings: Settings, processes: Processes
) -> tuple[float, int]:
    """Give the parameters the gradient of the mean loss of all processes' tokens that count.

    Returns:
        The loss, and how many tokens the processes read.
    """
    found = torch.zeros(3)  # sum of losses, tokens that count, tokens
    for i, batch in enumerate(batches):
        net.offset = start_of(f"{name}/{i}/{processes.rank}", width=batch.width, settings=settings)
        with autocast(settings):
            part = batch_loss(net, batch, label_smoothing=0.0, scale=1.0)
        part.backward()
        found += torch.tensor([part.item(), len(batch.counted), len(batch.slots)])
    net.offset = 0
    grads = [p.grad for p in net.parameters() if p.grad is not None]
    processes.sum([*grads, found])
    loss, counted, tokens = found.tolist()
    torch._foreach_div_(grads, counted)
    return loss / counted, round(tokens)


@torch.no_grad()
def held_out_losses(net: GPT2, *, held: Batches, settings: Settings) -> dict[str, float]:
    """Mean losses in nats a token: prose, and the records' texts."""

    def mean(batches: list[Batch]) -> float:
        with autocast(settings):
            found = [token_losses(net, *counted_states(net, batch)) for batch in batches]
        return torch.cat(found).mean().item()

    return {
        "books": mean([held.books(f"held-out/{i}") for i in range(EVAL_STEPS)]),
        "texts": mean([held.records("held-out", i) for i in range(EVAL_STEPS)]),
    }


def make_optimizer(net: GPT2, settings: Settings) -> torch.optim.AdamW:
    """AdamW that decays matrices and leaves biases and norms alone."""
    groups = [
        {"params": [p for p in net.parameters() if p.dim() > 1], "weight_decay": settings.weight_decay},
        {"params": [p for p in net.parameters() if p.dim() < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=settings.lr, betas=BETAS)


class Progress:
    """The checkpoint and the log of one run, in a folder outside the result."""

    def __init__(self, folder: Path, settings: Settings) -> None:
        self.checkpoint, self.log_file = folder / "checkpoint.pt", folder / "log.jsonl"
        self.settings = dataclasses.asdict(settings)
        folder.mkdir(parents=True, exist_ok=True)

    def save(self, net: GPT2, optimizer: torch.optim.Optimizer, *, step: int, seconds: float) -> None:
        """Write the state after `step` steps; a kill leaves the previous file whole."""
        state = {
            "settings": self.settings,
            "net": net.state_dict(),
            "optimizer": optimizer.state_dict(),
            "step": step,
            "seconds": seconds,
        }
        partial = self.checkpoint.with_suffix(".partial")
        torch.save(state, partial)
        partial.replace(self.checkpoint)

    def load(self, net: GPT2, optimizer: torch.optim.Optimizer) -> tuple[int, float]:
        """Restore the last checkpoint, if any; steps done and seconds spent.

        Raises:
            BadInput: the checkpoint belongs to a run with other settings.
        """
        if not self.checkpoint.exists():
            return 0, 0.0
        state = torch.load(self.checkpoint, weights_only=True)
        if state["settings"] != self.settings:
            raise BadInput(f"{self.checkpoint} belongs to a run with other settings; remove it or give another --work")
        net.load_state_dict(state["net"])
        optimizer.load_state_dict(state["optimizer"])
        return state["step"], state["seconds"]

    def log(self, **fields: float) -> None:
        """Append a line of JSON and print it for people."""
        with self.log_file.open("a", encoding="utf-8") as file:
            file.write(json.dumps(fields) + "\n")
        print("  ".join(f"{key} {value:.5g}" for key, value in fields.items()), flush=True)


def train(
    net: GPT2,
    *,
    training: Batches,
    held: Batches,
    settings: Settings,
    progress: Progress,
    every: int,
    processes: Processes,
) -> float:
    """Train to the last step; evaluates and saves a checkpoint each `every` steps.

    Returns:
        Seconds spent in all, over interruptions.
    """
    net.initialise(torch.Generator().manual_seed(settings.seed))
    optimizer = make_optimizer(net, settings)
    first, before = progress.load(net, optimizer)
    started = time.monotonic()
    tokens = 0
    for step in range(first, settings.steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, settings)
        name = f"{settings.seed}/{step}"
        batches = [training.books(name, processes), training.records(str(settings.seed), step, processes)]
        optimizer.zero_grad(set_to_none=True)
        loss, read = gradients(net, batches, name=name, settings=settings, processes=processes)
        tokens += read
        torch.nn.utils.clip_grad_norm_(net.parameters(), CLIP)
        optimizer.step()
        if processes.main and ((step + 1) % every == 0 or step + 1 == settings.steps):
            seconds = before + time.monotonic() - started
            progress.log(
                step=step + 1,
                seconds=seconds,
                tokens_per_second=tokens / (seconds - before),
                train=loss,
                **held_out_losses(net, held=held, settings=settings),
            )
            progress.save(net, optimizer, step=step + 1, seconds=seconds)
    return before + time.monotonic() - started


# --- result --------------------------------------------------------------------------------------------


@torch.no_grad()
def greedy(net: GPT2, tokenizer: Tokenizer, contexts: list[str]) -> list[str]:
    """The most likely text for each context, in fp32 and without a cache: for a look, not for speed."""
    end = end_of(tokenizer)
    rows = [[*tokenizer.encode(context).ids, end] for context in contexts]
    starts = [len(row) for row in rows]
    alive = [i for i, row in enumerate(rows) if len(row) < net.sizes.n_positions]
    while alive:
        longest = max(len(rows[i]) for i in alive)
        padded = torch.tensor([rows[i] + [end] * (longest - len(rows[i])) for i in alive])
        last = torch.tensor([len(rows[i]) - 1 for i in alive])
        hidden = net(padded)[torch.arange(len(alive)), last]  # (alive, d)
        for i, token in zip(alive, net.logits(hidden).argmax(-1).tolist(), strict=True):
            rows[i].append(token)
        alive = [i for i in alive if rows[i][-1] != end and len(rows[i]) < net.sizes.n_positions]
    return [tokenizer.decode(row[start:]).strip() for row, start in zip(rows, starts, strict=True)]


def copied_share(net: GPT2, tokenizer: Tokenizer, settings: Settings) -> float:
    """The share of the values of held-out records that greedy decoding states word for word."""
    source = kv_corpus.documents(random.Random(f"{settings.seed}/prompts"))
    documents = list(islice(source, EVAL_PROMPTS))
    texts = greedy(net, tokenizer, [document.context for document in documents])
    found = [
        re.search(rf"(?<!\w){re.escape(value)}(?!\w)", text, re.IGNORECASE) is not None
        for document, text in zip(documents, texts, strict=True)
        for value in document.values
    ]
    for document, text in list(zip(documents, texts, strict=True))[:5]:
        print(f"{document.context}\n  -> {text}", flush=True)
    return sum(found) / len(found)


def card(settings: Settings, *, results: dict[str, float], seconds: float, parameters: int, characters: int) -> str:
    """The model card."""
    sizes = settings.sizes
    prose = settings.book_rows * sizes.n_positions // 2  # tokens a step
    batch = prose + settings.kv_tokens
    millions = f"{characters / 1e6:.1f}"
    arithmetic = "bf16 autocast" if settings.bf16 else "fp32"
    return f"""---
license: mit
language: en
library_name: transformers
pipeline_tag: text-generation
---
# gpt2-nano

A tiny GPT-2, pretrained from scratch by this project with `scripts/pretrain_nano.py`, which also writes this
page.

**For**: trying the whole pipeline of `lodarepro` (fine-tuning, decoding, scoring, records) offline on two CPU
cores in minutes, and tests. **Not for**: writing text, answering questions, or conclusions about the methods
at the scale of GPT-2 Medium and Large; it knows nothing of the world.

| | |
|---|---|
| parameters | {parameters:,} |
| blocks, width, heads | {sizes.n_layer}, {sizes.n_embd}, {sizes.n_head} |
| positions | {sizes.n_positions} |
| vocabulary | {sizes.vocab_size:,} |
| weights on disk | fp16 |

## Data
- {prose / batch:.0%} of the tokens read: English prose in the public domain ({millions} million
  characters), all of it with loss.
- {settings.kv_tokens / batch:.0%} of the tokens read: records and triples, each with a text that states them,
  invented by `scripts/kv_corpus.py`. No record of E2E, WebNLG, DART or `mini` is in it, nor a key of
  E2E or `mini`. Layout: `context <|endoftext|> text <|endoftext|>`, a document a row; the loss covers the
  text. Half of the batches begin at position 0, the others anywhere.

Tokenizer: byte-level BPE with GPT-2's pre-tokenizer, trained on the same mixture; two newlines are one token.

## Training
| | |
|---|---|
| steps | {settings.steps:,} of about {batch:,} tokens: {settings.steps * batch / 1e6:.0f} million in all |
| time | {seconds / 60:.0f} minutes on {settings.processes} CPU core{"s" * (settings.processes > 1)}, {arithmetic} |
| optimizer | AdamW, betas {BETAS}, weight decay {settings.weight_decay}, gradients clipped at {CLIP} |
| learning rate | {settings.lr} after {settings.warmup} steps of warm-up, then a cosine |
| dropout | none |
| seed | {settings.seed} |

| held out | |
|---|---|
| loss on prose, nats a token | {results["books"]:.3f} |
| loss on the records' texts, nats a token | {results["texts"]:.3f} |
| values that greedy decoding copies word for word | {results["copied"]:.1%} |

## Licence
MIT for the weights, the tokenizer and the generated data; the books are in the public domain.
"""


def write_tokenizer_config(folder: Path, settings: Settings) -> None:
    """What `AutoTokenizer` needs beside `tokenizer.json`."""
    described = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": END,
        "eos_token": END,
        "unk_token": END,
        "add_prefix_space": False,
        "clean_up_tokenization_spaces": False,
        "model_max_length": settings.sizes.n_positions,
    }
    text = json.dumps(described, indent=2) + "\n"
    (folder / "tokenizer_config.json").write_text(text, encoding="utf-8")


def pretrain(
    settings: Settings, *, corpus: Path, out: Path, work: Path, every: int, processes: Processes = ALONE
) -> None:
    """Everything: tokenizer, training, result, which the first process writes.

    Raises:
        BadInput: the corpus or the checkpoint is of no use.
    """
    paragraphs, held_paragraphs = read_books(corpus)
    progress = Progress(work, settings)
    tokenizer = train_tokenizer(paragraphs, settings)
    training = Batches(tokenizer, paragraphs=paragraphs, settings=settings)
    held = Batches(tokenizer, paragraphs=held_paragraphs, settings=settings)
    net = GPT2(settings.sizes)
    seconds = train(
        net,
        training=training,
        held=held,
        settings=settings,
        progress=progress,
        every=every,
        processes=processes,
    )
    if not processes.main:
        return
    results = held_out_losses(net, held=held, settings=settings)
    results["copied"] = copied_share(net, tokenizer, settings)
    weights.save(net, tokenizer, out, dtype=torch.float16)
    write_tokenizer_config(out, settings)
    parameters = sum(p.numel() for p in net.parameters())
    characters = sum(map(len, paragraphs))
    text = card(settings, results=results, seconds=seconds, parameters=parameters, characters=characters)
    (out / "README.md").write_text(text, encoding="utf-8")
    print(f"{out}: {parameters:,} parameters, {results['copied']:.1%} of held-out values copied")


def main(argv: list[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--corpus", type=Path, required=True, help="gzipped prose, one paragraph a line")
    parser.add_argument("--out", type=Path, required=True, help="folder of the result")
    parser.add_argument("--work", type=Path, default=Path("build/pretrain"), help="checkpoint and log")
    parser.add_argument("--steps", type=int, default=6_000, help="optimizer steps (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="(default: %(default)s)")
    parser.add_argument("--every", type=int, default=250, help="steps between checkpoints (default: %(default)s)")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)  # a second process on a second core does more than a second thread
    try:
        with joined("gloo") as processes:
            if processes.size > Settings.book_rows:
                raise BadInput(
                    f"torchrun: a step has {Settings.book_rows} rows of prose, one for each process at least; give "
                    f"--nproc-per-node {Settings.book_rows} or less"
                )
            settings = Settings(steps=args.steps, seed=args.seed, processes=processes.size)
            pretrain(settings, corpus=args.corpus, out=args.out, work=args.work, every=args.every, processes=processes)
    except LodareproError as e:
        if os.environ.get("RANK", "0") == "0":  # every process meets the same fault
            print(f"error: {e}", file=sys.stderr)
        return e.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
