"""Trainings that are killed at any moment end with the same bits as one that is not.

A helper process, which is this file run as a program, has imported everything once and forks a child for each try: the
child trains, decodes and writes what it found; the helper kills it after a while, or it kills itself within a write.
"""

import copy
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from lodarepro import config
from lodarepro.decode.beam import search
from lodarepro.methods import attach, trained
from lodarepro.model import GPT2, Sizes
from lodarepro.model.weights import save_tensors
from lodarepro.train.checkpoint import Checkpoints
from lodarepro.train.loop import train
from tests.pairs import pairs

ROOT = Path(__file__).resolve().parents[2]
SIZES = Sizes(n_layer=1, n_head=2, n_embd=16, vocab_size=60, n_positions=32)
# 4 steps an epoch, each an update; the best epoch, as validation losses go, is neither first nor last.
SETTINGS = config.Train(
    epochs=10, batch_size=6, lr=0.3, warmup_steps=4, model_dropout=0.1, keep=("best", "last", "epoch-2")
)
DECODE = config.Decode(beam=3, max_new_tokens=6, no_repeat_ngram=3)
MOMENTS, SEED = 20, 20
CALLS = {"fsync": 42, "replace": 122}
"""of a whole training, at least: a write an update, and three renames"""
WRITES = [
    (name, when, n)
    for name, calls in CALLS.items()
    for when in ("before", "after")
    for n in (1, 2, 3, *random.Random(f"{name} {when}").sample(range(4, calls), 2))
]


# in the helper ----------------------------------------------------------------------------------


DATA, VALID = pairs(22, 0, longest=12), pairs(7, 1, longest=12)


def work(folder: Path) -> None:
    """Train, or go on; decode with the last and the best; write adapters, losses and hypotheses."""
    net = GPT2(SIZES)
    net.initialise(torch.Generator().manual_seed(0))
    attach(net, config.Lora(rank=2, dropout=0.1), torch.Generator().manual_seed(1))
    path = folder / "checkpoint.safetensors"
    progress = train(
        net,
        DATA,
        VALID,
        SETTINGS,
        protocol=config.Protocol("x", max_length=32),
        seed=3,
        runtime=config.Runtime(checkpoint_minutes=1e-9),
        checkpoint_path=path,
    )
    found: dict[str, Any] = {"losses": progress.losses.tolist(), "epochs": progress.epochs}
    adapters: dict[str, torch.Tensor] = {}
    for name in SETTINGS.keep:
        state = net
        if name != "last":
            state = copy.deepcopy(net)
            Checkpoints(path, SETTINGS.keep).restore_epoch(state, progress.epoch_of(name)["epoch"])
        adapters |= {f"{name}.{key}": p for key, p in trained(state).items()}
        prompts = [DATA.sequence(row)[: DATA.contexts[row]].tolist() for row in range(5)]
        found[name] = [(h.tokens, h.score, h.finished) for h in search(state.eval(), prompts, DECODE, end_ids=[0, 9])]
    save_tensors(folder / "adapters.safetensors", adapters, metadata={})
    starts = [stretch["from_step"] for stretch in progress.stretches]
    (folder / "starts.json").write_text(json.dumps(starts))
    (folder / "found.json").write_text(json.dumps(found))


def killed_within(name: str, when: str, n: int) -> None:
    """Kill this process at the n-th call, before or after it does what it does."""
    calls = iter(range(1, 10**6))

    def deadly(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            number = next(calls)
            if number == n and when == "before":
                os.kill(os.getpid(), signal.SIGKILL)
            result = function(*arguments)
            if number == n:
                os.kill(os.getpid(), signal.SIGKILL)
            return result

        return call

    if name == "fsync":
        os.fsync = deadly(os.fsync)
    else:
        Path.replace = deadly(Path.replace)  # type: ignore[method-assign]


def serve() -> None:
    """For each line of the input, a JSON of `folder`, `after` (seconds, or null) and `within`: a child's end."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        work(Path(folder))  # what takes a second the first time, children need not do again
    for line in sys.stdin:
        asked = json.loads(line)
        began = time.monotonic()
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                if asked["within"]:
                    killed_within(*asked["within"])
                work(Path(asked["folder"]))
                status = 0
            finally:
                os._exit(status)
        if asked["after"] is not None:
            time.sleep(asked["after"])
            os.kill(pid, signal.SIGKILL)
        _, ended = os.waitpid(pid, 0)
        print(json.dumps([os.waitstatus_to_exitcode(ended), time.monotonic() - began]), flush=True)


if __name__ == "__main__":
    serve()
    sys.exit()


# in the tests -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tries() -> Iterator[Callable[..., tuple[int, float]]]:
    """Makes one try in a folder; gives its exit code, negative for a signal, and the seconds that it took."""
    helper = subprocess.Popen(
        [sys.executable, __file__],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert helper.stdin is not None and helper.stdout is not None
    asked, told = helper.stdin, helper.stdout

    def try_(folder: Path, *, after: float | None = None, within: tuple[str, str, int] | None = None) -> Any:
        print(json.dumps({"folder": str(folder), "after": after, "within": within}), file=asked, flush=True)
        return json.loads(told.readline())

    yield try_
    asked.close()
    helper.wait(timeout=30)
    told.close()


@pytest.fixture(scope="module")
def whole(tries, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, float]:
    """The folder of a training that nobody killed, and the seconds that it took, at best of three."""
    folders = [tmp_path_factory.mktemp("whole") for _ in range(3)]
    ends = [tries(folder) for folder in folders]
    assert [code for code, _ in ends] == [0, 0, 0]
    return folders[0], min(seconds for _, seconds in ends)


def ends_the_same(folder: Path, whole: tuple[Path, float], tries) -> list[int]:
    """The next try, which nobody kills, ends as the whole training did; gives the steps that tries started from."""
    code, _ = tries(folder)
    assert code == 0
    one, other = (load_file(path / "adapters.safetensors") for path in (folder, whole[0]))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], t) for name, t in other.items())
    assert (folder / "found.json").read_text() == (whole[0] / "found.json").read_text()
    starts: list[int] = json.loads((folder / "starts.json").read_text())
    return starts


def test_the_training_is_one_where_much_can_differ(whole):
    found = json.loads((whole[0] / "found.json").read_text())
    values = [e["val_loss"] for e in found["epochs"]]
    assert len(values) == 10 and 1 < values.index(min(values)) < 9
    assert len({json.dumps(found[name]) for name in SETTINGS.keep}) == 3
    assert len(found["losses"]) == len(set(found["losses"])) == 40


def test_kills_at_random_moments(whole, tries, tmp_path: Path):
    r = random.Random(SEED)
    killed, resumed = 0, set()
    for moment in range(MOMENTS):
        folder = tmp_path / str(moment)
        folder.mkdir()
        code, _ = tries(folder, after=whole[1] * r.random())
        assert code in (0, -signal.SIGKILL)
        killed += code != 0
        resumed |= set(ends_the_same(folder, whole, tries))
    assert killed > MOMENTS / 2
    assert len(resumed) > MOMENTS / 4  # at unlike steps


@pytest.mark.parametrize(("name", "when", "n"), WRITES)
def test_kills_within_a_write(name: str, when: str, n: int, whole, tries, tmp_path: Path):
    """While a checkpoint or an epoch's file is written, or between the renames that put it in its place."""
    code, _ = tries(tmp_path, within=(name, when, n))
    assert code == -signal.SIGKILL
    starts = ends_the_same(tmp_path, whole, tries)
    # An update takes a write and three renames, and an epoch that is kept one more of each.
    assert starts[-1] >= (n - 5 if name == "fsync" else (n - 5) // 3 - 1)


def test_one_kill_after_the_other(whole, tries, tmp_path: Path):
    """Each in another place; now and then nothing is written between two."""
    r = random.Random(SEED)
    for _ in range(8):
        code, _ = tries(
            tmp_path, within=(r.choice(["fsync", "replace"]), r.choice(["before", "after"]), r.randint(1, 6))
        )
        assert code == -signal.SIGKILL
    starts = ends_the_same(tmp_path, whole, tries)
    assert starts == sorted(starts) and len(set(starts)) > 3
