"""The search of transformers 3.2.0, which Li & Liang 2021 decoded with.

The figures in `transformers_beam.json` were computed with that package on tiny random models; how is in its `about`.
"""

import json
from pathlib import Path
from typing import Any, Literal

import pytest
from safetensors.torch import load_file

from lodarepro import config
from lodarepro.decode.beam import Hypothesis, search
from lodarepro.model import GPT2, Sizes

GOLDEN = Path(__file__).parent / "transformers_beam.json"
RUNS: list[dict[str, Any]] = json.loads(GOLDEN.read_text())["runs"]
SCORE = 2e-5


def named(run: dict[str, Any]) -> str:
    return f"{run['model']}-beams{run['num_beams']}-penalty{run['length_penalty']}-end{run['end_id']}"


@pytest.fixture(scope="module")
def models() -> dict[str, GPT2]:
    weights = load_file(GOLDEN.with_suffix(".safetensors"))
    made = {}
    for name, sizes in json.loads(GOLDEN.read_text())["models"].items():
        made[name] = GPT2(Sizes(**sizes)).eval()
        prefix = f"{name}."
        own = {key.removeprefix(prefix): t.float() for key, t in weights.items() if key.startswith(prefix)}
        made[name].load_state_dict(own)
    return made


def found(
    models: dict[str, GPT2],
    run: dict[str, Any],
    *,
    batch: int,
    rules: Literal["lora", "transformers-3"] = "transformers-3",
    min_length: int = 0,
) -> list[Hypothesis]:
    settings = config.Decode(
        search=rules,
        beam=run["num_beams"],
        length_penalty=run["length_penalty"],
        no_repeat_ngram=0,
        max_new_tokens=run["max_new_tokens"],
        min_length=min_length,
    )
    prompts = [case["prompt"] for case in run["cases"]]
    return [
        hypothesis
        for start in range(0, len(prompts), batch)
        for hypothesis in search(
            models[run["model"]],
            prompts[start : start + batch],
            settings,
            end_ids=[run["end_id"]],
            banned_ids=run["banned_ids"],
        )
    ]


@pytest.mark.parametrize("batch", [1, 100])
@pytest.mark.parametrize("run", RUNS, ids=named)
def test_search(models, run: dict[str, Any], batch: int):
    for case, ours in zip(run["cases"], found(models, run, batch=batch), strict=True):
        assert ours.tokens == case["tokens"]
        assert ours.finished == case["finished"]
        assert ours.score == pytest.approx(case["score"], abs=SCORE, rel=0)


def test_the_prompt_counts_for_the_shortest_length(models):
    short = 0
    for run in RUNS:
        for case, ours in zip(run["cases"], found(models, run, batch=100, min_length=12), strict=True):
            missing = 12 - len(case["prompt"])
            if missing <= 0:
                assert ours.tokens == case["tokens"]
            else:
                short += case["finished"] and len(case["tokens"]) <= missing
                assert len(ours.tokens) > missing
    assert short > 9


def test_the_lora_codes_search_is_another(models):
    """The cases tell the two apart."""
    cases = others = 0
    for run in RUNS:
        for case, theirs in zip(run["cases"], found(models, run, batch=100, rules="lora"), strict=True):
            cases += 1
            others += theirs.tokens != case["tokens"]
    assert others > cases / 4
