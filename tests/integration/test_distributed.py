"""Several processes that train one model: as one does, and they stop and go on together.

The trainings of the first part run in one start of `torchrun`, which runs this file as a program.
"""

import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from lodarepro import config, records
from lodarepro.cli import main
from lodarepro.distributed import ALONE, Processes, joined
from lodarepro.errors import Stopped
from lodarepro.methods import attach, trained
from lodarepro.model import GPT2, Sizes
from lodarepro.model.weights import save_tensors
from lodarepro.train.checkpoint import Progress
from lodarepro.train.loop import train
from tests.pairs import pairs

ROOT = Path(__file__).resolve().parents[2]
SIZES = Sizes(n_layer=2, n_head=2, n_embd=32, vocab_size=60, n_positions=48)
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]

SETTINGS = config.Train(epochs=3, batch_size=4, lr=1e-2, warmup_steps=2)
LORA = config.Lora(rank=2, dropout=0.0)
CASES: dict[str, tuple[config.Train, Any]] = {
    "batches of 4": (SETTINGS, LORA),
    "batches of 3": (dataclasses.replace(SETTINGS, batch_size=3), LORA),
    "batches of 1": (dataclasses.replace(SETTINGS, batch_size=1, max_steps=15), LORA),
    "a last batch of 2": (dataclasses.replace(SETTINGS, fill_last_batch=False), LORA),
    "accumulated and clipped": (dataclasses.replace(SETTINGS, accumulate=2, clip=0.2), LORA),
    "a loss of pairs": (dataclasses.replace(SETTINGS, loss="pairs", lr=1e-3), LORA),
    "everything trains": (dataclasses.replace(SETTINGS, lr=1e-3), config.Ft()),
    "PyTorch's AdamW": (dataclasses.replace(SETTINGS, optimizer="pytorch"), LORA),
}
STOPPED, DROPOUT = "stopped by one of them", "dropout"


DATA, VALID = pairs(14, 0), pairs(7, 1)


def go(settings: config.Train, method: Any, processes: Processes, **options: Any) -> tuple[GPT2, Progress]:
    net = GPT2(SIZES)
    net.initialise(torch.Generator().manual_seed(0))
    attach(net, method, torch.Generator().manual_seed(1))
    protocol = config.Protocol("x", max_length=48)
    return net, train(net, DATA, VALID, settings, protocol=protocol, seed=3, processes=processes, **options)


# one of the processes ---------------------------------------------------------------------------


def work(folder: Path) -> None:
    """Train every case; each process writes what it has in the end."""
    torch.set_num_threads(1)
    with joined("gloo") as processes:
        for name, (settings, method) in CASES.items():
            note(folder, name, processes.rank, *go(settings, method, processes))

        # A signal reaches the second process alone; both stop at the same step, and go on from one checkpoint.
        settings, path = CASES["accumulated and clipped"][0], folder / "c.safetensors"
        asked = iter(range(1, 100))
        try:
            go(
                *(settings, LORA, processes),
                checkpoint_path=path,
                stop_signal=lambda: 15 if processes.rank == 1 and next(asked) >= 4 else None,
            )
        except Stopped as e:
            (folder / f"fault-{processes.rank}.txt").write_text(f"{e.exit_code} {e.faults[0]}")
        torch.distributed.barrier()  # other processes go on only when the first has written
        note(folder, STOPPED, processes.rank, *go(settings, LORA, processes, checkpoint_path=path))

        # Each process draws masks of its own, and has its generator again where it goes on.
        settings, method = dataclasses.replace(SETTINGS, model_dropout=0.1), config.Lora(rank=2, dropout=0.1)
        note(folder, DROPOUT, processes.rank, *go(settings, method, processes))
        (folder / f"seed-{processes.rank}.txt").write_text(str(torch.initial_seed()))
        path, asked = folder / "d.safetensors", iter(range(1, 100))
        try:
            go(
                *(settings, method, processes),
                checkpoint_path=path,
                stop_signal=lambda: 15 if next(asked) >= 4 else None,
            )
        except Stopped:
            torch.manual_seed(5)
            torch.distributed.barrier()
            note(folder, f"{DROPOUT}, resumed", processes.rank, *go(settings, method, processes, checkpoint_path=path))


def note(folder: Path, name: str, rank: int, net: GPT2, progress: Progress) -> None:
    save_tensors(folder / f"{name}-{rank}.safetensors", {**trained(net), "losses": progress.losses}, metadata={})
    described = {"epochs": progress.epochs, "starts": [s["from_step"] for s in progress.stretches]}
    (folder / f"{name}-{rank}.json").write_text(json.dumps(described))


if __name__ == "__main__":
    work(Path(sys.argv[1]))
    sys.exit()


# in the tests -----------------------------------------------------------------------------------


@pytest.fixture
def torchrun() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts a program as two processes; what is left of them at the test's end is killed."""
    started: list[subprocess.Popen[str]] = []

    def start(*arguments: str) -> subprocess.Popen[str]:
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        whole = [*TORCHRUN, *arguments]
        started.append(
            subprocess.Popen(
                whole,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                env=environment,
                start_new_session=True,  # so that its processes can be killed with it
            )
        )
        return started[-1]

    yield start
    for process in started:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of what two processes noted."""
    folder = tmp_path_factory.mktemp("processes")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*TORCHRUN, __file__, str(folder)], capture_output=True, text=True, env=environment, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return folder


def of_ranks(folder: Path, name: str) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """What both processes have in the end, which is the same."""
    one, other = (load_file(folder / f"{name}-{rank}.safetensors") for rank in (0, 1))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[key], t) for key, t in other.items())
    described = [json.loads((folder / f"{name}-{rank}.json").read_text()) for rank in (0, 1)]
    assert described[0] == described[1]
    return one, described[0]


def compare(actual: tuple[dict[str, torch.Tensor], dict[str, Any]], settings: config.Train, method: Any) -> None:
    net, progress = go(settings, method, ALONE)
    tensors, described = actual
    torch.testing.assert_close(tensors["losses"], progress.losses, atol=1e-5, rtol=0)
    for name, p in trained(net).items():
        torch.testing.assert_close(tensors[name], p.detach(), atol=1e-5, rtol=0)
    for epoch, expected in zip(described["epochs"], progress.epochs, strict=True):
        assert (epoch["epoch"], epoch["step"]) == (expected["epoch"], expected["step"])
        assert epoch["val_loss"] == pytest.approx(expected["val_loss"], abs=1e-5)


@pytest.mark.parametrize("name", CASES)
def test_two_processes_train_as_one_does(name: str, found: Path):
    compare(of_ranks(found, name), *CASES[name])


def test_a_signal_to_one_of_them_stops_both_at_one_step(found: Path):
    settings, method = CASES["accumulated and clipped"]
    said = {(found / f"fault-{rank}.txt").read_text() for rank in (0, 1)}
    assert said == {"143 stopped at step 4 of 12; the same command continues"}
    actual = of_ranks(found, STOPPED)
    assert actual[1]["starts"] == [0, 4]
    compare(actual, settings, method)


def test_each_process_draws_masks_of_its_own(found: Path):
    assert (found / "seed-0.txt").read_text() != (found / "seed-1.txt").read_text()


def test_dropout_goes_on_as_it_was_in_each_process(found: Path):
    whole, resumed = of_ranks(found, DROPOUT), of_ranks(found, f"{DROPOUT}, resumed")
    assert resumed[1]["starts"] == [0, 4]
    assert all(torch.equal(resumed[0][name], t) for name, t in whole[0].items())
    assert resumed[1]["epochs"] == whole[1]["epochs"]
    _, alone = go(dataclasses.replace(SETTINGS, model_dropout=0.1), config.Lora(rank=2, dropout=0.1), ALONE)
    assert not torch.allclose(whole[0]["losses"], alone.losses, atol=1e-4)  # other masks
    torch.testing.assert_close(whole[0]["losses"], alone.losses, atol=0.3, rtol=0)


# the command ------------------------------------------------------------------------------------

LONG = ["method.dropout=0", "train.epochs=8", "train.keep=[last]", "runtime.checkpoint_minutes=0.0005"]
"""160 steps"""


def losses_of(folder: Path) -> list[float]:
    header, *lines = (folder / "steps.csv").read_text().splitlines()
    assert header == "step,lr,loss"
    return [float(line.split(",")[2]) for line in lines]


def wait_for(true: Callable[[], Any], process: subprocess.Popen[str], seconds: float = 120) -> None:
    began = time.monotonic()
    while not true():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() - began < seconds
        time.sleep(0.01)


@pytest.mark.slow
def test_a_run_of_two_processes_stops_goes_on_and_leaves_one_record(
    settings: list[str], tmp_path: Path, torchrun, capsys: pytest.CaptureFixture[str]
):
    root = tmp_path / "two"
    cell = ["-m", "lodarepro.cli", "run", *settings, *LONG, f"results.root={root}"]
    process = torchrun(*cell)
    wait_for(lambda: list(root.glob("runs/*/checkpoint-before.safetensors")), process)
    process.terminate()
    _, error = process.communicate(timeout=60)
    assert process.returncode != 0
    assert re.search(r"lodarepro: stopped at step \d+ of \d+; the same command continues", error)
    (folder,) = (root / "runs").iterdir()
    assert not (folder / "record.json").exists()
    assert (folder / "checkpoint.safetensors").exists()

    # One process alone can't go on with the random numbers of two.
    assert main(["run", *settings, *LONG, f"results.root={root}"]) == 2
    assert "was written by 2 processes" in capsys.readouterr().err

    process = torchrun(*cell)
    assert main(["run", *settings, *LONG, f"results.root={tmp_path / 'alone'}"]) == 0
    output = capsys.readouterr().out
    printed, error = process.communicate(timeout=200)
    assert process.returncode == 0, error
    (whole,) = (tmp_path / "alone" / "runs").iterdir()
    assert [path.name for path in (root / "runs").iterdir()] == [whole.name]
    record, expected = records.finished(folder), records.finished(whole)
    assert record.provenance["processes"] == 2 and "processes" not in expected.provenance
    first, second = record.training["stretches"]
    assert first["from_step"] == 0 < second["from_step"] < 160
    assert losses_of(folder) == pytest.approx(losses_of(whole), abs=1e-5)
    assert record.training["epochs"][-1]["val_loss"] == pytest.approx(
        expected.training["epochs"][-1]["val_loss"], abs=1e-5
    )
    assert len(record.evaluations) == len(expected.evaluations)
    assert len(records.read_decoded(folder / record.evaluations[0].hypotheses)) == 6
    assert printed.count(whole.name) == output.count(whole.name)  # the first process alone tells
    assert printed.count("| mini ") == output.count("| mini ") == 1

    # A finished run is found by both.
    process = torchrun(*cell)
    _, error = process.communicate(timeout=100)
    assert process.returncode == 0, error
    assert records.finished(folder) == record
