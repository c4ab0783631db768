"""What the benchmarks of training and decoding share: real rows, contestants that take turns, and the report.

Every contestant has a process of its own, in which it is made, takes its turns and has its memory measured; only one
is at work at a time. They take turns round by round, so that what else the machine does slows down all of them.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import re
import shlex
import signal
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from functools import partial
from importlib import metadata
from multiprocessing import get_context
from pathlib import Path
from typing import Any, get_args

import torch
import transformers
from tokenizers import Tokenizer
from torch import Tensor

from lodarepro import config, devices, provenance
from lodarepro.data import e2e
from lodarepro.data.types import Example
from lodarepro.errors import BadInput, LodareproError, RunFailed
from lodarepro.files import write_atomically
from lodarepro.model import GPT2, weights
from lodarepro.model.products import Product
from lodarepro.precision import Arithmetic, bf16_fits
from lodarepro.report.summary import counted, markdown

SHAPES = {"tiny": (2, 2, 128), "small": (12, 12, 768), "medium": (24, 16, 1024), "large": (36, 20, 1280)}
"""blocks, heads and width of GPT-2 as released; `tiny` is for tries of the scripts"""
VOCABULARY, POSITIONS = 50257, 1024  # of every GPT-2 as released
PRODUCTS = (1024, 2048, 4096)  # sizes of the square products that the ceiling is sought among; on GPUs also the next
OURS = "ours"

# --- texts ---------------------------------------------------------------------------------------------


def shape(name: str) -> config.Model:
    """A GPT-2 of one of `SHAPES`."""
    n_layer, n_head, n_embd = SHAPES[name]
    return config.Model(
        name=f"gpt2-{name}",
        n_layer=n_layer,
        n_head=n_head,
        n_embd=n_embd,
        vocab_size=VOCABULARY,
        n_positions=POSITIONS,
    )


def read_e2e(folder: Path, file: str) -> list[Example]:
    """The pairs of one of the LoRA authors' E2E files.

    Raises:
        BadInput: it is not in the folder, or is none.
    """
    for place in (folder / "e2e" / file, folder / file):
        if place.is_file():
            return e2e.parse(place)
    raise BadInput(f"--data {folder}: no e2e/{file} there; give the folder that holds the LoRA authors' E2E files")


def read_tokenizer(path: Path, *, entries: int) -> Tokenizer:
    """A tokenizer of at most so many entries.

    Raises:
        BadInput: it can't be read, or has more.
    """
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises bare Exception
        raise BadInput(f"--tokenizer {path}: can't be read ({error}); give GPT-2's tokenizer.json") from None
    if tokenizer.get_vocab_size() > entries:
        raise BadInput(f"--tokenizer {path}: {tokenizer.get_vocab_size()} entries, of which the model has {entries}")
    return tokenizer


def drawn_ids(rows: int, length: int) -> list[list[int]]:
    """Random ids, in place of real rows."""
    drawn = torch.randint(VOCABULARY - 1, (rows, length), generator=torch.Generator().manual_seed(0))
    return [list(map(int, row)) for row in drawn.tolist()]


# --- contestants -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Done:
    """What a contestant did in a turn.

    Attributes:
        units: steps of training, or texts.
        tokens: of the pairs, padding not counted, or of the texts.
        answer: what it found, to be compared with the others'.
    """

    units: int
    tokens: int
    answer: Any


Made = Callable[[Mapping[str, Tensor]], Callable[[], Done]]
"""makes a contestant from the starting weights, which it copies; called in the contestant's process"""


@dataclass(frozen=True)
class Entrant:
    """A contestant that takes part.

    Attributes:
        name: for the report.
        make: pickled for its process.
        rounds: how many it takes part in, the first ones; None: all.
        warm: whether it has a turn before them that does not count.
    """

    name: str
    make: Made
    rounds: int | None = None
    warm: bool = True


@dataclass
class Standing:
    """What was measured of a contestant.

    Attributes:
        name: its own.
        turns: seconds of each turn, and what was done in it.
        first: what it did in its very first turn.
        peak: bytes in its turns beyond what its process had before it was made; None: can't be told here.
    """

    name: str
    turns: list[tuple[float, Done]] = field(default_factory=list)
    first: Done | None = None
    peak: int | None = None

    @property
    def each(self) -> list[float]:
        """Seconds a unit in each turn."""
        return [seconds / done.units for seconds, done in self.turns]

    @property
    def seconds(self) -> float:
        """Seconds a unit, the median."""
        return statistics.median(self.each)

    @property
    def tokens_a_second(self) -> float:
        """The median."""
        return statistics.median(done.tokens / seconds for seconds, done in self.turns)


def starting_weights(model: config.Model) -> dict[str, Tensor]:
    """Those of the model's folder if it has one, else random ones, the same in every process."""
    if model.path is None:
        net = GPT2(weights.sizes_of(model))
        net.initialise(torch.Generator().manual_seed(0))
    else:
        checkpoint = weights.find(model)
        assert checkpoint is not None
        net = weights.load(checkpoint, model)
    return net.state_dict()


def model_of_transformers(model: config.Model, tensors: Mapping[str, Tensor]) -> transformers.GPT2LMHeadModel:
    """The `transformers` model with some weights and, as in the LoRA paper's code, no dropout."""
    transformers.logging.set_verbosity_error()
    sizes: dict[str, Any] = asdict(weights.sizes_of(model))
    settings = transformers.GPT2Config(**sizes, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0)
    net = transformers.GPT2LMHeadModel(settings)
    renamed = {weights.hub_name(name): t for name, t in tensors.items()}
    net.load_state_dict(renamed | {"lm_head.weight": tensors["wte.weight"]})
    return net


def of_original(checkout: Path, name: str) -> Any:
    """A module of the LoRA paper's code; its modules have names like `model`, so a process of its own is the place."""
    for place in map(str, (checkout, checkout / "examples" / "NLG" / "src")):
        if place not in sys.path:
            sys.path.insert(0, place)
    return importlib.import_module(name)


def data_of_original(checkout: Path, pairs: Sequence[tuple[Sequence[int], Sequence[int]]], *sizes: int) -> Any:
    """Pairs of (context ids, completion ids) as the original's `FT_Dataset`, which reads a file."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "pairs.jsonl"
        lines = (json.dumps({"context": list(map(int, c)), "completion": list(map(int, t))}) for c, t in pairs)
        file.write_text("\n".join(lines) + "\n", encoding="utf-8")
        return of_original(checkout, "data_utils").FT_Dataset(str(file), *sizes)


def model_of_original(checkout: Path, model: config.Model, tensors: Mapping[str, Tensor], **lora: float) -> Any:
    """The original's model with some weights; `lora` are its config's settings of that name."""
    code = of_original(checkout, "model")
    sizes = {"n_layer": model.n_layer, "n_head": model.n_head, "n_embd": model.n_embd}
    positions = {"n_positions": model.n_positions, "n_ctx": model.n_positions}
    net = code.GPT2LMModel(code.GPT2Config(model.vocab_size, **positions, **sizes, **lora))
    net.load_weight(dict(tensors))
    return net


# --- turns -----------------------------------------------------------------------------------------------


class Memory:
    """Memory of this process beyond what it had at some time; of its device, where that is a GPU."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.before = torch.cuda.memory_allocated(device) if device.type == "cuda" else _resident("VmRSS") or 0

    def forget(self) -> None:
        """From now on is what the peak is of."""
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        elif (switch := Path("/proc/self/clear_refs")).exists():
            switch.write_text("5")

    def peak(self) -> int | None:
        """Bytes; None where the system does not tell."""
        if self.device.type == "cuda":
            return int(torch.cuda.max_memory_allocated(self.device)) - self.before
        # Not getrusage's ru_maxrss: a new process inherits that from the one that started it.
        most = _resident("VmHWM")
        return None if most is None else most - self.before


def _resident(key: str) -> int | None:
    try:
        found = re.search(rf"^{key}:\s+(\d+) kB", Path("/proc/self/status").read_text(encoding="ascii"), re.MULTILINE)
    except OSError:
        return None
    return None if found is None else 1024 * int(found[1])


def wait(device: torch.device) -> None:
    """Until the device has done all that it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@dataclass
class _Here:
    """The contestant of this process; the weights stay, as they are in what the memory was before."""

    weights: Mapping[str, Tensor]
    memory: Memory
    contestant: Callable[[], Done]


_here: list[_Here] = []


def _make(make: Made, model: config.Model, device: torch.device, threads: int) -> None:
    warnings.simplefilter("ignore", FutureWarning)  # the peers' about each other
    torch.set_num_threads(threads)
    tensors = starting_weights(model)
    memory = Memory(device)
    _here.append(_Here(tensors, memory, make(tensors)))
    wait(device)
    memory.forget()


def _turn() -> tuple[float, Done]:
    here = _here[0]
    began = time.perf_counter()
    done = here.contestant()
    wait(here.memory.device)
    return time.perf_counter() - began, done


def _peak() -> int | None:
    return _here[0].memory.peak()


class Seat:
    """The process of a contestant, to be used in a `with`."""

    def __init__(self, entrant: Entrant, *, model: config.Model, device: torch.device, threads: int) -> None:
        self.entrant = entrant
        self.pool = ProcessPoolExecutor(max_workers=1, mp_context=get_context("spawn"))
        self._asked(_make, entrant.make, model, device, threads)

    def turn(self) -> tuple[float, Done]:
        """Seconds of a turn, and what was done in it."""
        found: tuple[float, Done] = self._asked(_turn)
        return found

    def peak(self) -> int | None:
        """Bytes at most in its turns, as `Memory.peak`."""
        found: int | None = self._asked(_peak)
        return found

    def _asked(self, function: Callable[..., Any], *arguments: Any) -> Any:
        try:
            return self.pool.submit(function, *arguments).result()
        except BrokenProcessPool:
            raise RunFailed(
                f"{self.entrant.name}: its process died, perhaps for lack of memory; give a smaller --shape"
            ) from None

    def __enter__(self) -> Seat:
        return self

    def __exit__(self, *_: object) -> None:
        self.pool.shutdown()


class Ceiling:
    """The fastest product of square matrices that was seen, PyTorch's or ours, in FLOP/s."""

    def __init__(self, precision: config.Precision, device: torch.device) -> None:
        self.device, self.best = device, 0.0
        dtype = Arithmetic(precision, device).dtype
        sizes = (*PRODUCTS, 2 * PRODUCTS[-1]) if device.type == "cuda" else PRODUCTS
        squares = [torch.randn(n, n).to(device, dtype) for n in sizes]
        self.products: list[tuple[int, Callable[[], Tensor]]] = []
        for x in squares:
            self.products.append((len(x), partial(torch.mm, x, x)))
            self.products.append((len(x), partial(Product(x, dtype, gradient=False).times, x)))

    def measure(self) -> None:
        """Try each once more."""
        for n, product in self.products:
            wait(self.device)
            began = time.perf_counter()
            product()
            wait(self.device)
            self.best = max(self.best, 2 * n**3 / (time.perf_counter() - began))


def contest(
    entrants: Sequence[Entrant], case: str, *, given: argparse.Namespace, model: config.Model, ceiling: Ceiling
) -> list[Standing]:
    """Let contestants take turns; ours is the first of them.

    Args:
        entrants: in the order of their turns.
        case: for the lines that say how it goes on.
        given: the command line.
        model: of all of them.
        ceiling: measured between the rounds.
    """
    standings = [Standing(entrant.name) for entrant in entrants]
    with ExitStack() as stack:
        seats = [
            stack.enter_context(
                Seat(entrant, model=model, device=torch.device(given.device), threads=torch.get_num_threads())
            )
            for entrant in entrants
        ]
        for seat, standing in zip(seats, standings, strict=True):
            if seat.entrant.warm:
                _, standing.first = seat.turn()
        for number in range(given.repeats):
            ceiling.measure()
            for seat, standing in zip(seats, standings, strict=True):
                if seat.entrant.rounds is not None and number >= seat.entrant.rounds:
                    continue
                standing.turns.append(seat.turn())
                standing.first = standing.first or standing.turns[0][1]
                said = f"{case}, round {number + 1} of {given.repeats}: {standing.name} {standing.each[-1]:.3f} s"
                print(said, file=sys.stderr, flush=True)
        for seat, standing in zip(seats, standings, strict=True):
            standing.peak = seat.peak()
    return standings


# --- report ----------------------------------------------------------------------------------------------


def described(
    standings: Sequence[Standing], case: Mapping[str, Any], *, flops: float | None, ceiling: Ceiling
) -> list[dict[str, Any]]:
    """A row of the report for each contestant.

    Args:
        standings: of one case, ours first.
        case: what tells it from the others.
        flops: operations that a unit takes, the same for all; None: not known.
        ceiling: measured beside it.
    """
    ours = standings[0]
    rows = []
    for standing in standings:
        rate = None if flops is None else flops / standing.seconds
        ratios = [theirs / own for theirs, own in zip(standing.each, ours.each, strict=False)]
        rows.append(
            {
                **case,
                "contestant": standing.name,
                "seconds": standing.seconds,
                "turns": standing.each,
                "tokens_per_second": standing.tokens_a_second,
                "flops": flops,
                "flops_per_second": rate,
                "ceiling_flops_per_second": ceiling.best,
                "share_of_ceiling": None if rate is None else rate / ceiling.best,
                "peak_bytes": standing.peak,
                "ratio_to_ours": standing.seconds / ours.seconds,
                "ratio_range": [min(ratios), max(ratios)],
            }
        )
    return rows


def table(rows: Sequence[Mapping[str, Any]], case: Sequence[str], unit: str) -> str:
    """The rows in Markdown; `case` are the columns that tell one case from another."""
    head = [*case, "who", f"s a {unit}", "tokens/s", "GFLOP/s", "of ceiling", "peak MiB", "/ ours", "range"]
    lines = [head]
    for row in rows:
        is_ours = row["contestant"] == OURS
        lines.append(
            [
                *(str(row[key]) for key in case),
                row["contestant"],
                f"{row['seconds']:.3f}",
                f"{row['tokens_per_second']:,.1f}",
                "" if row["flops"] is None else f"{row['flops_per_second'] / 1e9:,.1f}",
                "" if row["flops"] is None else f"{row['share_of_ceiling']:.1%}",
                "" if row["peak_bytes"] is None else f"{row['peak_bytes'] / 2**20:,.0f}",
                "" if is_ours else f"{row['ratio_to_ours']:.2f}",
                "" if is_ours else "{:.2f} to {:.2f}".format(*row["ratio_range"]),
            ]
        )
    return markdown(lines, texts=len(case) + 1)


def machine_lines(given: argparse.Namespace, start: str) -> list[str]:
    """When, on what, with which versions."""
    machine, code = provenance.machine(), provenance.code_version()
    device = torch.device(given.device)
    if device.type == "cuda":
        which = torch.cuda.get_device_name(device)
    else:
        which = (
            f"{counted(torch.get_num_threads(), 'thread')} used, {'' if bf16_fits(device) else 'no '}bf16 instructions"
        )
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in ("torch", "transformers", "peft"))
    commit = f"commit {code['commit']}{', with changes' if code['dirty'] else ''}"
    return [
        start,
        f"{machine['processor']}, {machine['cores']} cores, {machine['memory_gib']} GiB; {which}",
        f"{machine['system']}, Python {machine['python']}, {versions}, lodarepro {code['version']}, {commit}",
    ]


def described_start() -> str:
    """When the run began, on how busy a machine."""
    load = ", ".join(f"{average:.2f}" for average in os.getloadavg())
    return f"started {datetime.now(UTC):%Y-%m-%d %H:%M} UTC, load average over 1, 5, 15 minutes: {load}"


def command_text(argv: Sequence[str]) -> str:
    """The command, with files by their names alone."""
    words = [Path(word).name if os.sep in word else word for word in argv]
    return shlex.join(["python", f"scripts/{Path(sys.argv[0]).name}", *words])


@dataclass(frozen=True)
class Report:
    """What a benchmark found.

    Attributes:
        title: of the report.
        rows: as `described` gives them.
        table: they, in Markdown.
        notes: what was timed, a line each.
        settings: for the JSON form.
    """

    title: str
    rows: list[dict[str, Any]]
    table: str
    notes: list[str]
    settings: dict[str, Any]


NOTES = [
    "Contestants take turns, each in a process of its own; times are medians of the rounds, `/ ours` is the ratio of "
    "medians, and its range that of the rounds' own ratios.",
    "GFLOP/s: matrix products that the work takes without padding, the same number for all, over the time; the ceiling "
    "is the fastest square matrix product seen between the rounds.",
    "Peak: what a process (on a GPU, its device memory) grew by for the model and its turns.",
]

# --- command ---------------------------------------------------------------------------------------------


def argument_parser(description: str, *, repeats: int) -> argparse.ArgumentParser:
    """The options that both scripts have."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--data", type=Path, help="folder with the LoRA authors' e2e/*.txt; goes with --tokenizer")
    parser.add_argument("--tokenizer", type=Path, help="GPT-2's tokenizer.json; without it ids are random")
    parser.add_argument("--shape", choices=SHAPES, default="small", help="of the model, with random weights (small)")
    parser.add_argument(
        "--precision", nargs="+", choices=get_args(config.Precision), default=["fp32", "bf16"], help="(fp32 bf16)"
    )
    parser.add_argument("--repeats", type=int, default=repeats, help="rounds (%(default)s)")
    parser.add_argument("--threads", type=int, help="of the CPU (torch's choice)")
    parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N (cpu)")
    parser.add_argument("--original", type=Path, metavar="DIR", help="checkout of microsoft/LoRA, timed too, in fp32")
    parser.add_argument("--original-repeats", type=int, default=1, help="its rounds; it is slow (%(default)s)")
    parser.add_argument("--json", action="store_true", help="print an object instead of the report")
    parser.add_argument("--out", type=Path, help="write the report to this file, too")
    return parser


def _check(given: argparse.Namespace) -> None:
    for name, value in vars(given).items():
        for number in value if isinstance(value, list) else [value]:
            if isinstance(number, int) and not isinstance(number, bool) and number < 1:
                raise BadInput(f"--{name.replace('_', '-')} {number}: give 1 or more")
    if not re.fullmatch(r"cpu|cuda(:\d+)?", given.device):
        raise BadInput(f"--device {given.device}: give cpu, cuda or cuda:N")
    devices.check(given.device)
    if given.original and not all(
        (given.original / file).is_file() for file in ("loralib/__init__.py", "examples/NLG/src/gpt2_ft.py")
    ):
        raise BadInput(f"--original {given.original}: give a checkout of microsoft/LoRA, with loralib and examples/NLG")
    if (given.data is None) != (given.tokenizer is None):
        raise BadInput("--data and --tokenizer: give both for real rows, or neither for random ids")
    if given.out and given.out.is_dir():
        raise BadInput(f"--out {given.out}: a folder: name a file in it")


def run(benchmark: Callable[[argparse.Namespace], Report], parser: argparse.ArgumentParser, argv: list[str]) -> int:
    """The command line around a benchmark."""
    given = parser.parse_args(argv)
    try:
        _check(given)
        if given.threads:
            torch.set_num_threads(given.threads)
        start = described_start()
        report = benchmark(given)
        machine = machine_lines(given, start)
        text = "\n\n".join(
            [
                f"# {report.title}",
                f"Written by `{command_text(argv)}`.",
                report.table,
                "\n".join(f"- {line}" for line in [*report.notes, *NOTES]),
                "## Machine",
                "\n".join(f"- {line}" for line in machine),
            ]
        )
        if given.json:
            tree = {"settings": report.settings, "machine": machine, "notes": report.notes, "rows": report.rows}
            print(json.dumps(tree, indent=1))
        else:
            print(text)
        if given.out:
            try:
                given.out.parent.mkdir(parents=True, exist_ok=True)
                write_atomically(given.out, f"{text}\n".encode())
            except OSError as error:
                raise BadInput(f"--out {given.out}: can't be written ({error.strerror}): name another file") from None
    except LodareproError as error:
        for fault in error.faults:
            print(f"error: {fault}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    return 0
