"""Devices: one run at a time holds each, a process's death frees it, and what is not there is said."""

import os
import signal
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from lodarepro import devices
from lodarepro.errors import BadInput, Stopped

HOLDER = """
import logging, sys
from pathlib import Path
from lodarepro import devices
devices.WAIT_SECONDS = 0.02
logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
print("starts", flush=True)
with devices.first_free(sys.argv[2:], Path(sys.argv[1])) as number:
    print("holds", number, flush=True)
    sys.stdin.readline()
"""
WAITING = "other runs hold every device (2): waiting; runtime.device=cuda:N shares one"


@pytest.fixture
def processes() -> Iterator[list[subprocess.Popen[str]]]:
    """Those that a test starts; none outlives it."""
    started: list[subprocess.Popen[str]] = []
    yield started
    for process in started:
        process.kill()
        process.communicate()


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "WAIT_SECONDS", 0.01)


def line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


# one of several things --------------------------------------------------------------------------


def test_processes_share_things_and_a_killed_one_leaves_its_own(tmp_path: Path, processes: list[subprocess.Popen[str]]):
    command = [sys.executable, "-c", HOLDER, str(tmp_path), "a", "b"]
    for _ in range(3):
        processes.append(
            subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
            )
        )
    assert [line(process) for process in processes] == ["starts"] * 3
    said = {process: line(process) for process in processes}
    assert sorted(said.values()) == ["holds 0", "holds 1", WAITING]
    (waiter,) = (process for process, text in said.items() if text == WAITING)
    holder = next(process for process, text in said.items() if text == "holds 1")
    time.sleep(0.3)  # many looks, of which nothing more is said
    assert waiter.poll() is None
    holder.send_signal(signal.SIGKILL)
    assert holder.wait() == -signal.SIGKILL
    assert line(waiter) == "holds 1"


def test_the_first_that_is_free_is_held(tmp_path: Path):
    with devices.first_free(["a", "b", "c"], tmp_path) as first:
        with devices.first_free(["a", "b", "c"], tmp_path) as second:
            assert (first, second) == (0, 1)
        with devices.first_free(["a", "b", "c"], tmp_path) as again:
            assert again == 1
        with devices.first_free(["c", "a"], tmp_path) as other_order:
            assert other_order == 0
    with devices.first_free(["a", "b", "c"], tmp_path) as free:
        assert free == 0


def test_a_thing_is_free_again_after_an_exception(tmp_path: Path):
    for error in (RuntimeError("x"), BlockingIOError("x"), KeyboardInterrupt()):
        with pytest.raises(type(error)), devices.first_free(["a"], tmp_path):
            raise error
        with devices.first_free(["a"], tmp_path, stop_signal=lambda: signal.SIGTERM) as number:
            assert number == 0


def test_a_signal_ends_the_waiting(tmp_path: Path, quick: None, monkeypatch: pytest.MonkeyPatch):
    said: list[str] = []
    monkeypatch.setattr(devices.logger, "info", lambda text, *parts: said.append(text % parts))
    answers = iter([None, None, None, signal.SIGTERM])
    with (
        devices.first_free(["a"], tmp_path),
        pytest.raises(Stopped) as e,
        devices.first_free(["a"], tmp_path, stop_signal=lambda: next(answers)),
    ):
        pytest.fail("it is held already")
    assert e.value.faults == ("stopped while waiting for a device; the same command continues",)
    assert e.value.exit_code == 128 + signal.SIGTERM
    assert list(answers) == []  # it was asked at every look
    assert said == ["other runs hold every device (1): waiting; runtime.device=cuda:N shares one"]


def test_who_need_not_wait_is_not_asked_to_stop(tmp_path: Path):
    with devices.first_free(["a"], tmp_path, stop_signal=lambda: pytest.fail("asked")) as number:
        assert number == 0


# what is there ----------------------------------------------------------------------------------


@pytest.fixture
def no_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where locks are in this test."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path / f"lodarepro-devices-{os.getuid()}"


@pytest.fixture
def two(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """A machine with two CUDA devices; what is set in torch, in order."""
    done: list[Any] = []
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda i: SimpleNamespace(uuid=f"aaaa-{i}"))
    monkeypatch.setattr(torch.cuda, "set_device", done.append)
    monkeypatch.setattr(torch, "use_deterministic_algorithms", lambda mode, **_: done.append(("deterministic", mode)))
    yield done
    os.environ.pop("CUBLAS_WORKSPACE_CONFIG", None)


@pytest.mark.parametrize("wanted", ["cuda", "cuda:0", "cuda:5"])
def test_cuda_where_there_is_none(no_cuda: None, wanted: str):
    for call in (devices.check, lambda text: devices.taken(text).__enter__()):
        with pytest.raises(BadInput) as e:
            call(wanted)
        assert e.value.faults == (f"runtime.device={wanted}: torch sees no CUDA device here; see `lodarepro doctor`",)


@pytest.mark.parametrize("wanted", ["cuda:2", "cuda:5", "cuda:10"])
def test_a_number_that_no_device_has(two: list[Any], wanted: str):
    with pytest.raises(BadInput) as e:
        devices.check(wanted)
    assert e.value.faults == (f"runtime.device={wanted}: torch sees 2 CUDA devices here; give cuda:0 to cuda:1",)
    with pytest.raises(BadInput), devices.taken(wanted):
        pytest.fail("it is not there")
    assert two == []


@pytest.mark.parametrize("wanted", ["auto", "cpu", "cuda", "cuda:0", "cuda:1"])
def test_what_is_there_is_no_fault(two: list[Any], wanted: str):
    devices.check(wanted)


@pytest.mark.parametrize("wanted", ["cpu", "auto"])
def test_without_cuda_a_run_is_on_the_cpu(no_cuda: None, folder: Path, wanted: str):
    devices.check(wanted)
    with devices.taken(wanted) as first, devices.taken(wanted) as second:
        assert first == second == torch.device("cpu")
    assert not folder.exists()


def test_the_cpu_may_be_chosen_beside_cuda(two: list[Any], folder: Path):
    with devices.taken("cpu") as device:
        assert device == torch.device("cpu")
    assert two == [] and not folder.exists()


@pytest.mark.parametrize("wanted", ["auto", "cuda"])
def test_every_run_has_a_cuda_device_of_its_own(two: list[Any], folder: Path, quick: None, wanted: str):
    with devices.taken(wanted) as first:
        with devices.taken("auto") as second:
            assert (first, second) == (torch.device("cuda", 0), torch.device("cuda", 1))
            with pytest.raises(Stopped), devices.taken(wanted, stop_signal=lambda: signal.SIGINT):
                pytest.fail("both are held")
        with devices.taken(wanted) as again:
            assert again == torch.device("cuda", 1)
    assert [number for number in two if isinstance(number, int)] == [0, 1, 1]
    assert {path.name for path in folder.iterdir()} == {"aaaa-0.lock", "aaaa-1.lock"}


def test_a_device_is_held_by_what_it_is_not_by_its_number(
    two: list[Any], folder: Path, monkeypatch: pytest.MonkeyPatch
):
    """Another process may see the same devices in another order (CUDA_VISIBLE_DEVICES)."""
    with devices.taken("auto") as first:
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda i: SimpleNamespace(uuid=f"aaaa-{1 - i}"))
        with devices.taken("auto") as second:
            assert (first.index, second.index) == (0, 0)


def test_a_device_named_by_its_number_is_shared(two: list[Any], folder: Path):
    with devices.taken("cuda:1") as first, devices.taken("cuda:1") as second:
        assert first == second == torch.device("cuda", 1)
        assert not folder.exists()
        with devices.taken("auto") as third, devices.taken("auto") as fourth, devices.taken("cuda:0") as fifth:
            assert [device.index for device in (third, fourth, fifth)] == [0, 1, 0]
    assert [str(done) for done in two if not isinstance(done, tuple)] == ["cuda:1", "cuda:1", "0", "1", "cuda:0"]


@pytest.mark.parametrize("wanted", ["auto", "cuda:0"])
def test_equal_runs_shall_give_equal_bits(two: list[Any], folder: Path, wanted: str):
    with devices.taken(wanted):
        assert two[0] == ("deterministic", True)
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"


def test_locks_are_a_users_own(folder: Path):
    assert devices.lock_folder() == devices.lock_folder() == folder
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
