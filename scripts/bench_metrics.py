"""Time our metrics beside the programs that define them, on the same texts in one run, and show both sides' figures.

    python scripts/bench_metrics.py --e2e-hyp SYSTEM.tsv --e2e-ref testset_w_refs.csv --webnlg SYSTEM.jsonl.gz

Peers are the packages pycocoevalcap, sacrebleu, nltk and, if it is installed, pyter3; with --official also a complete
checkout of tuetschek/e2e-metrics. Ours and the peer take turns, so that what else the machine does slows down both.
"""

from __future__ import annotations

import argparse
import gzip
import importlib
import importlib.util
import json
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import cached_property
from importlib import metadata
from itertools import zip_longest
from operator import attrgetter
from pathlib import Path
from typing import Any

from lodarepro import provenance
from lodarepro.errors import BadInput, LodareproError, RunFailed
from lodarepro.files import write_atomically
from lodarepro.metrics import (
    SUITES,
    bleu,
    chrf_pp,
    cider,
    intervals,
    java,
    measure,
    meteor,
    mteval,
    nist,
    ptb,
    rouge_l,
    score,
    ter,
)
from lodarepro.metrics.reading import read_e2e
from lodarepro.metrics.segments import Figure, Group, Segments

DEFAULT_OUT = Path(__file__).resolve().parent.parent / "results" / "benchmarks" / "metrics.md"
OFFICIAL_FILES = (
    "measure_scores.py",
    "pycocoevalcap/meteor/meteor-1.5.jar",
    "pycocoevalcap/meteor/data/paraphrase-en.gz",
    "pycocoevalcap/tokenizer/stanford-corenlp-3.4.1.jar",
)
SAMPLES = 1000  # of the bootstrap
PATIENCE = 30  # seconds for a process to end by itself

# --- texts ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Inputs:
    """The files, and their texts in every form that a row takes, made when first asked for.

    Attributes:
        hypotheses: of the E2E challenge, one file per system; the first is scored where a row takes one.
        references: of the E2E challenge, or None.
        webnlg_file: hypotheses and references of WebNLG, or None.
        official: checkout of the official E2E scorer, or None.
        ter_segments: how many segments of WebNLG the TER row takes; None: all.
    """

    hypotheses: tuple[Path, ...]
    references: Path | None
    webnlg_file: Path | None
    official: Path | None = None
    ter_segments: int | None = None

    def e2e_of(self, system: int) -> Segments:
        """A system's segments of E2E, raw."""
        assert self.references is not None
        hypotheses, references = read_e2e(self.hypotheses[system], self.references)
        return Segments(tuple(hypotheses), tuple(map(tuple, references)))

    @cached_property
    def e2e(self) -> Segments:
        """E2E, raw."""
        return self.e2e_of(0)

    @cached_property
    def mteval(self) -> Segments:
        """E2E in 13a tokens."""
        return self.e2e.map(mteval.tokenize)

    @cached_property
    def ptb(self) -> Segments:
        """E2E in PTB tokens."""
        return ptb.tokenize(self.e2e)

    @cached_property
    def webnlg(self) -> Segments:
        """WebNLG, raw."""
        assert self.webnlg_file is not None
        return read_webnlg(self.webnlg_file)

    @cached_property
    def _webnlg_forms(self) -> dict[str, Segments]:
        return SUITES["webnlg"].prepare(self.webnlg)

    @property
    def split(self) -> Segments:
        """WebNLG as its BLEU and chrF++ see it: lower-cased, split at non-word characters, six references."""
        return self._webnlg_forms["split"]

    @property
    def nltk(self) -> Segments:
        """WebNLG as its METEOR and TER see it: the same in NLTK's tokens."""
        return self._webnlg_forms["nltk"]

    @property
    def for_ter(self) -> Segments:
        """The part of it that the TER row takes."""
        return self.nltk.select(range(len(self.nltk))[: self.ter_segments])

    def arguments(self) -> list[str | Path]:
        """The command line that gives a worker these files."""
        options: list[str | Path] = []
        for path in self.hypotheses:
            options += ["--e2e-hyp", path]
        if self.references:
            options += ["--e2e-ref", self.references]
        if self.webnlg_file:
            options += ["--webnlg", self.webnlg_file]
        return options


def read_webnlg(path: Path) -> Segments:
    """Hypotheses and references from JSON lines, gzipped if the name says so.

    Raises:
        BadInput: no such file, or not in this form.
    """
    try:
        with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8") as file:
            lines = file.readlines()
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise BadInput(f"{path}: can't be read ({error}): give JSON lines, gzipped if the name ends in .gz") from None
    rows = []
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
            hypothesis, references = row["hypothesis"], tuple(row["references"])
        except (ValueError, KeyError, TypeError):
            hypothesis, references = None, ()
        if not (references and all(isinstance(text, str) for text in (hypothesis, *references))):
            raise BadInput(
                f"{path}: line {number}: no JSON object with a `hypothesis`, a text, and `references`, one or more: "
                "mend the line"
            )
        rows.append((hypothesis, references))
    if not rows:
        raise BadInput(f"{path}: an empty file: give one segment a line")
    return Segments(tuple(row[0] for row in rows), tuple(row[1] for row in rows))


# --- what is timed ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Result:
    """What a side gives.

    Attributes:
        values: figure by name.
        segments: the figure, or for a tokenizer the text, of each segment; empty if there is none.
    """

    values: Mapping[str, float]
    segments: Sequence[float | str] = ()


@dataclass(frozen=True)
class Sample:
    """A result with the seconds that it took."""

    seconds: float
    result: Result


Side = Callable[[Inputs], Callable[[], Result]]
"""Ours or the peer: prepares what is not timed and returns what is."""

Sampler = Callable[[Inputs], Callable[[], Sample]]
"""A side with the way that it is timed."""


def here(side: Side) -> Sampler:
    """A side in this process."""

    def prepare(inputs: Inputs) -> Callable[[], Sample]:
        call = side(inputs)
        return lambda: _timed(call)

    return prepare


def in_new_process(name: str, *, whole: bool = False, systems: Sequence[int] = (0,)) -> Sampler:
    """A side in a process of its own for every sample.

    Args:
        name: its name in SIDES.
        whole: time the whole process: the start of Python, imports and the reading of files too.
        systems: the E2E systems that the process is given.
    """

    def prepare(inputs: Inputs) -> Callable[[], Sample]:
        own = replace(inputs, hypotheses=tuple(inputs.hypotheses[i] for i in systems if inputs.hypotheses))
        command = [sys.executable, __file__, "--worker", name, *own.arguments()]

        def sample() -> Sample:
            start = time.perf_counter()
            answer = json.loads(_output_of(command).splitlines()[-1])
            seconds = time.perf_counter() - start if whole else answer["seconds"]
            return Sample(seconds, Result(answer["values"], answer["segments"]))

        return sample

    return prepare


def official_script(inputs: Inputs) -> Callable[[], Sample]:
    """The official E2E scorer as its users run it, in a process of its own."""
    assert inputs.official is not None and inputs.references is not None
    reference, hypothesis = inputs.references.resolve(), inputs.hypotheses[0].resolve()
    command: list[str | Path] = [sys.executable, "-B", "measure_scores.py", "-p", reference, hypothesis]

    def call() -> Result:
        lines = _output_of(command, cwd=inputs.official).splitlines()
        pairs = (line.split(": ") for line in lines[2:] if line)
        return Result({name.lower(): float(value) for name, value in pairs})

    return lambda: _timed(call)


def work(name: str, inputs: Inputs) -> None:
    """What a process of `in_new_process` does: one sample, printed as JSON."""
    sample = _timed(SIDES[name](inputs))
    answer = {
        "seconds": sample.seconds,
        "values": dict(sample.result.values),
        "segments": list(sample.result.segments),
    }
    print(json.dumps(answer))


def _timed(call: Callable[[], Result]) -> Sample:
    start = time.perf_counter()
    result = call()
    return Sample(time.perf_counter() - start, result)


def _output_of(command: Sequence[str | Path], cwd: Path | None = None) -> str:
    """Standard output of a command; RunFailed with the end of its standard error if it fails."""
    with subprocess.Popen(
        command,
        cwd=cwd,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",
        errors="replace",
        start_new_session=True,  # a group, so that the Java programs of the peers can be stopped with it
    ) as process:
        try:
            output, complaints = process.communicate()
        except BaseException:
            _stop(process)
            raise
    if process.returncode != 0:
        said = (complaints.strip().splitlines() or ["nothing"])[-1]
        name = " ".join(Path(part).name for part in command[1:4])
        raise RunFailed(f"{name}: ended with status {process.returncode}; it said last: {said}")
    return output


def _stop(process: subprocess.Popen[str]) -> None:
    """Ends a process and all of its group, politely at first: ours removes its temporary files then."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            process.wait(PATIENCE)
        os.killpg(process.pid, signal.SIGKILL)


# --- sides -----------------------------------------------------------------------------------------------


def ours(name: str, compute: Callable[[Segments, Sequence[Group]], list[Figure]], form: str) -> Side:
    """One of our metrics on a form of the texts, an attribute of Inputs."""

    def prepare(inputs: Inputs) -> Callable[[], Result]:
        segments: Segments = attrgetter(form)(inputs)

        def call() -> Result:
            figure = compute(segments, [range(len(segments))])[0]
            return Result({name: figure.value}, figure.segments or ())

        return call

    return prepare


def warmed(side: Side) -> Side:
    """A side that has run once before it is timed: its Java programs are up."""

    def prepare(inputs: Inputs) -> Callable[[], Result]:
        call = side(inputs)
        call()
        return call

    return prepare


def suite_of(name: str, form: str) -> Side:
    """One of our suites."""

    def prepare(inputs: Inputs) -> Callable[[], Result]:
        segments: Segments = attrgetter(form)(inputs)
        return lambda: _scored(segments, name)

    return prepare


def e2e_after_another(inputs: Inputs) -> Callable[[], Result]:
    """Our E2E suite for the second system, after the first one."""
    before, segments = inputs.e2e_of(0), inputs.e2e_of(1)
    _scored(before, "e2e")
    return lambda: _scored(segments, "e2e")


def _scored(segments: Segments, suite: str) -> Result:
    scores = score(segments.hypotheses, segments.references, suite=suite).scores
    return Result({key: each.value for key, each in scores.items()})


def webnlg_without_meteor(inputs: Inputs) -> Callable[[], Result]:
    """What needs no Java of our WebNLG suite."""
    suite, segments = SUITES["webnlg"], inputs.webnlg

    def call() -> Result:
        forms = suite.prepare(segments)
        used = [metric for metric in suite.metrics if not metric.begin]
        return Result({m.key: m.compute(forms[m.form], [range(len(segments))])[0].value for m in used})

    return call


def tokenized(inputs: Inputs) -> Callable[[], Result]:
    """Our PTB tokenizer."""
    segments = inputs.e2e
    return lambda: _tokens(ptb.tokenize(segments).texts())


def resampled(inputs: Inputs) -> Callable[[], Result]:
    """Our bootstrap of all metrics of the E2E suite, which has been measured before."""
    measurement = measure(inputs.e2e.hypotheses, inputs.e2e.references, suite="e2e")

    def call() -> Result:
        low, high = intervals(measurement, samples=SAMPLES)["all"]["bleu"]
        return Result({"bleu from": low, "to": high})

    return call


def _tokens(texts: Sequence[str]) -> Result:
    return Result({"tokens": sum(len(text.split()) for text in texts)}, texts)


# --- peers' sides ------------------------------------------------------------------------------------------


def coco(name: str, module: str, form: str, *, running: bool = False) -> Side:
    """A metric of pycocoevalcap, the class in a module of the same name.

    Args:
        name: of its figure.
        module: as in `meteor.meteor`.
        form: of the texts.
        running: make its object, and so start its Java, before the clock.
    """

    def prepare(inputs: Inputs) -> Callable[[], Result]:
        segments: Segments = attrgetter(form)(inputs)
        make = _coco_class(module)
        made = make() if running else None
        references, hypotheses = _coco_texts(segments)

        def call() -> Result:
            value, values = (made or make()).compute_score(references, hypotheses)
            return Result({name: float(value)}, [float(each) for each in values])

        return call

    return prepare


def _coco_class(module: str) -> Any:
    return getattr(importlib.import_module(f"pycocoevalcap.{module}"), module.split(".")[-1].capitalize())


def _coco_texts(segments: Segments) -> tuple[dict[int, list[str]], dict[int, list[str]]]:
    """References and hypotheses as pycocoevalcap takes them."""
    references = {i: list(texts) for i, texts in enumerate(segments.references)}
    return references, {i: [text] for i, text in enumerate(segments.hypotheses)}


def coco_tokenized(inputs: Inputs) -> Callable[[], Result]:
    """The PTB tokenizer of pycocoevalcap, which starts Java for the references and again for the hypotheses."""
    texts = _coco_texts(inputs.e2e)
    return lambda: _tokens([text for part in texts for found in _coco_tokens(part).values() for text in found])


def _coco_tokens(texts: Mapping[int, Sequence[str]]) -> dict[int, list[str]]:
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    found = PTBTokenizer().tokenize({i: [{"caption": text} for text in each] for i, each in texts.items()})
    return {i: list(each) for i, each in found.items()}


def sacrebleu_bleu(form: str, *, scale: float, samples: int = 1, **options: Any) -> Side:
    """BLEU of sacrebleu; with samples, its bootstrap, too.

    Args:
        form: of the texts.
        scale: what its percentage is multiplied by.
        samples: resamples of the bootstrap; 1: none.
        options: as sacrebleu's BLEU takes them.
    """

    def prepare(inputs: Inputs) -> Callable[[], Result]:
        from sacrebleu.metrics import BLEU

        segments: Segments = attrgetter(form)(inputs)
        hypotheses, references = _sacrebleu_texts(segments)

        def call() -> Result:
            found: Any = BLEU(**options).corpus_score(hypotheses, references, n_bootstrap=samples)
            if samples == 1:
                return Result({"bleu": found.score * scale})
            return Result({"bleu from": (found._mean - found._ci) * scale, "to": (found._mean + found._ci) * scale})

        return call

    return prepare


def sacrebleu_chrf(inputs: Inputs) -> Callable[[], Result]:
    """chrF++ of sacrebleu."""
    from sacrebleu.metrics import CHRF

    hypotheses, references = _sacrebleu_texts(inputs.split)
    return lambda: Result({"chrf_pp": CHRF(word_order=2).corpus_score(hypotheses, references).score / 100})


def _sacrebleu_texts(segments: Segments) -> tuple[list[str], Any]:
    """Hypotheses, and the first references, the second references, ..., with None where a segment has no more."""
    return list(segments.hypotheses), [list(texts) for texts in zip_longest(*segments.references)]


def nltk_nist(inputs: Inputs) -> Callable[[], Result]:
    """NIST of nltk."""
    from nltk.translate.nist_score import corpus_nist

    segments = inputs.mteval
    references = [[text.split() for text in texts] for texts in segments.references]
    hypotheses = [text.split() for text in segments.hypotheses]
    return lambda: Result({"nist": corpus_nist(references, hypotheses, n=5)})


def pyter_ter(inputs: Inputs) -> Callable[[], Result]:
    """TER of pyter over all six references, the least one, as GenerationEval takes it."""
    pyter = importlib.import_module("pyter")
    segments = inputs.for_ter

    def call() -> Result:
        values = [
            min(pyter.ter(hypothesis.split(), text.split()) if text else 1.0 for text in texts)
            for hypothesis, texts in zip(segments.hypotheses, segments.references, strict=True)
        ]
        return Result({"ter": sum(values) / len(values)}, values)

    return call


def e2e_peers(inputs: Inputs) -> Callable[[], Result]:
    """The E2E suite put together from packages."""
    raw = inputs.e2e

    def call() -> Result:
        from nltk.translate.nist_score import corpus_nist
        from sacrebleu.metrics import BLEU
        from sacrebleu.tokenizers.tokenizer_13a import Tokenizer13a

        values = {"bleu": BLEU(lowercase=True).corpus_score(*_sacrebleu_texts(raw)).score / 100}
        tokenize = Tokenizer13a()
        tokens = raw.map(lambda text: tokenize(text).lower())
        values["nist"] = corpus_nist(
            [[text.split() for text in texts] for texts in tokens.references],
            [text.split() for text in tokens.hypotheses],
            n=5,
        )
        references, hypotheses = map(_coco_tokens, _coco_texts(raw))
        for name, module in (("meteor", "meteor.meteor"), ("rouge_l", "rouge.rouge"), ("cider", "cider.cider")):
            values[name] = float(_coco_class(module)().compute_score(references, hypotheses)[0])
        return Result(values)

    return call


SIDES: dict[str, Side] = {
    "e2e": suite_of("e2e", "e2e"),
    "e2e-peers": e2e_peers,
    "e2e-after-another": e2e_after_another,
    "meteor": ours("meteor", meteor.meteor, "ptb"),
    "meteor-peer": coco("meteor", "meteor.meteor", "ptb"),
    "tokenizer": tokenized,
    "tokenizer-running": warmed(tokenized),
    "tokenizer-peer": coco_tokenized,
    "webnlg": suite_of("webnlg", "webnlg"),
    "webnlg-without-meteor": webnlg_without_meteor,
    "webnlg-meteor": ours("meteor", meteor.meteor, "nltk"),
    "webnlg-meteor-peer": coco("meteor", "meteor.meteor", "nltk"),
}
"""Sides that run in a process of their own."""

# --- rows --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Row:
    """What is compared.

    Attributes:
        key: what the aims call it.
        what: what the reader sees.
        ours: our side.
        peer: the other side, or None.
        peer_name: its package.
        peer_once: the peer is so slow that one sample has to do.
        note: what a reader has to know to compare the two.
    """

    key: str
    what: str
    ours: Sampler
    peer: Sampler | None = None
    peer_name: str = ""
    peer_once: bool = False
    note: str = ""


def rows_of(inputs: Inputs) -> list[Row]:
    """The rows that these inputs and the installed packages allow."""
    rows: list[Row] = []
    if inputs.references:
        if inputs.official:
            rows.append(official_row())
        rows += [e2e_row(), *warm_rows(inputs), *e2e_metric_rows(), bootstrap_row()]
    if inputs.webnlg_file:
        rows += webnlg_metric_rows()
        if importlib.util.find_spec("pyter"):
            rows.append(ter_row(inputs))
        else:
            print("no package pyter3, so no row of TER; fix: pip install pyter3", file=sys.stderr)
        rows += webnlg_suite_rows()
    return rows


def official_row() -> Row:
    """Our E2E suite against the official script."""
    return Row(
        "official",
        "E2E: whole suite, new process; official script",
        in_new_process("e2e", whole=True),
        official_script,
        "e2e-metrics, measure_scores.py -p",
        note="whole processes, timed from outside; the peer prints four decimals",
    )


def e2e_row() -> Row:
    """Our E2E suite against what packages give."""
    return Row(
        "e2e",
        "E2E: whole suite, new process; packages",
        in_new_process("e2e", whole=True),
        in_new_process("e2e-peers", whole=True),
        "pycocoevalcap, sacrebleu, nltk",
        note="whole processes, timed from outside, each with the import of ours, which reads the files; the packages' "
        "NIST is another quantity (see its row)",
    )


def warm_rows(inputs: Inputs) -> list[Row]:
    """Our E2E suite in a process that has scored a system before: another one's hypotheses, then the same again."""
    last = len(inputs.hypotheses) - 1
    pairs = [*((i, i + 1) for i in range(last)), (last, last)]
    rows = []
    for before, now in pairs:
        name = inputs.hypotheses[now].name
        what = f"{name} after {inputs.hypotheses[before].name}" if now != before else f"{name} once more"
        row = Row(
            f"warm-{before}-{now}",
            f"E2E: whole suite, same process, {what}",
            in_new_process("e2e-after-another", systems=(before, now)),
            note="the second call alone, with Java running",
        )
        rows.append(row)
    return rows


def e2e_metric_rows() -> list[Row]:
    """The metrics of E2E one by one."""

    def tokenize_and_bleu(segments: Segments, groups: Sequence[Group]) -> list[Figure]:
        return bleu.mteval_bleu(segments.map(mteval.tokenize), groups)

    return [
        Row(
            "bleu",
            "E2E: BLEU",
            here(ours("bleu", tokenize_and_bleu, "e2e")),
            here(sacrebleu_bleu("e2e", scale=0.01, lowercase=True)),
            "sacrebleu",
            note="from raw text: the 13a tokenizer is part of both",
        ),
        Row(
            "nist",
            "E2E: NIST",
            here(ours("nist", nist.nist, "mteval")),
            here(nltk_nist),
            "nltk",
            note="on the same 13a tokens; another quantity: nltk weighs n-grams and lengths in its own way",
        ),
        Row(
            "tokenizer",
            "E2E: PTB tokenizer, new process",
            in_new_process("tokenizer"),
            in_new_process("tokenizer-peer"),
            "pycocoevalcap",
            note="both start Java",
        ),
        Row(
            "tokenizer-running",
            "E2E: PTB tokenizer, same process",
            in_new_process("tokenizer-running"),
            in_new_process("tokenizer-peer"),
            "pycocoevalcap",
            note="ours a second time, with Java running; the peer starts Java in every call",
        ),
        Row(
            "meteor",
            "E2E: METEOR, new process",
            in_new_process("meteor"),
            in_new_process("meteor-peer"),
            "pycocoevalcap",
            note="on the same PTB tokens; both start Java and read the paraphrases",
        ),
        Row(
            "meteor-running",
            "E2E: METEOR, same process",
            here(warmed(ours("meteor", meteor.meteor, "ptb"))),
            here(warmed(coco("meteor", "meteor.meteor", "ptb", running=True))),
            "pycocoevalcap",
            note="on the same PTB tokens, a second time, with both sides' Java running",
        ),
        Row(
            "rouge_l",
            "E2E: ROUGE-L",
            here(ours("rouge_l", rouge_l.rouge_l, "ptb")),
            here(coco("rouge_l", "rouge.rouge", "ptb")),
            "pycocoevalcap",
            note="on the same PTB tokens",
        ),
        Row(
            "cider",
            "E2E: CIDEr",
            here(ours("cider", cider.cider, "ptb")),
            here(coco("cider", "cider.cider", "ptb")),
            "pycocoevalcap",
            note="on the same PTB tokens",
        ),
    ]


def bootstrap_row() -> Row:
    """Confidence intervals of E2E."""
    return Row(
        "bootstrap",
        f"E2E: {SAMPLES:,} resamples",
        here(resampled),
        here(sacrebleu_bleu("e2e", scale=0.01, samples=SAMPLES, lowercase=True)),
        "sacrebleu, BLEU alone",
        note="ours: all five metrics, from their counts; the peer: BLEU alone, with the counting; shown are the bounds "
        "of BLEU, ours percentiles, the peer's from a normal distribution",
    )


def webnlg_metric_rows() -> list[Row]:
    """The metrics of WebNLG one by one, but for TER."""
    return [
        Row(
            "webnlg-bleu",
            "WebNLG: BLEU",
            here(ours("bleu", bleu.multi_bleu_detok, "split")),
            here(sacrebleu_bleu("split", scale=1, smooth_method="none", force=True)),
            "sacrebleu",
            note="the 13a tokenizer is part of both",
        ),
        Row(
            "webnlg-chrf_pp",
            "WebNLG: chrF++",
            here(ours("chrf_pp", chrf_pp.chrf_pp, "split")),
            here(sacrebleu_chrf),
            "sacrebleu",
            note="ours is GenerationEval's, from which sacrebleu's differs in how an order without matches counts",
        ),
        Row(
            "webnlg-meteor",
            "WebNLG: METEOR, new process",
            in_new_process("webnlg-meteor"),
            in_new_process("webnlg-meteor-peer"),
            "pycocoevalcap",
            note="on the same tokens; both start Java and read the paraphrases",
        ),
    ]


def ter_row(inputs: Inputs) -> Row:
    """TER of WebNLG."""
    key, what = "ter", "WebNLG: TER"
    if inputs.ter_segments:
        key, what = "part-of-ter", f"WebNLG: TER, first {inputs.ter_segments:,} segments"
    return Row(
        key,
        what,
        here(ours("ter", ter.ter, "for_ter")),
        here(pyter_ter),
        "pyter3",
        peer_once=True,
        note="on the same tokens; the peer over all six references, as GenerationEval has it, and only once",
    )


def webnlg_suite_rows() -> list[Row]:
    """The whole suite of WebNLG."""
    note = "whole process, timed from outside"
    return [
        Row(
            "webnlg-without-meteor",
            "WebNLG: suite without METEOR, new process",
            in_new_process("webnlg-without-meteor", whole=True),
            note=note,
        ),
        Row("webnlg", "WebNLG: whole suite, new process", in_new_process("webnlg", whole=True), note=note),
    ]


# --- outcome -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Outcome:
    """A row with its samples.

    Attributes:
        row: the row.
        ours: our samples.
        peer: the peer's; empty if it has none.
    """

    row: Row
    ours: tuple[Sample, ...]
    peer: tuple[Sample, ...]

    @property
    def seconds(self) -> float:
        """Our median."""
        return statistics.median(sample.seconds for sample in self.ours)

    @property
    def ratio(self) -> float:
        """The peer's median over ours."""
        return statistics.median(sample.seconds for sample in self.peer) / self.seconds

    @property
    def differing(self) -> str:
        """How many segments differ between the sides, and by how much at most."""
        if not (self.peer and self.ours[0].result.segments and self.peer[0].result.segments):
            return ""
        pairs = list(zip(self.ours[0].result.segments, self.peer[0].result.segments, strict=True))
        unequal = [(a, b) for a, b in pairs if a != b]
        distances = [abs(a - b) for a, b in unequal if isinstance(a, float) and isinstance(b, float)]
        most = f", by {max(distances):.0e} at most" if distances else ""
        return f"{len(unequal):,} of {len(pairs):,}{most}"


def measured(row: Row, inputs: Inputs, repeat: int) -> Outcome:
    """The samples of a row, ours and the peer's by turns."""
    ours_sampler = row.ours(inputs)
    peer_sampler = row.peer(inputs) if row.peer else None
    ours_samples, peer_samples = [], []
    for i in range(repeat):
        ours_samples.append(ours_sampler())
        if peer_sampler and not (row.peer_once and i > 0):
            peer_samples.append(peer_sampler())
    return Outcome(row, tuple(ours_samples), tuple(peer_samples))


def seconds_text(samples: Sequence[Sample]) -> str:
    """The median, and the range if there is one."""
    times = sorted(sample.seconds for sample in samples)
    if not times:
        return ""
    spread = f" ({_digits(times[0])} to {_digits(times[-1])})" if len(times) > 1 else ""
    return _digits(statistics.median(times)) + spread


def _digits(seconds: float) -> str:
    return f"{seconds:.1f}" if seconds >= 100 else f"{seconds:.2f}" if seconds >= 1 else f"{seconds:.3f}"


def values_text(samples: Sequence[Sample]) -> str:
    """The figures of a side."""
    values = samples[0].result.values if samples else {}
    return ", ".join(
        f"{name} {value:,}" if isinstance(value, int) else f"{name} {value:.5f}".rstrip("0")
        for name, value in values.items()
    )


def time_cells(outcome: Outcome) -> list[str]:
    """A row of the table of times."""
    ratio = f"{outcome.ratio:.1f}" if outcome.peer else ""
    row = outcome.row
    return [row.what, seconds_text(outcome.ours), seconds_text(outcome.peer), ratio, row.peer_name, row.note]


def value_cells(outcome: Outcome) -> list[str]:
    """A row of the table of figures."""
    return [outcome.row.what, values_text(outcome.ours), values_text(outcome.peer), outcome.differing]


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


@dataclass(frozen=True)
class Aim:
    """What the project wants of a row.

    Attributes:
        text: the aim.
        keys: how the keys of its rows begin; of several, the first that was measured counts.
        figure: what counts.
        met: whether that is good enough.
        form: how the figure is shown.
    """

    text: str
    keys: tuple[str, ...]
    figure: Callable[[Outcome], float]
    met: Callable[[float], bool]
    form: str = "{:.2f} s"

    def line(self, outcomes: Sequence[Outcome]) -> str:
        """Whether it was met."""
        for key in self.keys:
            found = [self.figure(outcome) for outcome in outcomes if outcome.row.key.startswith(key)]
            if found:
                shown = ", ".join(map(self.form.format, found))
                return f"- {'met' if all(map(self.met, found)) else 'NOT MET'}: {self.text}: {shown}"
        return f"- not measured: {self.text}"


def _share(outcome: Outcome) -> float:
    return 1 / outcome.ratio


AIMS = (
    Aim(
        "E2E suite in a new process, at most half of the official script's time (the packages' without a checkout)",
        ("official", "e2e"),
        _share,
        lambda share: share <= 0.5,
        "{:.0%}",
    ),
    Aim("E2E suite in the same process, under 4 s", ("warm",), attrgetter("seconds"), lambda seconds: seconds < 4),
    Aim("TER, at least 50 times as fast as pyter", ("ter",), attrgetter("ratio"), lambda ratio: ratio >= 50, "{:.0f}"),
    Aim(
        "WebNLG suite without METEOR, under 8 s",
        ("webnlg-without-meteor",),
        attrgetter("seconds"),
        lambda seconds: seconds < 8,
    ),
    Aim(
        f"{SAMPLES:,} resamples of the E2E suite, under 5 s",
        ("bootstrap",),
        attrgetter("seconds"),
        lambda seconds: seconds < 5,
    ),
)

# --- report ------------------------------------------------------------------------------------------------


def report(outcomes: Sequence[Outcome], inputs: Inputs, *, repeat: int, start: str) -> str:
    """The whole report in Markdown; `start` describes the start of the run."""
    times = ("", "ours, s", "peer, s", "peer / ours", "peer", "what is timed")
    figures = ("", "ours", "peer", "segments that differ")
    parts = [
        "# Metrics: time beside the reference implementations",
        f"Written by `{command_text(inputs, repeat)}`.",
        f"Samples of each side: {repeat}, ours and the peer's taken by turns. Seconds are medians, with the range.",
        table(times, list(map(time_cells, outcomes))),
        "## Figures",
        table(figures, list(map(value_cells, outcomes))),
        "## Aims",
        "\n".join(aim.line(outcomes) for aim in AIMS),
        "## Texts",
        "\n".join(f"- {line}" for line in described_texts(inputs)),
        "## Machine",
        "\n".join(f"- {line}" for line in [start, *described_machine()]),
    ]
    return "\n\n".join(parts) + "\n"


def command_text(inputs: Inputs, repeat: int) -> str:
    """The command, with files by their names alone."""
    words = [part.name if isinstance(part, Path) else part for part in inputs.arguments()]
    if inputs.official:
        words += ["--official", "e2e-metrics"]
    if inputs.ter_segments:
        words += ["--ter-segments", str(inputs.ter_segments)]
    return " ".join(["python scripts/bench_metrics.py", *words, "--repeat", str(repeat)])


def described_texts(inputs: Inputs) -> Iterator[str]:
    """How many there are of what."""
    named = []
    if inputs.references:
        named.append((f"E2E ({inputs.hypotheses[0].name})", inputs.e2e))
    if inputs.webnlg_file:
        named.append((f"WebNLG ({inputs.webnlg_file.name})", inputs.split))
    for name, segments in named:
        count = sum(map(len, segments.references))
        yield f"{name}: {len(segments):,} segments, {count:,} references"


def described_start() -> str:
    """When the run began, on how busy a machine."""
    load = ", ".join(f"{average:.2f}" for average in os.getloadavg())
    return f"started {datetime.now(UTC):%Y-%m-%d %H:%M} UTC, load average over 1, 5, 15 minutes: {load}"


def described_machine() -> Iterator[str]:
    """Hardware, programs and code."""
    machine, code = provenance.machine(), provenance.code_version()
    yield f"{machine['processor']}, {machine['cores']} cores, {machine['memory_gib']} GiB"
    threads = os.environ.get("OMP_NUM_THREADS", "not set")
    yield f"{machine['system']}, Python {machine['python']}, OMP_NUM_THREADS {threads}"
    said = subprocess.run([java.runtime(), "-version"], capture_output=True, text=True, check=True).stderr
    yield f"Java: {said.splitlines()[0]}"
    names = ("numpy", "sacrebleu", "nltk", "pycocoevalcap", "pyter3")
    installed = {found.metadata["Name"].lower(): found.version for found in metadata.distributions()}
    yield ", ".join(f"{name} {installed.get(name, 'not installed')}" for name in names)
    yield f"lodarepro {code['version']}, commit {code['commit']}{', with changes' if code['dirty'] else ''}"


# --- command -----------------------------------------------------------------------------------------------


@contextmanager
def tidied(inputs: Inputs) -> Iterator[None]:
    """Removes what the peers' tokenizer, when it is stopped half-way, leaves beside its jar."""
    folders = [java.jar("tokenizer/stanford-corenlp-3.4.1.jar").parent]
    if inputs.official:
        folders.append(inputs.official / "pycocoevalcap" / "tokenizer")
    before = {path for folder in folders for path in folder.glob("tmp*")}
    try:
        yield
    except BaseException:
        for path in {path for folder in folders for path in folder.glob("tmp*")} - before:
            path.unlink(missing_ok=True)
        raise


def checked(args: argparse.Namespace) -> Inputs:
    """The inputs, which exist and can be read.

    Raises:
        BadInput: they can't be, or there are none.
    """
    if bool(args.e2e_hyp) != bool(args.e2e_ref):
        raise BadInput("--e2e-hyp and --e2e-ref go together: give both")
    if not (args.e2e_hyp or args.webnlg):
        raise BadInput("nothing to score: give --e2e-hyp with --e2e-ref, or --webnlg, or all of them")
    if args.official and not args.e2e_hyp:
        raise BadInput("--official scores E2E: give --e2e-hyp and --e2e-ref, too")
    for option, value in (("--repeat", args.repeat), ("--ter-segments", args.ter_segments)):
        if value is not None and value < 1:
            raise BadInput(f"{option} {value}: give 1 or more")
    for name in OFFICIAL_FILES if args.official else ():
        if not (args.official / name).is_file():
            raise BadInput(f"{args.official / name}: no such file: give a complete checkout of tuetschek/e2e-metrics")
    if args.out.is_dir():
        raise BadInput(f"{args.out}: a folder: name a file in it")
    inputs = Inputs(tuple(args.e2e_hyp), args.e2e_ref, args.webnlg, args.official, args.ter_segments)
    for system in range(len(inputs.hypotheses)):
        inputs.e2e_of(system)
    if inputs.webnlg_file:
        read_webnlg(inputs.webnlg_file)
    return inputs


def benchmark(inputs: Inputs, *, repeat: int, out: Path) -> None:
    """Measure all rows, print them as they come and write the report."""
    start = described_start()
    # The peers know Java by its name alone.
    os.environ["PATH"] = os.pathsep.join([str(java.runtime().parent), os.environ.get("PATH", "")])
    outcomes = []
    for row in rows_of(inputs):
        outcome = measured(row, inputs, repeat)
        what, ours_text, peer_text, ratio, *_ = time_cells(outcome)
        against = f"; {row.peer_name}: {peer_text} s; ratio {ratio}" if row.peer else ""
        print(f"{what}: {ours_text} s{against}", flush=True)
        outcomes.append(outcome)
    text = report(outcomes, inputs, repeat=repeat, start=start)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(out, text.encode())
    except OSError as error:
        print(text)
        raise BadInput(f"{out}: can't be written ({error.strerror}): name another with --out") from None
    print(f"\n{text}\n{out}")


def main(argv: list[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--e2e-hyp", type=Path, action="append", default=[], help="E2E system output; more than one for warm rows"
    )
    parser.add_argument("--e2e-ref", type=Path, help="E2E references, as the official scorer reads them")
    parser.add_argument("--webnlg", type=Path, help="JSON lines (.gz) with `references` and `hypothesis`")
    parser.add_argument("--official", type=Path, help="checkout of tuetschek/e2e-metrics with its jars, timed too")
    parser.add_argument("--repeat", type=int, default=3, help="samples of each side (default: %(default)s)")
    parser.add_argument("--ter-segments", type=int, help="only so many segments of TER, for a quick look")
    parser.add_argument("--out", type=Path, default=DEFAULT_OUT, help="(default: results/benchmarks/metrics.md)")
    parser.add_argument("--worker", choices=SIDES, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))  # so that a stop cleans up, too
    try:
        if args.worker:
            work(args.worker, Inputs(tuple(args.e2e_hyp), args.e2e_ref, args.webnlg))
            return 0
        inputs = checked(args)
        with tidied(inputs):
            benchmark(inputs, repeat=args.repeat, out=args.out)
    except LodareproError as error:
        for fault in error.faults:
            print(f"error: {fault}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    return 0


if __name__ == "__main__":
    sys.exit(main())
