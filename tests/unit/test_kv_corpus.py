"""The pretraining corpus: deterministic, true to its contexts, and apart from the data it prepares for."""

import random
import re
from itertools import islice
from pathlib import Path
from types import ModuleType

import pytest

from tests.script import script

ROOT = Path(__file__).resolve().parents[2]
# Keys of E2E (in the papers' words and in the original ones, apart and as one) and of mini.
RESERVED = {
    *("name", "type", "eat type", "food", "price", "price range", "customer rating", "area", "near", "family friendly"),
    *("eattype", "pricerange", "familyfriendly"),
    *("region", "length", "climb", "difficulty", "highlight", "season", "dogs"),
}


@pytest.fixture(scope="module")
def kv_corpus() -> ModuleType:
    return script("kv_corpus")


def draw(kv_corpus: ModuleType, *, seed: int, count: int) -> list:
    return list(islice(kv_corpus.documents(random.Random(seed)), count))


def test_deterministic(kv_corpus: ModuleType) -> None:
    assert draw(kv_corpus, seed=3, count=200) == draw(kv_corpus, seed=3, count=200)
    assert draw(kv_corpus, seed=3, count=200) != draw(kv_corpus, seed=4, count=200)


def test_every_value_is_in_the_text(kv_corpus: ModuleType) -> None:
    for document in draw(kv_corpus, seed=0, count=5000):
        for value in document.values:
            assert re.search(rf"(?<!\w){re.escape(value)}(?!\w)", document.text, re.IGNORECASE), document


def test_every_value_is_in_the_context(kv_corpus: ModuleType) -> None:
    for document in draw(kv_corpus, seed=1, count=2000):
        for value in document.values:
            assert value.replace(" ", "_") in document.context.replace(" ", "_"), document


def test_form(kv_corpus: ModuleType) -> None:
    documents = draw(kv_corpus, seed=2, count=2000)
    for document in documents:
        fields = [field.split(" : ") for field in document.context.split(" | ")]
        assert {len(field) for field in fields} in ({2}, {3}), document
        assert document.text.endswith(".") and not document.text[0].islower(), document
        assert "{" not in document.text and "\n" not in document.context + document.text, document
    spaced = sum(document.text.endswith(" .") for document in documents)
    assert 0.4 < spaced / len(documents) < 0.6
    triples = sum(len(document.context.split(" | ")[0].split(" : ")) == 3 for document in documents)
    assert 0.25 < triples / len(documents) < 0.42


def test_no_key_of_e2e_or_mini(kv_corpus: ModuleType) -> None:
    assert len(kv_corpus.DOMAINS) >= 12
    domains = (*kv_corpus.DOMAINS, *kv_corpus.SECONDARY.values())
    keys = {key for domain in domains for key in (*domain.keys, *domain.kinds)}
    keys |= {key for domain in domains for attr in domain.attrs for key in attr.keys}
    for document in draw(kv_corpus, seed=4, count=10_000):  # with those of made-up domains
        fields = [field.split(" : ") for field in document.context.split(" | ")]
        keys |= {field[-2] for field in fields}
    plain = {re.sub("([A-Z])", r" \1", key.replace("_", " ")).casefold().strip() for key in keys}
    assert not plain & RESERVED
    assert len(plain) > 1000 and "guest fee" in plain
    assert not {*(domain.noun for domain in domains), *kv_corpus.THINGS} & {
        "restaurant",
        "pub",
        "coffee shop",
        "trail",
        "walk",
    }


def test_made_up_domains(kv_corpus: ModuleType) -> None:
    rng = random.Random(6)
    domains = [kv_corpus.open_domain(rng, told=i % 2 == 0) for i in range(2000)]
    assert len({tuple(attr.keys for attr in domain.attrs) for domain in domains}) == 2000
    for domain in domains:
        keys = [*domain.keys, *domain.kinds, *(key for attr in domain.attrs for key in attr.keys)]
        assert len(domain.attrs) == 8 and len(set(keys)) == len(keys), keys
        for attr in domain.attrs:
            assert attr.says or attr.answers
            assert all(template.count("{}") == 1 for template in (*attr.says, *attr.adjunct)), attr
    assert [bool(domain.kinds) for domain in domains] == [True, False] * 1000


def test_what_a_text_calls_its_subject_is_in_the_context(kv_corpus: ModuleType) -> None:
    """A noun that is told in a field is stated, and a triple's made-up thing has such a field."""
    kinds = {kv_corpus.relation_style(random.Random(i))(key) for key in kv_corpus.KIND_KEYS for i in range(20)}
    told = 0
    for document in draw(kv_corpus, seed=7, count=4000):
        fields = [field.split(" : ") for field in document.context.split(" | ")]
        for noun in (field[-1].replace("_", " ") for field in fields if field[-2] in kinds):
            told += re.search(rf"\b{noun}\b", document.text) is not None
            if noun in kv_corpus.THINGS:
                assert re.search(rf"\b{noun}\b", document.text), document
        if len(fields[0]) == 3 and fields[0][1] not in kinds:  # of a domain written by hand
            assert not any(f"{word} {thing} " in document.text for thing in ("violin", "sofa") for word in ("a", "the"))
    assert told > 1000


def test_every_attribute_can_be_stated(kv_corpus: ModuleType) -> None:
    for domain in (*kv_corpus.DOMAINS, *kv_corpus.SECONDARY.values()):
        for attr in domain.attrs:
            assert attr.says or attr.answers or attr.adjective, (domain.noun, attr.keys)
            for template in (*attr.says, *attr.adjunct):
                assert template.count("{}") == 1, template
