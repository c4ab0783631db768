"""Finished runs without training: what analyses read of one, with planted weights and texts."""

import json
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from lodarepro import compose, config, records
from lodarepro.methods import attach, finalize, save_adapter
from lodarepro.model import GPT2, weights
from lodarepro.records import Decoded, Evaluation, Record
from lodarepro.scores import Score
from lodarepro.seeds import derived_seed

SIZES = ("n_layer", "n_head", "n_embd", "vocab_size", "n_positions")


@pytest.fixture(autouse=True)
def caches(own_caches: None) -> None:
    """Every test here."""


@pytest.fixture(scope="module")
def tiny(tiny_model: Path) -> list[str]:
    """The overrides of a cell of the tiny model on the embedded data."""
    sizes = json.loads((tiny_model / "config.json").read_text())
    places = ["model=gpt2-nano", f"model.path={tiny_model}", *(f"model.{key}={sizes[key]}" for key in SIZES)]
    return [*places, "protocol.max_length=500", "runtime.device=cpu"]


@cache
def _composed(*overrides: str) -> config.Run:
    (cell,) = compose.cells(overrides)
    return cell.run


@pytest.fixture
def composed(tiny: list[str]) -> Callable[..., config.Run]:
    """The run that overrides of the tiny cell describe."""
    return lambda *overrides: _composed(*tiny, "dataset=mini", *overrides)


@pytest.fixture
def fabricate(tiny: list[str], tmp_path: Path) -> Callable[..., Path]:
    """Makes the folder of a finished run that was not trained.

    The function takes overrides, and `plant(model)`, which sets what it trained; without it is as it began; `decoded`,
    the texts; `checksums` in place of invented ones.
    """

    def make(
        *overrides: str,
        plant: Callable[[GPT2], None] = lambda model: None,
        decoded: Sequence[Decoded] = (),
        checksums: Mapping[str, str] | None = None,
        bleu: float = 0.25,
    ) -> Path:
        dataset = [] if any(text.startswith("dataset=") for text in overrides) else ["dataset=mini"]
        run = _composed(*tiny, *dataset, *overrides)
        base = weights.find(run.model)
        assert base is not None
        model = weights.load(base, run.model)
        attach(model, run.method, torch.Generator().manual_seed(derived_seed(run.seed, "init")))
        finalize(model, run.method)
        with torch.no_grad():
            plant(model)
        invented = {"model": base.sha256, "tokenizer": base.tokenizer_sha256, "test": "7" * 64, **(checksums or {})}
        root = tmp_path / "results" / records.RUNS
        run_id = f"{compose.run_id(run, invented)[:-12]}{len(list(root.glob('*'))):012x}"
        folder = root / run_id
        folder.mkdir(parents=True)
        described = compose.plain(run)
        save_adapter(model, folder / records.ADAPTER, method=run.method, base=run.model.name, base_sha256=base.sha256)
        (folder / records.EVALUATIONS).mkdir()
        texts = f"{records.EVALUATIONS}/last-test.jsonl"
        records.write_decoded(folder / texts, decoded)
        scores = {"bleu": Score("bleu", bleu, "fraction", True, "metric:bleu|version:1")}
        evaluation = Evaluation("last", described["decode"], "test", "all", texts, len(decoded), scores, 1.5)
        nothing: dict[str, Any] = {"provenance": {}, "parameters": {}, "training": {"epochs": [{}]}}
        identity = compose.identity(run, invented)
        records.write(folder, Record(run_id, described, identity, **nothing, evaluations=(evaluation,)))
        return folder

    return make
