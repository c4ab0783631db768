"""What the tests of whole commands share: a run that takes seconds, and commands as processes."""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

SETTINGS = [
    "method=lora",
    "method.rank=2",
    "train.lr=1e-2",
    "train.epochs=4",
    "train.warmup_steps=2",
    "decode.max_new_tokens=12",
    "dataset=mini",
    "dataset.limit.train=160",
    "dataset.limit.valid=12",
    "dataset.limit.test=6",
]


@pytest.fixture(scope="module", autouse=True)
def caches(own_caches: None) -> None:
    """Every test here."""


@pytest.fixture(scope="session")
def settings(tiny_model: Path) -> list[str]:
    """Overrides of a run that takes seconds (scoring aside), but for `results.root`."""
    sizes = json.loads((tiny_model / "config.json").read_text())
    return [
        "model=gpt2-nano",
        f"model.path={tiny_model}",
        *(f"model.{key}={sizes[key]}" for key in ("n_layer", "n_head", "n_embd", "vocab_size", "n_positions")),
        *SETTINGS,
    ]


@pytest.fixture
def cell(settings: list[str], tmp_path: Path) -> list[str]:
    """The overrides of that run, with results of this test's own."""
    return [*settings, f"results.root={tmp_path / 'results'}"]


@pytest.fixture
def command() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts a command as a process; what is left of it at the test's end is killed."""
    started: list[subprocess.Popen[str]] = []

    def start(*arguments: str, **changes: Any) -> subprocess.Popen[str]:
        whole = [sys.executable, "-m", "lodarepro.cli", *arguments]
        started.append(subprocess.Popen(whole, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **changes))
        return started[-1]

    yield start
    for process in started:
        if process.poll() is None:
            process.kill()
        process.communicate()
