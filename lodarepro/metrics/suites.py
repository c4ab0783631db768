"""Suites: which metrics a data set is scored with, on which form of the text; and `score`, which runs one."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version

from lodarepro.errors import BadInput, nearest
from lodarepro.metrics import bleu, chrf_pp, cider, meteor, mteval, nist, ptb, rouge_l, ter
from lodarepro.metrics.beside import beside
from lodarepro.metrics.segments import Figure, Group, Segments
from lodarepro.scores import Interval, Score, SuiteScores, Unit

ALL = "all"
"""The group of all segments, whose figures stand beside those of the subsets."""

REFERENCES = 6  # of webnlg and dart: microsoft/LoRA at c4593f06, gpt2_decode.py --ref_num


@dataclass(frozen=True)
class Metric:
    """A metric as a suite uses it.

    Attributes:
        key: key of the metric.
        unit: unit of its values.
        form: the form of the text that it sees, a key of what the suite's `prepare` gives.
        compute: the figures of groups of segments.
        signature: its signature but for metric and references, as `key:value|...`. A function, as it asks for
            the versions of libraries.
        higher_is_better: the direction.
        begin: starts what the metric can do before the text is there, or None. A metric that has it waits for
            other programs and is computed beside those that compute here.
    """

    key: str
    unit: Unit
    form: str
    compute: Callable[[Segments, Sequence[Group]], list[Figure]]
    signature: Callable[[], str]
    higher_is_better: bool = True
    begin: Callable[[], None] | None = None


@dataclass(frozen=True)
class Suite:
    """Metrics that are computed together.

    Attributes:
        prepare: from the raw segments to all forms of them that the metrics see.
        metrics: the metrics, in the order of the official scorer.
    """

    prepare: Callable[[Segments], dict[str, Segments]]
    metrics: tuple[Metric, ...]


def _e2e_forms(raw: Segments) -> dict[str, Segments]:
    return {"mteval": raw.map(mteval.tokenize), "ptb": ptb.tokenize(raw)}


def _generation_eval_forms(raw: Segments) -> dict[str, Segments]:
    split = padded(raw.map(split_words))
    return {"split": split, "nltk": split.map(nltk_words)}


def split_words(text: str) -> str:
    """The text lower-cased, with every non-word character a token of its own, tokens joined by single spaces.

    Source: microsoft/LoRA at c4593f06, examples/NLG/src/gpt2_decode.py with `--tokenize --lower`.
    """
    return " ".join(" ".join(re.split(r"(\W)", text.lower())).split())


def padded(segments: Segments) -> Segments:
    """The segments with exactly six references each: the first repeated, or those past the sixth dropped."""
    return Segments(
        segments.hypotheses,
        tuple((texts + texts[:1] * REFERENCES)[:REFERENCES] for texts in segments.references),
    )


def nltk_words(text: str) -> str:
    """The text in the tokens of NLTK's word tokenizer, which GenerationEval applies for METEOR and TER.

    Without splitting sentences first: that needs a model to be downloaded, and periods stand alone already.
    """
    from nltk.tokenize import word_tokenize

    return " ".join(word_tokenize(text, preserve_line=True))


def _nltk() -> str:
    return f"nltk-{version('nltk')}"


def _coco() -> str:
    return f"version:{mteval.VERSION}|tok:{ptb.VERSION}"


_GENERATION_EVAL = Suite(
    prepare=_generation_eval_forms,
    metrics=(
        Metric(
            "bleu",
            "percent",
            "split",
            bleu.multi_bleu_detok,
            lambda: f"version:sacrebleu-{version('sacrebleu')}|tok:13a|case:lower|smooth:none",
        ),
        Metric(
            "meteor",
            "fraction",
            "nltk",
            meteor.meteor,
            lambda: f"version:{meteor.VERSION}|tok:{_nltk()}|case:lower|norm:yes",
            begin=meteor.begin,
        ),
        Metric(
            "ter",
            "fraction",
            "nltk",
            ter.ter,
            lambda: f"version:{ter.VERSION}|tok:{_nltk()}|case:lower|mean:segments",
            higher_is_better=False,
        ),
        Metric(
            "chrf_pp",
            "fraction",
            "split",
            chrf_pp.chrf_pp,
            lambda: f"version:{chrf_pp.VERSION}|tok:none|case:lower|nc:6|nw:2|beta:2|mean:corpus",
        ),
    ),
)

SUITES = {
    "e2e": Suite(
        prepare=_e2e_forms,
        metrics=(
            Metric(
                "bleu",
                "fraction",
                "mteval",
                bleu.mteval_bleu,
                lambda: f"version:{mteval.VERSION}|tok:13a|case:lower|smooth:none",
            ),
            Metric("nist", "points", "mteval", nist.nist, lambda: f"version:{mteval.VERSION}|tok:13a|case:lower|n:5"),
            Metric(
                "meteor",
                "fraction",
                "ptb",
                meteor.meteor,
                lambda: f"version:{meteor.VERSION}|tok:{ptb.VERSION}|case:lower|norm:yes",
                begin=meteor.begin,
            ),
            Metric("rouge_l", "fraction", "ptb", rouge_l.rouge_l, lambda: f"{_coco()}|case:lower|beta:1.2"),
            Metric("cider", "points", "ptb", cider.cider, lambda: f"{_coco()}|case:lower|n:4|sigma:6|idf:group"),
        ),
    ),
    "webnlg": _GENERATION_EVAL,
    "dart": _GENERATION_EVAL,
}
"""Suite by name. `e2e` is `tuetschek/e2e-metrics` at 1b9c4d87, `measure_scores.py -p`; `webnlg` and `dart`
are `WebNLG/GenerationEval` at 80678494 on the text as the LoRA paper's code prepares it."""


@dataclass(frozen=True)
class Measurement:
    """What the metrics of a suite gave for one set of hypotheses.

    Attributes:
        suite: name of the suite.
        groups: the segments that are scored together: `all`, then each subset in order of first appearance.
        figures: group to metric key to figure.
        signatures: metric key to signature.
        references: SHA-256 of the references, by which measurements of the same segments are known.
    """

    suite: str
    groups: Mapping[str, Group]
    figures: Mapping[str, Mapping[str, Figure]]
    signatures: Mapping[str, str]
    references: str

    def scores(
        self, *, per_segment: bool = False, intervals: Mapping[str, Mapping[str, Interval]] | None = None
    ) -> SuiteScores:
        """The figures as scores.

        Args:
            per_segment: also give the value of each segment, for the metrics that have one.
            intervals: group to metric key to confidence interval (`bootstrap.intervals`).
        """
        scores = {
            group: {
                metric.key: Score(
                    metric=metric.key,
                    value=figures[metric.key].value,
                    unit=metric.unit,
                    higher_is_better=metric.higher_is_better,
                    signature=self.signatures[metric.key],
                    segments=figures[metric.key].segments if per_segment else None,
                    interval=intervals[group][metric.key] if intervals else None,
                )
                for metric in SUITES[self.suite].metrics
            }
            for group, figures in self.figures.items()
        }
        return SuiteScores(
            suite=self.suite,
            segments=len(self.groups[ALL]),
            scores=scores.pop(ALL),
            subsets=scores,
            subset_segments={label: len(self.groups[label]) for label in scores},
        )


def score(
    hypotheses: Sequence[str],
    references: Sequence[Sequence[str]],
    suite: str = "e2e",
    subsets: Sequence[str | None] | None = None,
    *,
    per_segment: bool = False,
) -> SuiteScores:
    """Scores hypotheses against references with the metrics of a suite.

    Args:
        hypotheses: one text per segment, as decoded (raw); empty ones are legal, line breaks count as spaces.
        references: the references of each segment (raw), one or more, in the order of the data.
        suite: `e2e`, `webnlg` or `dart`.
        subsets: a label for each segment (`seen`, `unseen`; None: in no subset). The segments of each label
            are scored alone too.
        per_segment: also give the value of each segment for the metrics that have one (all but BLEU, NIST).

    Returns:
        The scores over all segments, and under `subsets` those of each label, in order of first appearance.

    Raises:
        BadInput: the call makes no sense (lengths differ, no segments, a segment without references, an
            unknown suite), or the machine lacks Java.
        RunFailed: a Java program failed.
    """
    return measure(hypotheses, references, suite=suite, subsets=subsets).scores(per_segment=per_segment)


def measure(
    hypotheses: Sequence[str],
    references: Sequence[Sequence[str]],
    suite: str = "e2e",
    subsets: Sequence[str | None] | None = None,
    groups: Mapping[str, Group] | None = None,
) -> Measurement:
    """What `score` derives its scores from, with all that resampling needs; arguments and errors as there.

    `groups` are further ones that are scored together: a label that no subset has to the indices of its segments, which
    may stand in several.
    """
    if suite not in SUITES:
        raise BadInput(f"unknown suite '{suite}'{nearest(suite, SUITES)}")
    raw = _checked(hypotheses, references, subsets)
    together: dict[str, list[int]] = {ALL: list(range(len(raw)))}
    for i, label in enumerate(subsets or ()):
        if label is not None:
            together.setdefault(label, []).append(i)
    together |= {label: list(group) for label, group in (groups or {}).items()}

    metrics = SUITES[suite].metrics
    for metric in metrics:
        if metric.begin:
            metric.begin()
    forms = SUITES[suite].prepare(raw)
    compute = {m.key: partial(m.compute, forms[m.form], [*together.values()]) for m in metrics}
    waiting = {m.key: beside(compute[m.key]) for m in metrics if m.begin}
    found = {m.key: compute[m.key]() for m in metrics if not m.begin}
    found |= {key: figures.result() for key, figures in waiting.items()}
    return Measurement(
        suite=suite,
        groups=together,
        figures={group: {m.key: found[m.key][i] for m in metrics} for i, group in enumerate(together)},
        signatures={m.key: f"metric:{m.key}|{m.signature()}|refs:{_reference_count(forms[m.form])}" for m in metrics},
        references=hashlib.sha256(repr(raw.references).encode("utf-8", errors="replace")).hexdigest(),
    )


def _reference_count(segments: Segments) -> str:
    """References per segment; `var` where it varies, as in sacrebleu's signatures."""
    counts = {len(references) for references in segments.references}
    return str(counts.pop()) if len(counts) == 1 else "var"


def _checked(
    hypotheses: Sequence[str], references: Sequence[Sequence[str]], subsets: Sequence[str | None] | None
) -> Segments:
    """The segments, or BadInput saying what is wrong with them; segments are counted from 1."""
    if len(hypotheses) != len(references):
        raise BadInput(
            f"{len(hypotheses)} hypotheses but references for {len(references)} segments: "
            "give one hypothesis and one list of references per segment"
        )
    if not hypotheses:
        raise BadInput("no segments to score: give at least one hypothesis with its references")
    if subsets is not None and ALL in subsets:
        raise BadInput(f"'{ALL}' can't be a subset's label: it stands for all segments; give it another name")
    if subsets is not None and len(subsets) != len(hypotheses):
        raise BadInput(
            f"{len(subsets)} subset labels for {len(hypotheses)} segments: give one per segment (None: in no subset)"
        )
    for number, (hypothesis, texts) in enumerate(zip(hypotheses, references, strict=True), start=1):
        if not isinstance(hypothesis, str):
            raise BadInput(f"segment {number}: the hypothesis is {type(hypothesis).__name__}, not text")
        if isinstance(texts, str):
            raise BadInput(f"segment {number}: the references are one text, not a list of texts")
        if not texts:
            raise BadInput(f"segment {number} has no references: give at least one")
        for reference in texts:
            if not isinstance(reference, str):
                raise BadInput(f"segment {number}: a reference is {type(reference).__name__}, not text")
    return Segments(tuple(hypotheses), tuple(map(tuple, references)))
