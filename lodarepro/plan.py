"""What cells will cost before any is run: tokens, operations, memory, hours.

Operations are counted (`cost.py`), the rate is measured here by a few steps of the real loop and search on random
weights, or stated as a share of a named GPU's peak. Nothing is downloaded: where data are not present, the sizes that
are pinned beside their checksums are used.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lodarepro import config, cost, devices
from lodarepro.data import SPLITS, check_held_out, load
from lodarepro.data.batch import steps_an_epoch
from lodarepro.data.sources import download_url, locate
from lodarepro.data.tokenise import Encoded, encode
from lodarepro.decode.beam import search
from lodarepro.decode.generate import BATCH
from lodarepro.errors import BadInput, nearest
from lodarepro.methods import attach, finalize, layout, one_group, trained
from lodarepro.model import GPT2, weights
from lodarepro.precision import Arithmetic
from lodarepro.report.summary import counted, duration, markdown
from lodarepro.train.loop import total_steps
from lodarepro.train.optim import make_optimizer
from lodarepro.train.step import Step

logger = logging.getLogger(__name__)

MOMENTS = 2  # AdamW keeps two numbers a trained parameter
FP32 = 4  # bytes; weights, gradients and moments are fp32 at every precision
LOGITS_COPIES = 2  # gradients of logits beside what the forward pass kept
UTILISATION = 0.3  # assumed share of a GPU's peak
PROBE_STEPS = 2  # of training, after one that is not timed
PROBE_TOKENS = 8  # steps of the search, likewise


@dataclass(frozen=True)
class Gpu:
    """Peak rates without sparsity, as its data sheet has them.

    Attributes:
        name: as people call it.
        fp32, tf32, bf16: TFLOP/s of matrix products. None: it has no such units.
        memory: GiB.
    """

    name: str
    fp32: float
    tf32: float | None
    bf16: float | None
    memory: int


GPUS = {
    gpu.name: gpu
    for gpu in (
        Gpu("t4", 8.1, None, None, 16),
        Gpu("v100", 15.7, None, None, 32),
        Gpu("rtx3090", 35.6, 35.6, 71.0, 24),
        Gpu("rtx4090", 82.6, 82.6, 165.2, 24),
        Gpu("a10", 31.2, 62.5, 125.0, 24),
        Gpu("a40", 37.4, 74.8, 149.7, 48),
        Gpu("a100", 19.5, 156.0, 312.0, 80),
        Gpu("l40s", 91.6, 183.0, 362.0, 48),
        Gpu("h100", 66.9, 494.7, 989.4, 80),
        Gpu("h200", 66.9, 494.7, 989.4, 141),
    )
}
"""NVIDIA's data sheets; V100, A100, H100 and H200 as SXM modules"""


@dataclass(frozen=True)
class Sizes:
    """What of a dataset decides the cost of a run.

    Attributes:
        pairs: of train and valid.
        tokens: in all pairs of train and valid.
        completion_tokens: of these, those that carry loss.
        longest: tokens of the longest training pair.
        contexts: distinct ones of test.
        context_tokens: of those.
        counted: in the data themselves; else from the pinned sizes.
    """

    pairs: tuple[int, int]
    tokens: tuple[float, float]
    completion_tokens: tuple[float, float]
    longest: int
    contexts: int
    context_tokens: float
    counted: bool


@dataclass(frozen=True)
class Estimate:
    """The cost of one run.

    Attributes:
        train_tokens: that go through training, all epochs, without padding.
        train_flops: of training, without padding, and of its validation losses.
        decode_flops: if every search runs to its last step, and every checkpoint to keep is another epoch's.
        memory: bytes at the largest moment, without what CUDA itself takes.
        counted: as `Sizes.counted`.
    """

    train_tokens: float
    train_flops: float
    decode_flops: float
    memory: float
    counted: bool


@dataclass(frozen=True)
class Rate:
    """How fast a machine works.

    Attributes:
        train, decode: FLOP/s.
        memory: bytes of the device; None: not known.
        source: where this is from, for people.
    """

    train: float
    decode: float
    memory: float | None
    source: str

    def seconds(self, estimate: Estimate) -> float:
        """Time of one run, without loading and scoring."""
        return estimate.train_flops / self.train + estimate.decode_flops / self.decode


def sizes(run: config.Run, base: weights.Checkpoint | None) -> Sizes:
    """Count a run's data where they and the tokenizer are on this machine; take the pinned sizes else.

    Args:
        run: what is to run.
        base: its base model, if that is on this machine.

    Raises:
        BadInput: the data are not here and have no pinned sizes, or can't be read.
    """
    if base is None or not _held(run):
        return _pinned(run)
    tokenizer = weights.load_tokenizer(base)
    lay, cache = layout(run.method, tokenizer), Path(run.data.cache)
    examples = {split: load(run.dataset, run.data, split).examples for split in SPLITS}
    train, valid, test = (encode(examples[split], tokenizer, run.protocol, cache=cache, layout=lay) for split in SPLITS)
    lengths = [np.minimum(data.lengths, run.protocol.max_length) for data in (train, valid)]
    losses = [np.maximum(0, n - data.contexts) for n, data in zip(lengths, (train, valid), strict=True)]
    room = run.protocol.max_length - run.decode.max_new_tokens
    contexts = {e.context: min(int(n), room) for e, n in zip(examples["test"], test.contexts, strict=True)}
    return Sizes(
        pairs=(len(train), len(valid)),
        tokens=(float(lengths[0].sum()), float(lengths[1].sum())),
        completion_tokens=(float(losses[0].sum()), float(losses[1].sum())),
        longest=int(lengths[0].max()),
        contexts=len(contexts),
        context_tokens=float(sum(contexts.values())),
        counted=True,
    )


def _held(run: config.Run) -> bool:
    """Whether nothing of a run's data would have to be downloaded."""
    return all(download_url(run.dataset, run.data, split) is None for split in SPLITS)


def _pinned(run: config.Run) -> Sizes:
    dataset = run.dataset
    pins = [dataset.pins.get(getattr(dataset.files, split)) for split in SPLITS]
    train, valid, test = pins
    if train is None or valid is None or test is None or any(None in known for known in _sizes_of(train, valid, test)):
        if _held(run):
            for split in SPLITS:
                locate(run.dataset, run.data, split)  # its fault says what is missing
            raise BadInput(
                f"dataset '{dataset.name}': no pinned sizes, and the tokenizer of {run.model.name}, which could count "
                "its files, is not on this machine; give model.path=FOLDER"
            )
        raise BadInput(
            f"dataset '{dataset.name}': its files are not on this machine and it has no pinned sizes; give "
            "data.root=FOLDER"
        )
    assert train.tokens and train.completion_tokens and train.longest
    assert valid.tokens and valid.completion_tokens and test.contexts and test.context_tokens
    limit = dataset.limit
    shares = [1.0, 1.0]
    if dataset.hold_out:
        if train.contexts is None:
            raise BadInput(
                f"dataset '{dataset.name}': nobody counted the contexts of {dataset.files.train}, of which "
                f"dataset.hold_out={dataset.hold_out} takes some; give data.root=FOLDER"
            )
        check_held_out(dataset.hold_out, train.contexts, dataset.files.train)
        held = dataset.hold_out / train.contexts
        shares = [1 - held, held]
    pairs = [pin.examples * share for pin, share in zip((train, valid), shares, strict=True)]
    pairs = [min(n, most or n) for n, most in zip(pairs, (limit.train, limit.valid), strict=True)]
    kept = [n / pin.examples for n, pin in zip(pairs, (train, valid), strict=True)]
    contexts = min(test.contexts, limit.test or test.contexts)
    return Sizes(
        pairs=(round(pairs[0]), round(pairs[1])),
        tokens=(train.tokens * kept[0], valid.tokens * kept[1]),
        completion_tokens=(train.completion_tokens * kept[0], valid.completion_tokens * kept[1]),
        longest=train.longest,
        contexts=contexts,
        context_tokens=test.context_tokens * contexts / test.contexts,
        counted=False,
    )


def _sizes_of(train: config.Pin, valid: config.Pin, test: config.Pin) -> list[tuple[int | None, ...]]:
    """What of the pins a plan needs."""
    return [
        (train.tokens, train.completion_tokens, train.longest),
        (valid.tokens, valid.completion_tokens),
        (test.contexts, test.context_tokens),
    ]


def estimate(run: config.Run, known: Sizes) -> Estimate:
    """The cost of a run on data of these sizes."""
    model, method, settings = run.model, run.method, run.train
    counted = cost.count(model, method)
    rows = settings.batch_size
    longest = min(known.longest, run.protocol.max_length)
    share = known.completion_tokens[0] / known.tokens[0]
    step = cost.training_step(model, method, rows=rows, width=_width(known), targets=_targets(known, rows))
    worst = cost.training_step(model, method, rows=rows, width=longest, targets=round(share * rows * longest))
    valid_tokens, valid_targets = known.tokens[1], known.completion_tokens[1]
    valid = cost.forward_flops(
        model, method, tokens=valid_tokens, targets=valid_targets, context=valid_tokens / known.pairs[1] / 2
    )
    prompt = known.context_tokens / known.contexts
    search = run.decode
    new = search.beam * search.max_new_tokens * known.contexts
    decode = cost.forward_flops(
        model, method, tokens=known.context_tokens, targets=known.contexts, context=prompt / 2
    ) + cost.forward_flops(model, method, tokens=new, targets=new, context=prompt + search.max_new_tokens / 2)
    steps = total_steps(known.pairs[0], settings) if counted.trainable else 0
    epochs = -(-steps // steps_an_epoch(known.pairs[0], rows))
    weights_bytes = FP32 * counted.total
    logits = FP32 * model.vocab_size * round(share * rows * longest)
    training = (1 + MOMENTS) * FP32 * counted.trainable + worst.activation_bytes + LOGITS_COPIES * logits
    prompts = min(run.runtime.decode_batch or BATCH["cuda"], known.contexts)
    cached = prompts * (prompt + search.beam * search.max_new_tokens)
    decoding = 2 * FP32 * model.n_layer * model.n_embd * cached
    decoding += (1 + LOGITS_COPIES) * FP32 * prompts * search.beam * model.vocab_size
    return Estimate(
        train_tokens=steps * rows * known.tokens[0] / known.pairs[0],
        train_flops=float(steps * step.flops + max(1, epochs) * valid),
        decode_flops=decode * (len(settings.keep) if counted.trainable else 1),
        memory=weights_bytes + max(training if epochs else 0, decoding),
        counted=known.counted,
    )


def _width(known: Sizes) -> int:
    """Tokens of a pair, on average: the loop works on those alone."""
    return max(1, round(known.tokens[0] / known.pairs[0]))


def _targets(known: Sizes, rows: int) -> int:
    return max(1, round(rows * known.completion_tokens[0] / known.pairs[0]))


def stated(gpu: str, utilisation: float, precision: str, decode: str = "fp32") -> Rate:
    """The rate of a named GPU at a stated share of its peak.

    Args:
        gpu: a name among `GPUS`.
        utilisation: the share.
        precision: of training.
        decode: precision of decoding.

    Raises:
        BadInput: no such GPU is known, it lacks the precision, or the share is none.
    """
    if gpu not in GPUS:
        raise BadInput(f"--gpu {gpu}: no such GPU{nearest(gpu, GPUS)}")
    if not 0 < utilisation <= 1:
        raise BadInput(f"--utilisation {utilisation}: give a share of the peak, above 0 and at most 1")
    known = GPUS[gpu]
    peaks = []
    for section, wanted in (("train", precision), ("decode", decode)):
        peak = getattr(known, wanted)
        if peak is None:
            raise BadInput(f"--gpu {gpu}: it has no units for {section}.precision={wanted}; plan with fp32")
        peaks.append(peak)
    source = f"stated: {100 * utilisation:.0f} % of the {peaks[0]} TFLOP/s ({precision}) of one {gpu}"
    source += "" if precision == decode else f", decoding at the {peaks[1]} of {decode}"
    flops = utilisation * 1e12
    return Rate(peaks[0] * flops, peaks[1] * flops, known.memory * 2**30, source)


def measured(run: config.Run, known: Sizes) -> Rate:
    """The rate of this machine, from a few steps of training and of the search on random weights.

    Args:
        run: whose model, method, batch and device are tried.
        known: sizes of its data, which the batches have.

    Raises:
        BadInput: the device is not there.
    """
    devices.set_threads(run)
    with devices.taken(run.runtime.device, wait=False) as device:
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else "this CPU"
        logger.info("measuring the throughput of %s with %s on %s", run.model.name, run.method.name, name)
        model = GPT2(weights.sizes_of(run.model))
        model.initialise(torch.Generator().manual_seed(0))
        attach(model, run.method, torch.Generator().manual_seed(0))
        model.to(device)
        train = _train_rate(run, known, model, device) if trained(model) else None
        finalize(model, run.method)
        decode = _decode_rate(run, known, model.eval(), device)
        memory = float(torch.cuda.get_device_properties(device).total_memory) if device.type == "cuda" else None
        del model
        if device.type == "cuda":
            torch.cuda.empty_cache()  # for the cells that follow, in other processes
    threads = f", {counted(torch.get_num_threads(), 'thread')}" if device.type == "cpu" else ""
    source = (
        f"measured on {name} ({run.train.precision}{threads}), a few steps of {run.method.name} on {run.model.name}"
    )
    # Where nothing trains there are validation losses alone, which are forward passes as decoding is.
    return Rate(decode if train is None else train, decode, memory, source)


def _train_rate(run: config.Run, known: Sizes, model: GPT2, device: torch.device) -> float:
    rows, width = run.train.batch_size, max(2, min(_width(known), run.protocol.max_length))
    targets = min(width - 1, _targets(known, 1))
    optimizer = make_optimizer(one_group(model), run.train)
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(run.model.vocab_size, (rows, width), generator=generator).tolist()
    data = Encoded.of([(row[: width - targets], row[width - targets :]) for row in tokens])
    arithmetic = Arithmetic(run.train.precision, device)
    model.pack(arithmetic.dtype, training=True)
    gradient = Step(model, data, run.train, protocol=run.protocol, arithmetic=arithmetic)
    seconds = []
    for _ in range(1 + PROBE_STEPS):
        began = time.perf_counter()
        gradient(range(rows))
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        _wait(device)
        seconds.append(time.perf_counter() - began)
    step = cost.training_step(run.model, run.method, rows=rows, width=width, targets=rows * targets)
    return step.flops / min(seconds[1:])


def _decode_rate(run: config.Run, known: Sizes, model: GPT2, device: torch.device) -> float:
    prompts = min(run.runtime.decode_batch or BATCH[device.type], known.contexts)
    width = max(1, round(known.context_tokens / known.contexts))
    width = min(width, run.protocol.max_length - PROBE_TOKENS)
    generator = torch.Generator().manual_seed(0)
    contexts = torch.randint(run.model.vocab_size, (prompts, width), generator=generator).tolist()
    # No token ends a hypothesis here, so that all steps run.
    settings = config.Decode(beam=run.decode.beam, max_new_tokens=PROBE_TOKENS)
    arithmetic = Arithmetic(run.decode.precision, device)
    model.pack(arithmetic.dtype, training=False)
    with arithmetic():
        search(model, contexts[:1], settings, end_ids=[])
        began = time.perf_counter()
        search(model, contexts, settings, end_ids=[])
        _wait(device)
        seconds = time.perf_counter() - began
    new = prompts * run.decode.beam * (PROBE_TOKENS - 1)  # the first token comes from the prompts' own pass
    flops = cost.forward_flops(
        run.model, run.method, tokens=prompts * width, targets=prompts, context=width / 2
    ) + cost.forward_flops(run.model, run.method, tokens=new, targets=new, context=width + PROBE_TOKENS / 2)
    return flops / seconds


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@dataclass(frozen=True)
class Asked:
    """A cell whose cost is asked for.

    Attributes:
        label: of its row, or its overrides.
        run: with any of its seeds.
        todo: runs that are still to do.
        done: runs that are finished.
    """

    label: str
    run: config.Run
    todo: int
    done: int


@dataclass(frozen=True)
class Planned:
    """A cell of a plan.

    Attributes:
        asked: what was asked for.
        estimate: of one run.
        rate: of the machine at its model; None: nothing is left to do there, or it was not to be measured.
    """

    asked: Asked
    estimate: Estimate
    rate: Rate | None

    @property
    def seconds(self) -> float:
        """Of all that is still to do, one run after the other."""
        return 0.0 if self.rate is None else self.asked.todo * self.rate.seconds(self.estimate)

    @property
    def fits(self) -> bool:
        """Whether the device has the memory, as far as is known."""
        return self.rate is None or self.rate.memory is None or self.estimate.memory < self.rate.memory


def plan(
    asked: Sequence[Asked], *, gpu: str | None = None, utilisation: float = UTILISATION, measure: bool = True
) -> list[Planned]:
    """The cost of cells.

    Args:
        asked: the cells.
        gpu: a name among `GPUS`; None: the rate is measured on this machine, once for each model and precision that
            something is left to do with.
        utilisation: the share of that GPU's peak that is reckoned with.
        measure: False, where the cells run on other machines: without a GPU's name there are no times then.

    Raises:
        BadInput: as `sizes`, `stated` and `measured`.
    """
    if gpu is not None:
        stated(gpu, utilisation, "fp32")  # before what takes seconds
    bases: dict[str, weights.Checkpoint | None] = {}
    known: dict[str, Sizes] = {}
    sized = []
    for cell in asked:
        run = cell.run
        if repr(run.model) not in bases:
            bases[repr(run.model)] = weights.find(run.model, download=False)
        base = bases[repr(run.model)]
        own = layout(run.method, weights.load_tokenizer(base)) if base is not None else None
        batches = (run.train.batch_size, run.train.shuffle, run.train.fill_last_batch, run.decode.max_new_tokens)
        key = repr((run.dataset, run.data, run.model, run.protocol, own and own.key, batches))
        sized.append(known[key] if key in known else known.setdefault(key, sizes(run, base)))
    estimates = [estimate(cell.run, size) for cell, size in zip(asked, sized, strict=True)]
    rates: dict[str, Rate] = {}
    tried = sorted(
        (i for i, cell in enumerate(asked) if cell.todo),
        # What trains little is tried in little time and memory; what trains nothing says nothing about training.
        key=lambda i: cost.count(asked[i].run.model, asked[i].run.method).trainable or float("inf"),
    )
    for i in tried:
        run = asked[i].run
        if (gpu or measure) and _machine(run) not in rates:
            rates[_machine(run)] = (
                measured(run, sized[i])
                if gpu is None
                else stated(gpu, utilisation, run.train.precision, run.decode.precision)
            )
    return [Planned(cell, found, rates.get(_machine(cell.run))) for cell, found in zip(asked, estimates, strict=True)]


def _machine(run: config.Run) -> str:
    """What a rate is the same for."""
    return repr((run.model, run.train.precision, run.decode.precision, run.runtime.device, run.runtime.threads))


def report(planned: Sequence[Planned]) -> str:
    """The plan as a Markdown table, a line a cell, with the sum and what it rests on below."""
    rows = [["cell", "left", "done", "tokens a run", "FLOP a run", "memory", "a run", "all that is left"]]
    for cell in planned:
        found = cell.estimate
        each = cell.rate.seconds(found) if cell.rate else 0.0
        rows.append(
            [
                cell.asked.label,
                str(cell.asked.todo),
                str(cell.asked.done),
                f"{found.train_tokens / 1e6:.1f}M",
                f"{found.train_flops + found.decode_flops:.1e}",
                f"{found.memory / 2**30:.1f} GiB" + ("" if cell.fits else " (!)"),
                duration(each) if cell.rate else "",
                duration(cell.seconds) if cell.rate and cell.asked.todo else "",
            ]
        )
    todo = sum(cell.asked.todo for cell in planned)
    done = sum(cell.asked.done for cell in planned)
    timed = all(cell.rate for cell in planned if cell.asked.todo)
    about = f"about {duration(sum(cell.seconds for cell in planned))} on one device"
    lines = [f"{counted(todo, 'run')} left, {done} done; {about if timed else 'time: lodarepro plan NAME --gpu GPU'}."]
    lines += sorted({f"Rate {cell.rate.source}." for cell in planned if cell.rate})
    if not all(cell.estimate.counted for cell in planned):
        lines.append(
            "Data that are not here are reckoned by their pinned sizes, in tokens of GPT-2, without what a method adds."
        )
    lines.append(
        "FLOP as if every search ran to its last step and every checkpoint were another epoch's; without loading and "
        "scoring; memory at fp32."
    )
    if not all(cell.fits for cell in planned):
        lines.append("(!) more than the device has: a step is then split (runtime.micro_batch), or give a larger one.")
    return "\n".join([markdown(rows), "", *lines])


def as_json(planned: Sequence[Planned]) -> list[dict[str, Any]]:
    """The plan as `--json` gives it."""
    return [
        {
            "cell": cell.asked.label,
            "left": cell.asked.todo,
            "done": cell.asked.done,
            "train_tokens": cell.estimate.train_tokens,
            "train_flops": cell.estimate.train_flops,
            "decode_flops": cell.estimate.decode_flops,
            "memory_bytes": cell.estimate.memory,
            "sizes": "counted" if cell.estimate.counted else "pinned",
            "rate": cell.rate and cell.rate.source,
            "seconds_a_run": cell.rate and cell.rate.seconds(cell.estimate),
            "seconds_left": cell.seconds,
        }
        for cell in planned
    ]
