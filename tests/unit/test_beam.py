"""The search against a plain one: Python lists, float64, no cache, every step of every beam (golden README's rules)."""

import copy
import math
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch

from lodarepro.config import Decode
from lodarepro.decode import beam
from lodarepro.decode.beam import search
from lodarepro.errors import RunFailed
from lodarepro.model import GPT2, Sizes, products

SIZES = Sizes(n_layer=2, n_head=2, n_embd=16, vocab_size=18, n_positions=32)
ENDS = (17, 7, 3)
MARGIN = 1e-4  # fp32 differs from float64 by a tenth of that


@dataclass(frozen=True)
class Found:
    """What the plain search ends with.

    Attributes:
        tokens, score, finished: of the best hypothesis.
        rows: beams that it extended after the prompt, without the last step's.
        margin: the smallest gap at a decision that the result depends on: last kept against first dropped candidate,
            a hypothesis against the best.
    """

    tokens: list[int]
    score: float
    finished: bool
    rows: int
    margin: float


def random_model(seed: int, spread: float) -> GPT2:
    """Its distributions are the flatter, the smaller the spread of its weights."""
    model = GPT2(SIZES).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in model.named_parameters():
            mean = 1.0 if ".ln_" in name and name.endswith("weight") else 0.0
            p.normal_(mean, spread, generator=generator)
        model.ln_f.weight.normal_(1.0, 0.2, generator=generator)
    return model


def allowed(generated: list[int], settings: Decode, banned: Sequence[int]) -> list[int]:
    """The tokens that may come next."""
    n = settings.no_repeat_ngram
    seen = {tuple(generated[i : i + n]) for i in range(len(generated) - n + 1)} if n else set()
    tail = generated[len(generated) - n + 1 :] if n else []
    return [
        token
        for token in range(SIZES.vocab_size)
        if token not in banned
        and (n == 0 or (*tail, token) not in seen)
        and (len(generated) >= settings.min_length or token not in ENDS)
    ]


@torch.no_grad()
def plain_search(model: GPT2, prompt: list[int], settings: Decode, banned: Sequence[int] = ()) -> Found:
    """The search of one prompt; the model is in float64."""
    living: list[tuple[list[int], float]] = [([], 0.0)]
    best: tuple[float, list[int], bool] = (-math.inf, [], False)
    rows, margin = 0, math.inf
    for length in range(1, settings.max_new_tokens + 1):
        candidates: list[tuple[float, list[int]]] = []
        logits = model.logits(model(torch.tensor([[*prompt, *generated] for generated, _ in living])))[:, -1]
        for (generated, total), row in zip(living, logits.tolist(), strict=True):
            tokens = allowed(generated, settings, banned)
            top = max(row[t] for t in tokens)
            log_sum = top + math.log(sum(math.exp(row[t] - top) for t in tokens))
            candidates += [(total + row[t] - log_sum, [*generated, t]) for t in tokens]
        candidates.sort(key=lambda candidate: -candidate[0])
        kept, dropped = candidates[: settings.beam], candidates[settings.beam :]
        if dropped:
            margin = min(margin, kept[-1][0] - dropped[0][0])
        last = length == settings.max_new_tokens
        for total, generated in kept:
            if generated[-1] in ENDS or last:
                score = total / length**settings.length_penalty
                margin = min(margin, abs(score - best[0]))
                if score > best[0]:
                    best = (score, generated, generated[-1] in ENDS)
        living = [(generated, total) for total, generated in kept if generated[-1] not in ENDS]
        if not living:
            break
        rows += 0 if last else len(living)
    return Found(best[1], best[0], best[2], rows, margin)


@contextmanager
def rows_counted(model: GPT2) -> Iterator[list[int]]:
    """The rows of each call of the model after the prompts'."""
    found: list[int] = []

    def note(_: Any, inputs: tuple[torch.Tensor, ...], options: dict[str, Any]) -> None:
        if options["cache"].filled:
            found.append(len(inputs[0]))

    hook = model.register_forward_pre_hook(note, with_kwargs=True)
    yield found
    hook.remove()


@dataclass(frozen=True)
class Case:
    model: GPT2
    prompts: list[list[int]]
    settings: Decode
    banned: list[int]
    share: float


def random_case(seed: int) -> Case:
    r = random.Random(seed)
    settings = Decode(
        beam=r.randint(1, 6),
        length_penalty=r.choice([-0.5, 0.0, 0.8, 2.0]),
        no_repeat_ngram=r.choice([0, 2, 4]),
        max_new_tokens=r.randint(1, 12),
        min_length=r.choice([0, 0, 3]),
    )
    prompts = [[r.randrange(SIZES.vocab_size) for _ in range(r.randint(1, 9))] for _ in range(r.randint(1, 5))]
    banned = r.sample(range(SIZES.vocab_size), r.choice([0, 0, 3]))
    return Case(random_model(seed, r.choice([0.2, 0.4, 0.7])), prompts, settings, banned, r.choice([0, 0.75, 1]))


SEEDS = range(100)


@pytest.fixture(scope="module")
def plain() -> Callable[[int], tuple[Case, list[Found]]]:
    """A random case and what the plain search finds, kept."""
    known: dict[int, tuple[Case, list[Found]]] = {}

    def of(seed: int) -> tuple[Case, list[Found]]:
        if seed not in known:
            case = random_case(seed)
            exact = copy.deepcopy(case.model).double()
            known[seed] = case, [plain_search(exact, p, case.settings, case.banned) for p in case.prompts]
        return known[seed]

    return of


@pytest.mark.parametrize("seed", SEEDS)
def test_the_search_finds_what_a_plain_search_finds(seed: int, plain, monkeypatch: pytest.MonkeyPatch):
    case, expected = plain(seed)
    monkeypatch.setattr(beam, "KEPT_SHARE", case.share)
    with rows_counted(case.model) as rows:
        found = search(case.model, case.prompts, case.settings, end_ids=ENDS, banned_ids=case.banned)
    for ours, other in zip(found, expected, strict=True):
        if other.margin > MARGIN:
            assert (ours.tokens, ours.finished) == (other.tokens, other.finished)
        assert ours.score == pytest.approx(other.score, abs=2e-5, rel=1e-5)
    assert sum(rows) <= sum(other.rows for other in expected)


@pytest.mark.parametrize(("seed", "spread"), [(56, 1.2), (71, 1.2), (75, 0.7), (94, 0.7), (223, 0.4), (240, 0.4)])
def test_below_0_a_penalty_multiplies_by_the_length_and_a_sum_is_its_own_bound(seed: int, spread: float):
    """Cases where the best is found late, by a beam that a bound at the last step's length would have given up."""
    case, model = random_case(seed), random_model(seed, spread)
    settings = replace(case.settings, length_penalty=-0.5, max_new_tokens=12, beam=max(2, case.settings.beam))
    expected = plain_search(copy.deepcopy(model).double(), case.prompts[0], settings, case.banned)
    assert expected.margin > MARGIN
    (found,) = search(model, case.prompts[:1], settings, end_ids=ENDS, banned_ids=case.banned)
    assert (found.tokens, found.finished) == (expected.tokens, expected.finished)
    assert found.score == pytest.approx(expected.score, abs=2e-5, rel=1e-5)


def test_the_random_cases_are_cases(plain):
    """Nearly all are decided by more than rounding, many hypotheses end by themselves, and every choice matters."""
    cases = [plain(seed) for seed in SEEDS]
    all_found = [found for _, several in cases for found in several]
    assert sum(found.margin > MARGIN for found in all_found) > 0.9 * len(all_found) > 200
    assert 0.3 < sum(found.finished for found in all_found) / len(all_found) < 0.9
    other = {"length_penalty": 0.5, "no_repeat_ngram": 1, "min_length": 5, "beam": 7}
    for key, value in other.items():
        changed = 0
        for case, several in cases[::4]:
            settings = replace(case.settings, **{key: value})
            found = search(case.model, case.prompts, settings, end_ids=ENDS, banned_ids=case.banned)
            changed += [h.tokens for h in found] != [f.tokens for f in several]
        assert changed > 3, key


def test_what_is_lost_is_not_extended(plain):
    """With peaked distributions most beams can't win any more long before the last step."""
    ran, whole = 0, 0
    for seed in SEEDS:
        case, expected = plain(seed)
        with rows_counted(case.model) as rows:
            search(case.model, case.prompts, case.settings, end_ids=ENDS, banned_ids=case.banned)
        ran, whole = ran + sum(rows), whole + sum(found.rows for found in expected)
    assert 0 < ran < 0.8 * whole


def sure_of(token: int) -> GPT2:
    """A model that gives a token nearly all of the probability, whatever comes before."""
    model = GPT2(SIZES).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.zero_()
        model.ln_f.bias[0] = 1.0
        model.wte.weight[token, 0] = 10.0
    return model


def test_a_decided_search_is_not_continued():
    """The first hypothesis ends with nearly all probability: no other can reach its score."""
    model = sure_of(ENDS[0])
    settings = Decode(beam=4, max_new_tokens=20, no_repeat_ngram=0)
    with rows_counted(model) as rows:
        (found,) = search(model, [[1, 2]], settings, end_ids=ENDS)
    assert (found.tokens, found.finished) == ([ENDS[0]], True)
    assert rows == []
    # Where it may not end at once, it does as soon as it may.
    with rows_counted(model) as rows:
        (found,) = search(model, [[1, 2]], replace(settings, min_length=3), end_ids=ENDS)
    assert len(found.tokens) == 4 and found.tokens[-1] == ENDS[0]
    assert rows == [4, 4, 4]


def test_a_search_without_an_end_runs_to_its_last_step():
    model = sure_of(1)
    settings = Decode(beam=3, max_new_tokens=6, no_repeat_ngram=0)
    with rows_counted(model) as rows:
        (found,) = search(model, [[2]], settings, end_ids=[])
    assert (found.tokens, found.finished) == ([1] * 6, False)
    assert rows == [3] * 5


@pytest.mark.parametrize("share", [0, 1])
def test_prompts_that_are_done_are_not_run_again(share: float, monkeypatch: pytest.MonkeyPatch):
    """Rows of ended beams are left out whether or not their keys and values are dropped."""
    monkeypatch.setattr(beam, "KEPT_SHARE", share)
    case = random_case(1)
    settings = replace(case.settings, beam=4, max_new_tokens=10, length_penalty=0.8, min_length=0)
    prompts = [[i, 2 * i % 18] for i in range(8)]
    alone = []
    for p in prompts:
        with rows_counted(case.model) as rows:
            search(case.model, [p], settings, end_ids=ENDS)
        alone.append([*rows, *[0] * (9 - len(rows))])
    with rows_counted(case.model) as rows:
        search(case.model, prompts, settings, end_ids=ENDS)
    together = [sum(step) for step in zip(*alone, strict=True)]
    assert [*rows, *[0] * (9 - len(rows))] == together
    assert together[0] > together[-1]


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_logits_that_are_no_numbers_fail(value: float):
    model = random_model(0, 0.3)
    with torch.no_grad():
        model.ln_f.weight.fill_(value)
    with pytest.raises(RunFailed, match="beam search found no sequence of finite score"):
        search(model, [[1, 2], [3]], Decode(beam=2, max_new_tokens=4), end_ids=ENDS)


def test_logits_are_fp32_where_all_else_is_bf16(monkeypatch: pytest.MonkeyPatch):
    """With oneDNN or without, as on GPUs: a search compares them."""
    for onednn in (True, False):
        monkeypatch.setattr(products, "_onednn", lambda W, here=onednn: here)
        net = random_model(3, 0.3)
        net.pack(torch.bfloat16, training=False)
        given: list[torch.dtype] = []
        inner = net.logits

        def logits(hidden: torch.Tensor, inner: Any = inner, given: list[torch.dtype] = given) -> torch.Tensor:
            given.append(inner(hidden).dtype)
            return inner(hidden)

        monkeypatch.setattr(net, "logits", logits)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            search(net, [[1, 2], [3]], Decode(beam=2, max_new_tokens=3), end_ids=[17])
        assert set(given) == {torch.float32}
