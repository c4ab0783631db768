"""Many cells through Hydra's launchers: failures, workers that die, two sweeps over the same cells."""

import fcntl
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lodarepro import launch, records
from lodarepro.cli import main

SLOW = ["train.epochs=12", "runtime.checkpoint_minutes=0.004"]
"""seconds of training, and several checkpoints a second"""


def one_sweep(root: Path) -> Path:
    (folder,) = (root / "results" / "sweeps").iterdir()
    return folder


def wait_until(true: Callable[[], Any], *processes: subprocess.Popen[str], seconds: float = 120) -> Any:
    began = time.monotonic()
    while not (found := true()):
        for process in processes:
            assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() - began < seconds
        time.sleep(0.02)
    return found


def in_state(sweep: Path, state: str) -> list[launch.Status]:
    return [status for status in launch.read_statuses(sweep) if status.state == state]


def record_of(status: launch.Status) -> records.Record:
    assert status.folder is not None
    return records.finished(Path(status.folder))


def sweep_folder(root: Path, *others: Path) -> Path | None:
    folders = set((root / "results" / "sweeps").glob("*")) - set(others)
    return next(iter(folders), None)


def held_with_checkpoint(sweep: Path, root: Path) -> str | None:
    """The seed of the cell that a sweep works on, once there is something to continue from."""
    for status in in_state(sweep, "running"):
        (seed,) = [text for text in status.overrides if text.startswith("seed=")]
        if list((root / "results" / "runs").glob(f"*_s{seed.removeprefix('seed=')}_*/checkpoint.safetensors")):
            return seed
    return None


@pytest.mark.slow
def test_two_sweeps_share_their_cells_and_one_that_dies_leaves_them_to_the_other(cell, tmp_path, command):
    cells = [*cell, *SLOW, "seed=1,2,3,4"]
    first = command("run", "-m", *cells)
    sweep_a = wait_until(lambda: sweep_folder(tmp_path), first)
    wait_until(lambda: held_with_checkpoint(sweep_a, tmp_path), first)
    second = command("run", "-m", *cells)
    sweep_b = wait_until(lambda: sweep_folder(tmp_path, sweep_a), first, second)
    # The second finds the first at work on a cell and turns to another.
    wait_until(lambda: in_state(sweep_b, "busy") and in_state(sweep_b, "running"), first, second)
    held = wait_until(lambda: held_with_checkpoint(sweep_a, tmp_path), first, second)
    first.kill()
    first.wait()
    assert held_with_checkpoint(sweep_a, tmp_path) == held, "the test needs it to die at work"
    done_by_first = {s.overrides for s in in_state(sweep_a, "finished")}
    before = {
        s.overrides: (Path(s.folder or "") / "record.json").stat().st_mtime_ns for s in in_state(sweep_a, "finished")
    }

    out, err = second.communicate(timeout=240)
    assert second.returncode == 0, err
    assert "4 of 4 cells finished" in out
    statuses = launch.read_statuses(sweep_b)
    assert [s.state for s in statuses] == ["finished"] * 4
    assert len(list((tmp_path / "results" / "runs").iterdir())) == 4
    for status in statuses:
        stretches = record_of(status).training["stretches"]
        assert stretches[0]["from_step"] == 0
        # Nothing was done twice: only the killed cell was started again, and from a step of its own.
        assert len(stretches) == (2 if held in status.overrides else 1)
        assert all(s["from_step"] > 0 for s in stretches[1:])
        if status.overrides in done_by_first:
            assert (Path(status.folder or "") / "record.json").stat().st_mtime_ns == before[status.overrides]
    assert not list((tmp_path / "results" / "runs").glob("*/checkpoint.safetensors"))


def test_a_failed_cell_is_recorded_and_tried_again_on_request_only(cell, tmp_path, capsys):
    cells = [*cell, "train.lr=1e30,1e-2"]
    assert main(["run", "-m", *cells]) == 1
    shown = capsys.readouterr()
    assert "1 of 2 cells finished" in shown.out
    assert "training diverged" in shown.err
    (folder,) = [f for f in (tmp_path / "results" / "runs").iterdir() if not (f / "record.json").exists()]
    failure = json.loads((folder / "failure.json").read_text())
    assert "training diverged" in failure["faults"][0]
    assert failure["config"]["train"]["lr"] == 1e30
    assert failure["provenance"]["code"]["version"]

    began = time.monotonic()
    assert main(["run", "-m", *cells]) == 1
    assert time.monotonic() - began < 20
    (fault,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("lodarepro:")]
    assert "(it failed before: runtime.retry=true tries again)" in fault

    written = (folder / "failure.json").stat().st_mtime_ns
    assert main(["run", "-m", *cells, "runtime.retry=true"]) == 1
    assert (folder / "failure.json").stat().st_mtime_ns > written
    assert "it failed before" not in capsys.readouterr().err
    # A run of its own is a request.
    written = (folder / "failure.json").stat().st_mtime_ns
    assert main(["run", *cell, "train.lr=1e30"]) == 1
    assert (folder / "failure.json").stat().st_mtime_ns > written


@pytest.mark.slow
@pytest.mark.parametrize(
    "launcher",
    [
        ["hydra/launcher=parallel", "hydra.launcher.n_jobs=2"],
        ["hydra/launcher=submitit_local", "hydra.launcher.timeout_min=5"],
    ],
    ids=["joblib", "submitit"],
)
def test_workers_do_the_cells_too(cell, tmp_path, command, launcher):
    """A cell that fails there, a method of the user's own, and one that is finished already."""
    own = tmp_path / "own.py"
    own.write_text(
        "from dataclasses import dataclass\n\n\n@dataclass(frozen=True)\nclass Top:\n    name: str = 'only-bias'\n\n\n"
        "def attach(model, config, generator):\n    model.ln_f.bias.requires_grad_(True)\n"
    )
    arguments = [text for text in cell if not text.startswith(("method", "train.lr"))]
    sweep = ["run", "-m", "--method-file", str(own), *arguments, "method=only-bias", "seed=1,2", "train.lr=1e-2,1e38"]
    process = command(*sweep, *launcher)
    out, err = process.communicate(timeout=240)
    assert process.returncode == 1, err
    assert "2 of 4 cells finished" in out
    assert err.count("training diverged") == 2  # of each cell its own step and pairs
    for seed in (1, 2):
        assert f"lodarepro: seed={seed} train.lr=1e+38: the loss is" in err
    assert "Traceback" not in err
    sweep_dir = one_sweep(tmp_path)
    assert {s.state for s in launch.read_statuses(sweep_dir)} == {"finished", "failed"}
    assert "epoch 4 of 4" in (sweep_dir / "0" / "log.txt").read_text(), "workers log into the sweep's folder"
    assert "epoch 4 of 4" not in err
    assert "cells: 2 of 4 done, 2 failed" in err

    again = command(*sweep, *launcher)
    out, err = again.communicate(timeout=240)
    assert "2 of 4 cells finished" in out
    assert "cells: 2 of 4 done (2 before), 2 failed" in err


@pytest.mark.slow
def test_a_worker_that_is_killed_is_said_and_the_same_command_continues(cell, tmp_path, command):
    sweep = ["run", "-m", *cell, *SLOW, "seed=1,2", "hydra/launcher=parallel"]
    process = command(*sweep)
    folder = wait_until(lambda: sweep_folder(tmp_path), process)
    wait_until(lambda: held_with_checkpoint(folder, tmp_path), process)
    (worker, *_) = wait_until(lambda: workers_at_work(process.pid, tmp_path), process)
    os.kill(worker, signal.SIGKILL)
    out, err = process.communicate(timeout=240)
    assert process.returncode == 1
    assert "Traceback" not in err
    assert "the launcher gave up (TerminatedWorkerError" in err
    assert "its worker ended without a word" in err
    assert "of 2 cells finished" in out or not out

    process = command(*sweep)
    out, err = process.communicate(timeout=240)
    assert process.returncode == 0, err
    assert "2 of 2 cells finished" in out


@pytest.mark.parametrize(
    ("number", "to_all"),
    [(signal.SIGINT, True), pytest.param(signal.SIGTERM, False, marks=pytest.mark.slow)],
    ids=["ctrl-c", "sigterm"],
)
def test_a_signal_ends_a_sweep_in_workers_in_order(cell, tmp_path, command, number, to_all):
    """Cells at work are saved, others not started, no worker stays."""
    sweep = ["run", "-m", *cell, *SLOW, "seed=1,2,3,4", "hydra/launcher=parallel"]
    process = command(*sweep, start_new_session=True)
    folder = wait_until(lambda: sweep_folder(tmp_path), process)
    wait_until(lambda: held_with_checkpoint(folder, tmp_path), process)
    workers = wait_until(lambda: workers_at_work(process.pid, tmp_path), process)
    if to_all:
        os.killpg(process.pid, number)
    else:
        os.kill(process.pid, number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 128 + number, err
    assert "Traceback" not in err
    assert "the same command continues" in err
    assert not in_state(folder, "running")
    assert in_state(folder, "stopped")
    wait_until(lambda: not any(Path(f"/proc/{worker}").exists() for worker in workers), seconds=20)


@pytest.mark.slow
def test_workers_save_and_end_when_the_process_that_started_them_dies(cell, tmp_path, command):
    process = command("run", "-m", *cell, *SLOW, "train.epochs=200", "seed=1,2", "hydra/launcher=parallel")
    folder = wait_until(lambda: sweep_folder(tmp_path), process)
    wait_until(lambda: held_with_checkpoint(folder, tmp_path), process)
    workers = wait_until(lambda: len(found := workers_at_work(process.pid, tmp_path)) == 2 and found, process)
    process.kill()
    wait_until(lambda: not any(Path(f"/proc/{worker}").exists() for worker in workers), seconds=30)
    assert [s.state for s in launch.read_statuses(folder)] == ["stopped"] * 2
    assert len(list((tmp_path / "results" / "runs").glob("*/checkpoint.safetensors"))) == 2


def workers_at_work(parent: int, root: Path) -> list[int]:
    """Children of a process that hold a run's lock file open."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            stat = (folder / "stat").read_text().rpartition(")")[2].split()
            links = [str(link.readlink()) for link in (folder / "fd").iterdir()]
        except OSError:
            continue
        if int(stat[1]) == parent and any(str(root) in link and link.endswith(".lock") for link in links):
            found.append(int(folder.name))
    return found


SBATCH = """\
import os, pathlib, re, subprocess, sys
here = pathlib.Path(__file__).parent
again = os.path.basename(sys.argv[0]) == "scontrol"
script = here / "job.sh"
if not again:
    script.write_text(pathlib.Path(sys.argv[-1]).read_text())
    first, last = map(int, re.search(r"--array=(\\d+)-(\\d+)", script.read_text()).groups())
    print("Submitted batch job 77")
else:
    (here / "requeued").write_text(sys.argv[2])
    first = last = int(sys.argv[2].partition("_")[2])
for task in range(first, last + 1):
    described = dict(JOB_ID=f"77{task}", ARRAY_JOB_ID=77, ARRAY_TASK_ID=task, NTASKS=1, JOB_NUM_NODES=1, NODEID=0)
    described |= dict(JOB_NODELIST="here", PROCID=0, LOCALID=0)
    env = {**os.environ, **{f"SLURM_{key}": str(value) for key, value in described.items()}}
    with (here / f"{task}.out").open("a") as out:
        process = subprocess.Popen(["bash", str(script)], env=env, stdout=out, stderr=out, start_new_session=True)
    (here / f"{task}.pid").write_text(str(process.pid))
"""
SRUN = """\
import os, sys
rest = sys.argv[1:]
while rest[0].startswith("-"):
    rest = rest[1:] if rest[0] == "--unbuffered" else rest[2:]
os.execvp(rest[0], rest)
"""
SACCT = """\
print("JobID|State|NodeList")
for task in range(2):
    print(f"77_{task}|RUNNING|here")
"""


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Stand-ins for SLURM's commands that run an array's tasks on this machine."""
    folder = tmp_path / "slurm"
    folder.mkdir()
    for name, text in {"sbatch": SBATCH, "scontrol": SBATCH, "srun": SRUN, "sacct": SACCT}.items():
        (folder / name).write_text(f"#!{sys.executable}\n{text}")
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    return folder


@pytest.mark.slow
def test_slurm_jobs_that_run_out_of_time_are_handed_in_again_and_continue(cell, tmp_path, command, slurm):
    longer = [*SLOW, "train.epochs=40", "seed=1,2"]
    process = command("run", "-m", *cell, *longer, "hydra/launcher=slurm", "hydra.launcher.partition=gpu")
    folder = wait_until(lambda: sweep_folder(tmp_path), process)
    seed = wait_until(lambda: held_with_checkpoint(folder, tmp_path), process)
    told = 0 if seed == "seed=1" else 1
    # What SLURM sends to all processes of a job some time before its end.
    os.killpg(int((slurm / f"{told}.pid").read_text()), signal.SIGUSR2)
    out, err = process.communicate(timeout=240)
    assert process.returncode == 0, err
    assert "2 of 2 cells finished" in out
    assert (slurm / "requeued").read_text() == f"77_{told}"
    stretches = [record_of(status).training["stretches"] for status in launch.read_statuses(folder)]
    assert [len(s) for s in stretches] == ([2, 1] if told == 0 else [1, 2])
    assert stretches[told][1]["from_step"] > 0
    script = (slurm / "job.sh").read_text()
    for setting in ("--array=0-1%2", "--gpus-per-node=1", "--partition=gpu", "--time=240", "--signal=USR2@120"):
        assert f"#SBATCH {setting}\n" in script


@pytest.mark.slow
def test_a_cell_that_another_process_held_is_done_after_all(cell, tmp_path, capsys):
    """By the same launcher and with the user's own configs; it had been left for later."""
    options = tmp_path / "options"
    (options / "dataset").mkdir(parents=True)
    (options / "dataset" / "mine.yaml").write_text("defaults: [/dataset/mini@_here_]\nname: mine\nremote: null\n")
    files = Path(records.__file__).parent / "data" / "mini"
    own = [text.replace("dataset=mini", "dataset=mine") for text in cell]
    sweep = ["run", "-m", "--config-dir", str(options), *own, f"data.root={files}", "train.epochs=1", "seed=1,2"]
    assert main(sweep) == 0
    capsys.readouterr()
    folder, _ = sorted((tmp_path / "results" / "runs").iterdir())
    (folder / "record.json").unlink()
    released = threading.Event()
    with (folder / records.LOCK).open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)

        def release() -> None:
            released.set()
            fcntl.flock(lock, fcntl.LOCK_UN)

        threading.Timer(8, release).start()
        assert main(sweep) == 0
        assert released.is_set(), "it waited"
    shown = capsys.readouterr()
    assert "2 of 2 cells finished" in shown.out
    assert "1 elsewhere" in shown.err
    assert (folder / "record.json").exists()


@pytest.mark.slow
def test_a_stop_ends_a_sweep_and_the_same_command_finishes_it(cell, tmp_path, command):
    sweep = ["run", "-m", *cell, *SLOW, "seed=1,2"]
    process = command(*sweep)
    folder = wait_until(lambda: sweep_folder(tmp_path), process)
    wait_until(lambda: held_with_checkpoint(folder, tmp_path), process)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 130
    assert "the same command continues" in err
    assert "Traceback" not in err
    assert [s.state for s in launch.read_statuses(folder)] == ["stopped"]

    process = command(*sweep)
    out, err = process.communicate(timeout=240)
    assert process.returncode == 0, err
    assert "2 of 2 cells finished" in out


def test_a_launcher_whose_package_is_missing(cell, monkeypatch, capsys):
    monkeypatch.setattr("lodarepro.launch.sweep.find_spec", lambda name: None)
    assert main(["run", "-m", *cell, "hydra/launcher=slurm"]) == 2
    assert capsys.readouterr().err == (
        "lodarepro: hydra/launcher=slurm: its package is not installed; pip install 'lodarepro[slurm]'\n"
    )


def test_a_named_sweep_needs_m(capsys):
    assert main(["run", "sweep=loda-3"]) == 2
    assert capsys.readouterr().err == "lodarepro: sweep=loda-3: a sweep of several cells needs -m\n"
