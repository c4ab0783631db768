"""BLEU, NIST, ROUGE-L and CIDEr on varied texts: against the libraries and plain counting, and resampled."""

import math
import random
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import sacrebleu
from pycocoevalcap.cider.cider import Cider
from pycocoevalcap.rouge.rouge import Rouge

from lodarepro.metrics import mteval
from lodarepro.metrics.bleu import mteval_bleu, multi_bleu_detok
from lodarepro.metrics.cider import cider
from lodarepro.metrics.nist import nist
from lodarepro.metrics.rouge_l import rouge_l
from lodarepro.metrics.segments import Figure, Group, Segments

SEEDS = range(8)
PLAIN = "the The a pub near Near river café Zoë £20-25 3.5 1,200 isn't U.S. a.b .. ..5 well- -5 (cheap) . , ?"
ODD = (
    "&amp;",
    "&lt;b&gt;",
    "<skipped>",
    "日本",
    "İstanbul",
    "ΟΔΟΣ",
    "Σ'",
    "ß",
    "1\u00a01/2",
    "-\n",
    "a\nb",
    "\u2028",
    "",
)
WORDS = (*PLAIN.split(), *ODD)

Metric = Callable[[Segments, Sequence[Group]], list[Figure]]


def varied(seed: int) -> Segments:
    """One to twelve segments of most kinds: near their references or not, empty, very long, references repeated."""
    draw = random.Random(seed)

    def text() -> str:
        length = draw.choice((0, 1, 2, 3, 5, 8, 13, 20, 150))
        return " ".join(draw.choice(WORDS) for _ in range(length))

    hypotheses, references = [], []
    for _ in range((12, 12, 2, 1)[seed % 4]):
        texts = [text() for _ in range(draw.choice((1, 2, 4)))]
        texts += draw.choices(texts, k=draw.choice((0, 0, 2)))
        words = draw.choice(texts).split(" ")
        for _ in range(draw.choice((0, 1, 4))):
            words[draw.randrange(len(words))] = draw.choice(WORDS)
        hypotheses.append(draw.choice((" ".join(words), " ".join(words), text())))
        references.append(tuple(texts))
    return Segments(tuple(hypotheses), tuple(references))


def groups_of(segments: Segments, seed: int) -> list[Group]:
    """All segments, as many drawn with repetitions, and one."""
    draw = random.Random(seed)
    everything = range(len(segments))
    return [everything, draw.choices(everything, k=len(segments)), [draw.choice(everything)]]


def ngrams(text: str, order: int) -> Counter[tuple[str, ...]]:
    words = text.split(" ")
    return Counter(zip(*(words[start:] for start in range(order)), strict=False))


def hits(hypothesis: str, references: Sequence[str], order: int) -> Counter[tuple[str, ...]]:
    highest: Counter[tuple[str, ...]] = Counter()
    for reference in references:
        highest |= ngrams(reference, order)
    return ngrams(hypothesis, order) & highest


def plain_mteval_bleu(segments: Segments) -> float:
    lengths = [len(text.split(" ")) for text in segments.hypotheses]
    pairs = list(zip(segments.hypotheses, segments.references, strict=True))
    logarithms = 0.0
    for order in range(1, 5):
        matched = sum(hits(hypothesis, references, order).total() for hypothesis, references in pairs)
        total = sum(length + 1 - order for length in lengths)
        logarithms += math.log(min(max(matched, 1e-15) / max(total, 1e-9), 1.0))
    closest = sum(
        min((abs(len(text.split(" ")) - length), len(text.split(" "))) for text in references)[1]
        for length, references in zip(lengths, segments.references, strict=True)
    )
    return math.exp(min(0.0, 1 - closest / sum(lengths)) + logarithms / 4)


def plain_nist(segments: Segments, informing: Segments) -> float:
    """NIST of segments with n-grams worth what the references of the informing segments say."""
    texts = [text for references in informing.references for text in references]
    seen: list[Counter[tuple[str, ...]]] = [Counter({(): sum(len(text.split(" ")) for text in texts)})]
    seen += [sum((ngrams(text, order) for text in texts), Counter()) for order in range(1, 6)]
    lengths = [len(text.split(" ")) for text in segments.hypotheses]
    score = 0.0
    for order in range(1, 6):
        total = sum(length + 1 - order for length in lengths)
        for hypothesis, references in zip(segments.hypotheses, segments.references, strict=True):
            for ngram, count in hits(hypothesis, references, order).items() if total > 0 else ():
                score += count * math.log2(seen[order - 1][ngram[:-1]] / seen[order][ngram]) / total
    mean_length = sum(
        sum(len(text.split(" ")) for text in references) / len(references) for references in segments.references
    )
    return score * math.exp(-math.log(2) * (math.log(min(sum(lengths) / mean_length, 1)) / math.log(1.5)) ** 2)


@pytest.mark.parametrize("seed", SEEDS)
def test_bleu_and_nist(seed: int) -> None:
    raw = varied(seed)
    tokenized = raw.map(mteval.tokenize)
    groups = groups_of(raw, seed)
    found = zip(
        groups,
        mteval_bleu(tokenized, groups),
        multi_bleu_detok(raw, groups),
        nist(tokenized, groups),
        strict=True,
    )
    for group, mteval_figure, multi_bleu_figure, nist_figure in found:
        part, tokens = raw.select(group), tokenized.select(group)
        assert mteval_figure.value == pytest.approx(plain_mteval_bleu(tokens), rel=1e-12, abs=1e-12)
        assert nist_figure.value == pytest.approx(plain_nist(tokens, tokens), rel=1e-12, abs=1e-12)
        most = max(map(len, part.references))
        streams: Any = [[texts[i] if i < len(texts) else None for texts in part.references] for i in range(most)]
        bleu = sacrebleu.corpus_bleu(part.hypotheses, streams, smooth_method="none", force=True)
        assert multi_bleu_figure.value == pytest.approx(bleu.score, abs=1e-12)


@pytest.mark.parametrize("seed", SEEDS)
def test_rouge_l_and_cider(seed: int) -> None:
    segments = varied(seed)
    groups = groups_of(segments, seed)
    for group, rouge_figure, cider_figure in zip(
        groups, rouge_l(segments, groups), cider(segments, groups), strict=True
    ):
        part = segments.select(group)
        hypotheses = {i: [text] for i, text in enumerate(part.hypotheses)}
        references = {i: list(texts) for i, texts in enumerate(part.references)}
        expected = [Rouge().calc_score(hypotheses[i], references[i]) for i in references]
        assert rouge_figure.segments == tuple(expected)
        assert rouge_figure.value == pytest.approx(np.mean(expected), abs=1e-12)
        if any(text.split() for texts in part.references for text in texts):
            value, values = Cider().compute_score(references, hypotheses)
        else:  # which the library fails on
            value, values = 0.0, [0.0] * len(part)
        assert cider_figure.segments == pytest.approx(values, abs=1e-12)
        assert cider_figure.value == pytest.approx(value, abs=1e-12)


def test_the_texts_are_varied() -> None:
    """Guards the tests above: their figures are neither all 0 nor all perfect, and the odd texts occur."""
    several = [varied(seed) for seed in SEEDS]
    assert any(len(segments) == 1 for segments in several)
    texts = [text for segments in several for text in segments.texts()]
    assert "" in texts
    assert max(len(text.split(" ")) for text in texts) >= 150
    middling = {mteval_bleu: (0.1, 0.9), multi_bleu_detok: (10, 90), nist: (1, 9), rouge_l: (0.1, 0.9), cider: (1, 9)}
    for metric, (low, high) in middling.items():
        values = [metric(segments, [range(len(segments))])[0].value for segments in several]
        assert sum(low < value < high for value in values) >= 3
        assert any(value < 1e-3 for value in values)


@pytest.mark.parametrize("metric", [mteval_bleu, multi_bleu_detok, nist, rouge_l, cider])
def test_statistics_give_the_figure(metric: Metric) -> None:
    segments = varied(4)
    groups = groups_of(segments, 4)
    for group, figure in zip(groups, metric(segments, groups), strict=True):
        assert figure.statistics.shape == (len(group), len(figure.columns))
        assert figure.statistics.dtype == np.float64
        assert figure.of_sums(figure.statistics.sum(axis=0)) == pytest.approx(figure.value, rel=1e-12)
        # The same group alone, or as a list of its segments.
        assert figure.value == metric(segments, [group])[0].value
        alone = metric(segments.select(group), [range(len(group))])[0]
        assert alone.value == pytest.approx(figure.value, rel=1e-12)
        assert alone.segments == (None if figure.segments is None else pytest.approx(figure.segments, rel=1e-12))


@pytest.mark.parametrize("metric", [mteval_bleu, multi_bleu_detok, nist, rouge_l, cider])
def test_resampled(metric: Metric) -> None:
    segments = varied(4)
    draw = random.Random(0)
    resamples = [draw.choices(range(12), k=12) for _ in range(6)]
    weights = np.array([np.bincount(resample, minlength=12) for resample in resamples], dtype=np.float64)
    whole = metric(segments, [range(12)])[0]
    sums = (weights @ whole.statistics).reshape(2, 3, -1)
    values = whole.of_sums(sums)
    assert values.shape == (2, 3)
    if metric is nist:  # what an n-gram is worth stays that of the group
        expected = [plain_nist(segments.select(resample), segments) for resample in resamples]
    elif metric is cider:  # and so do the weights
        assert whole.segments is not None
        expected = [sum(whole.segments[i] for i in resample) / 12 for resample in resamples]
    else:
        expected = [metric(segments, [resample])[0].value for resample in resamples]
    assert values.ravel() == pytest.approx(expected, rel=1e-12)
    assert len(set(expected)) > 1


@pytest.mark.parametrize("metric", [mteval_bleu, multi_bleu_detok, nist])
def test_any_sums_have_a_figure(metric: Metric) -> None:
    segments = Segments(("", "a", "a b c d e", "x"), (("a b",), ("a",), ("a b c d e",), ("",)))
    figure = metric(segments, [range(4)])[0]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        each = figure.of_sums(np.vstack([figure.statistics, np.zeros(len(figure.columns))]))
    assert np.isfinite(each).all()
    assert each[2] > 0.99
    assert each[[0, 3, 4]] == pytest.approx(0, abs=1e-5)
