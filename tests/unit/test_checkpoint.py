"""Checkpoints that are damaged, missing or half written: what is fallen back on, and the same bits in the end."""

import json
import random
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from lodarepro.config import Lora, Protocol, Runtime, Train
from lodarepro.data.tokenise import Encoded
from lodarepro.errors import BadInput, Stopped
from lodarepro.methods import attach, trained
from lodarepro.model import GPT2, Sizes
from lodarepro.train import checkpoint as module
from lodarepro.train import loop
from lodarepro.train.checkpoint import Checkpoints, Progress, Unusable
from lodarepro.train.loop import train

SIZES = Sizes(n_layer=1, n_head=2, n_embd=16, vocab_size=40, n_positions=32)
SETTINGS = Train(epochs=4, batch_size=4, lr=1e-2, warmup_steps=2)
"""3 steps an epoch, 12 in all"""
EVERY_UPDATE = Runtime(checkpoint_minutes=1e-9)
NAMES = ("c.safetensors", "c-before.safetensors")


def pairs(n: int, seed: int) -> Encoded:
    r = np.random.default_rng(seed)
    return Encoded.of([(r.integers(1, 40, r.integers(2, 6)).tolist(), r.integers(1, 40, 5).tolist()) for _ in range(n)])


DATA, VALID = pairs(11, 0), pairs(5, 1)


def fresh() -> GPT2:
    net = GPT2(SIZES)
    net.initialise(torch.Generator().manual_seed(0))
    attach(net, Lora(rank=2, dropout=0.1), torch.Generator().manual_seed(1))
    return net


def go(net: GPT2, folder: Path, settings: Train = SETTINGS, **options: Any) -> Progress:
    options = {"runtime": EVERY_UPDATE, **options}
    path = folder / "c.safetensors"
    return train(net, DATA, VALID, settings, protocol=Protocol("x"), seed=3, checkpoint_path=path, **options)


def stop_at(step: int) -> Callable[[], int | None]:
    """A signal that arrives while the given step of this stretch is done."""
    asked = iter(range(1, 1000))
    return lambda: 15 if next(asked) >= step else None


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def losses_falling_to(monkeypatch: pytest.MonkeyPatch, values: list[float]) -> None:
    """Validation losses of the epochs, in order, so that it is known which is best."""
    given = iter(values)
    monkeypatch.setattr(loop, "validation_loss", lambda *_, **__: next(given))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[GPT2, Progress]:
    net = fresh()
    return net, go(net, tmp_path_factory.mktemp("whole"))


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a training leaves that was stopped at step 8: the checkpoint, the one before, and epochs."""
    folder = tmp_path_factory.mktemp("stopped")
    with pytest.raises(Stopped, match="stopped at step 8 of 12"):
        go(fresh(), folder, stop_signal=stop_at(8))
    assert set(NAMES) < names(folder)
    return folder


@pytest.fixture
def stopped(kept: Path, tmp_path: Path) -> Path:
    """A copy of that, to damage."""
    return Path(shutil.copytree(kept, tmp_path / "run"))


def goes_on(folder: Path, whole: tuple[GPT2, Progress], *, at: int) -> None:
    """The training goes on at a step, to the same bits."""
    torch.manual_seed(99)  # another process has another generator
    net = fresh()
    progress = go(net, folder)
    assert progress.stretches[-1]["from_step"] == at
    expected, its = whole
    for name, p in trained(expected).items():
        assert torch.equal(trained(net)[name], p), name
    assert torch.equal(progress.losses, its.losses)
    assert progress.epochs == its.epochs


def flip(path: Path, place: int, bits: int = 0xFF) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= bits
    path.write_bytes(content)


def warnings_of(log: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in log.records if record.levelname == "WARNING"]


# what is written --------------------------------------------------------------------------------


def test_a_checkpoint_whose_content_is_whole_is_continued_from(stopped, whole, log):
    goes_on(stopped, whole, at=8)
    assert warnings_of(log) == []
    assert "continuing at step 8 of 12" in log.messages


def test_a_checkpoint_names_the_hash_of_its_content(stopped: Path):
    for name in names(stopped):
        with safe_open(stopped / name, framework="pt") as file:
            metadata = file.metadata()
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (no mapping)
        assert set(metadata) == {"described", "sha256"}
        described, digest = metadata["described"], metadata["sha256"]
        assert module._digest(tensors, described) == digest
        for key in tensors:  # of each tensor, and its name, dtype and shape
            t = tensors[key]
            view = t.flatten().view(torch.uint8).clone()
            view[-1] ^= 1
            others: list[dict[str, torch.Tensor]] = [
                {**tensors, key: view.view(t.dtype).view(t.shape)},
                {**tensors, key: t[None]},
                {**{k: v for k, v in tensors.items() if k != key}, f"{key}x": t},
                {k: v for k, v in tensors.items() if k != key},
            ]
            if t.dtype == torch.float32:
                others.append({**tensors, key: t.view(torch.int32)})
            for other in others:
                assert module._digest(other, described) != digest
        assert module._digest(tensors, described + " ") != digest


def test_the_checkpoint_before_is_that_of_the_update_before(stopped: Path):
    assert [step_of(stopped / name) for name in NAMES] == [8, 7]
    assert torch.equal(load_file(stopped / NAMES[0])["losses"][:7], load_file(stopped / NAMES[1])["losses"][:7])


def contents(path: Path) -> dict[str, torch.Tensor]:
    """The tensors, copied: those that are read are the file itself, which tests damage."""
    return {name: t.clone() for name, t in module._read(path)[0].items()}


def step_of(path: Path) -> int:
    with safe_open(path, framework="pt") as file:
        return int(json.loads(file.metadata()["described"])["step"])


# damage -----------------------------------------------------------------------------------------


def places(path: Path) -> list[int]:
    """Of bytes: the header's length, its text, its hash, each tensor's first byte, and some at random."""
    content = path.read_bytes()
    header = int.from_bytes(content[:8], "little")
    tensors = json.loads(content[8 : 8 + header])
    firsts = [8 + header + t["data_offsets"][0] for name, t in tensors.items() if name != "__metadata__"]
    r = random.Random(0)
    hashes = [content.index(b'"sha256":"') + 12, content.index(b"described")]
    return [0, 6, 8, 20, *hashes, *firsts, len(content) - 1, *(r.randrange(len(content)) for _ in range(20))]


def test_a_flipped_byte_falls_back_to_the_checkpoint_before(kept: Path, tmp_path: Path, whole, log):
    for i, place in enumerate(places(kept / NAMES[0])):
        folder = Path(shutil.copytree(kept, tmp_path / str(i)))
        flip(folder / NAMES[0], place)
        log.clear()
        goes_on(folder, whole, at=7)
        (warning,) = warnings_of(log)
        assert warning.startswith(f"checkpoint {folder / NAMES[0]} can't be used (") and "\n" not in warning
        assert warning.endswith("); falling back to the checkpoint before it")


@pytest.mark.parametrize("keep", [0, 1, 7, 8, 100, 0.5, -1])
def test_a_cut_file_falls_back_to_the_checkpoint_before(stopped: Path, keep: float, whole, log):
    path = stopped / NAMES[0]
    size = path.stat().st_size
    length = size // 2 if keep == 0.5 else int(keep) % size
    path.write_bytes(path.read_bytes()[:length])
    goes_on(stopped, whole, at=7)
    assert len(warnings_of(log)) == 1


def test_no_byte_of_a_header_ends_in_another_error(stopped: Path):
    """Any byte may become any other: the file is read as it was, or it can't be used."""
    path = stopped / NAMES[0]
    content = path.read_bytes()
    expected, described, r = contents(path), module._read(path)[1], random.Random(0)
    unusable = 0
    for place in range(8 + int.from_bytes(content[:8], "little")):
        changed = bytearray(content)
        changed[place] = r.randrange(256)
        path.write_bytes(changed)
        try:
            tensors, text = module._read(path)
        except Unusable:
            unusable += 1
        else:
            assert text == described and all(torch.equal(tensors[name], t) for name, t in expected.items())
    assert unusable > 0.9 * place


@pytest.mark.parametrize("other", ["tensors without a description", "text"])
def test_what_is_no_checkpoint_falls_back_to_the_one_before(stopped: Path, other: str, whole, log):
    path = stopped / NAMES[0]
    path.unlink()
    if other == "text":
        path.write_text("a letter to the user\n" * 100)
    else:
        save_file({"x": torch.ones(1)}, path)
    goes_on(stopped, whole, at=7)
    assert len(warnings_of(log)) == 1


def test_where_the_last_is_missing_the_one_before_is_continued_from(stopped: Path, whole, log):
    (stopped / NAMES[0]).unlink()
    goes_on(stopped, whole, at=7)
    assert warnings_of(log) == []


def test_where_the_one_before_is_damaged_the_last_is_continued_from(stopped: Path, whole, log):
    flip(stopped / NAMES[1], 3000)
    goes_on(stopped, whole, at=8)
    assert warnings_of(log) == []


def test_where_both_are_damaged_the_training_starts_over(stopped: Path, whole, log):
    flip(stopped / NAMES[0], 3000)
    (stopped / NAMES[1]).write_bytes(b"")
    goes_on(stopped, whole, at=0)
    *falls, last = warnings_of(log)
    assert [str(stopped / name) in fall for name, fall in zip(NAMES, falls, strict=True)] == [True, True]
    assert last == "no checkpoint can be used: training starts over"


def test_after_a_fallback_there_is_one_to_fall_back_on_again(stopped: Path, whole, log):
    """The damaged file is not kept as the one before: a second fault costs no more than the first."""
    flip(stopped / NAMES[0], 3000)
    with pytest.raises(Stopped, match="step 8 of 12"):
        go(fresh(), stopped, stop_signal=stop_at(1))
    assert step_of(stopped / NAMES[0]) == 8
    module._read(stopped / NAMES[0])
    flip(stopped / NAMES[0], 3000)
    goes_on(stopped, whole, at=7)


def test_a_kill_after_a_fallback_loses_nothing(stopped: Path, whole, monkeypatch: pytest.MonkeyPatch, log):
    """Between the two renames of the first save after it."""
    flip(stopped / NAMES[0], 3000)
    with pytest.raises(KeyboardInterrupt), monkeypatch.context() as patch:
        killed_before_the_last_rename(patch)
        go(fresh(), stopped)
    goes_on(stopped, whole, at=7)


# kills within a save ----------------------------------------------------------------------------


def killed_before_the_last_rename(patch: pytest.MonkeyPatch) -> None:
    """`c-new` does not become `c`."""
    replaced = Path.replace

    def replace_(self: Path, target: Path) -> Path:
        if self.name == "c-new.safetensors":
            raise KeyboardInterrupt
        return replaced(self, target)

    patch.setattr(Path, "replace", replace_)


def test_a_kill_between_the_two_renames_loses_one_update(stopped: Path, whole, monkeypatch: pytest.MonkeyPatch, log):
    with pytest.raises(KeyboardInterrupt), monkeypatch.context() as patch:
        killed_before_the_last_rename(patch)
        go(fresh(), stopped)
    assert not (stopped / NAMES[0]).exists() and step_of(stopped / NAMES[1]) == 8
    goes_on(stopped, whole, at=8)
    assert warnings_of(log) == []
    assert "c-new.safetensors" not in names(stopped)


def test_a_kill_at_the_first_save_starts_over(tmp_path: Path, whole, monkeypatch: pytest.MonkeyPatch, log):
    with pytest.raises(KeyboardInterrupt), monkeypatch.context() as patch:
        killed_before_the_last_rename(patch)
        go(fresh(), tmp_path)
    assert names(tmp_path) == {"c-new.safetensors"}
    goes_on(tmp_path, whole, at=0)


@pytest.mark.parametrize("write", range(1, 5))
def test_a_kill_while_a_file_is_written_loses_one_update(
    stopped: Path, whole, write: int, monkeypatch: pytest.MonkeyPatch, log
):
    """Checkpoints and epochs alike: after some bytes, before they are in their place."""
    writes = iter(range(1, 100))

    def fsync(number: int) -> None:
        if next(writes) == write:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("lodarepro.files.os.fsync", fsync)
        go(fresh(), stopped)
    goes_on(stopped, whole, at=step_of(stopped / NAMES[0]))
    assert warnings_of(log) == []


def test_a_full_disk_leaves_the_last_checkpoint(stopped: Path, whole, monkeypatch: pytest.MonkeyPatch):
    def fsync(number: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("lodarepro.files.os.fsync", fsync)
        with pytest.raises(OSError, match="No space left"):
            go(fresh(), stopped)
    assert not [name for name in names(stopped) if "new" in name]
    goes_on(stopped, whole, at=8)


# epochs that are kept ---------------------------------------------------------------------------


def epochs_in(folder: Path) -> list[int]:
    return sorted(int(name.split("-")[2].split(".")[0]) for name in names(folder) if "-epoch-" in name)


def test_the_best_epoch_and_those_to_keep_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    losses_falling_to(monkeypatch, [3.0, 1.0, 2.0, 1.0])
    states: list[dict[str, torch.Tensor]] = []
    net = fresh()
    keep_epoch = Checkpoints.keep_epoch

    def noted(self: Checkpoints, model: GPT2, progress: Progress) -> None:
        states.append({name: p.detach().clone() for name, p in trained(model).items()})
        keep_epoch(self, model, progress)

    monkeypatch.setattr(Checkpoints, "keep_epoch", noted)
    keep = ("best", "last", "epoch-3")
    progress = go(net, tmp_path, replace(SETTINGS, keep=keep))
    assert epochs_in(tmp_path) == [2, 3]  # of equals the first is best
    assert [progress.epoch_of(name)["epoch"] for name in (*keep, "epoch-1")] == [2, 4, 3, 1]
    for number in (2, 3):
        other = fresh()
        Checkpoints(tmp_path / "c.safetensors", keep).restore_epoch(other, number)
        assert all(torch.equal(p, states[number - 1][name]) for name, p in trained(other).items())
    assert not all(torch.equal(states[1][name], states[2][name]) for name in states[0])


@pytest.mark.parametrize(
    ("values", "kept_then"),
    [
        ([4.0, 3.0, 2.0, 1.0], [[1], [1, 2], [2, 3], [3, 4]]),  # the one before still counts on the best before
        ([1.0, 2.0, 3.0, 4.0], [[1], [1], [1], [1]]),
        ([2.0, 3.0, 1.0, 4.0], [[1], [1], [1, 3], [3]]),
    ],
)
def test_epochs_that_nothing_counts_on_are_deleted(
    values: list[float], kept_then: list[list[int]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """With a checkpoint at the end of each epoch alone."""
    losses_falling_to(monkeypatch, values)
    seen: list[list[int]] = []
    save = Checkpoints.save

    def noted(self: Checkpoints, *arguments: Any) -> None:
        save(self, *arguments)
        seen.append(epochs_in(tmp_path))

    monkeypatch.setattr(Checkpoints, "save", noted)
    go(fresh(), tmp_path, replace(SETTINGS, keep=("best",)), runtime=Runtime())
    assert seen == kept_then


def test_without_a_best_to_keep_no_epoch_is_kept(tmp_path: Path):
    go(fresh(), tmp_path, replace(SETTINGS, keep=("last",)))
    assert names(tmp_path) == set(NAMES)


@pytest.mark.parametrize("damage", ["missing", "flipped", "empty"])
def test_a_kept_epoch_that_is_damaged_falls_back(
    damage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, log: pytest.LogCaptureFixture
):
    """To the checkpoint before, if that counts on another; it comes anew on the way."""
    values = [3.0, 2.0, 1.0, 4.0]
    losses_falling_to(monkeypatch, values)
    expected = fresh()
    folder = tmp_path / "whole"
    folder.mkdir()
    go(expected, folder, runtime=Runtime())
    losses_falling_to(monkeypatch, values)
    with pytest.raises(Stopped):
        go(fresh(), tmp_path, runtime=Runtime(), stop_signal=stop_at(9))
    assert epochs_in(tmp_path) == [2, 3]
    path = tmp_path / "c-epoch-3.safetensors"
    held = contents(path)
    if damage == "missing":
        path.unlink()
    elif damage == "flipped":
        flip(path, -5)
    else:
        path.write_bytes(b"")
    losses_falling_to(monkeypatch, values[2:])
    net = fresh()
    progress = go(net, tmp_path, runtime=Runtime())
    (warning,) = warnings_of(log)
    assert warning.startswith(f"checkpoint {path} can't be used (")
    assert progress.stretches[-1]["from_step"] == 6
    again = contents(path)
    assert again.keys() == held.keys() and all(torch.equal(again[name], t) for name, t in held.items())
    assert all(torch.equal(trained(net)[name], p) for name, p in trained(expected).items())


def test_a_kept_epoch_that_both_count_on_starts_over(stopped: Path, whole, log):
    for path in stopped.glob("*-epoch-*"):
        path.write_bytes(b"")
    goes_on(stopped, whole, at=0)
    assert warnings_of(log)[-1] == "no checkpoint can be used: training starts over"


def test_a_damaged_epoch_at_the_end_is_one_line_with_the_way_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    losses_falling_to(monkeypatch, [1.0, 2.0, 3.0, 4.0])
    net = fresh()
    go(net, tmp_path)
    flip(tmp_path / "c-epoch-1.safetensors", -5)
    with pytest.raises(BadInput) as e:
        Checkpoints(tmp_path / "c.safetensors", SETTINGS.keep).restore_epoch(net, 1)
    (fault,) = e.value.faults
    assert fault.startswith(f"checkpoint {tmp_path / 'c-epoch-1.safetensors'} can't be used (") and "\n" not in fault
    assert fault.endswith(f"); delete {tmp_path} to train again")


def test_an_epoch_to_keep_that_does_not_come_is_told_before_anything_is_done(tmp_path: Path):
    settings = replace(SETTINGS, max_steps=7, keep=("epoch-4",))  # 3 epochs, of 3, 3 and 1 steps
    with pytest.raises(BadInput, match="there is no epoch-4 in a training of 7 steps, 3 epochs"):
        go(fresh(), tmp_path, settings)
    assert names(tmp_path) == set()


def test_all_files_of_a_training_are_removed(tmp_path: Path):
    go(fresh(), tmp_path, replace(SETTINGS, keep=("best", "epoch-1", "epoch-2")))
    (tmp_path / "other.safetensors").write_bytes(b"x")
    assert len(names(tmp_path)) > 4
    Checkpoints(tmp_path / "c.safetensors", ()).remove()
    assert names(tmp_path) == {"other.safetensors"}


# whose checkpoint it is -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "value", "fault"),
    [
        (
            "device",
            "cuda",
            "was written on cuda, whose random numbers are not those of cpu; continue with runtime.device=cuda, or ",
        ),
        (
            "processes",
            2,
            "was written by 2 processes, each with random numbers of its own, not by 1; continue with "
            "torchrun --nproc-per-node 2, or ",
        ),
    ],
)
def test_a_checkpoint_whose_random_numbers_are_others(stopped: Path, key: str, value: Any, fault: str):
    path = stopped / NAMES[0]
    tensors, described = module._read(path)
    module._write(path, tensors, {**described, key: value})
    with pytest.raises(BadInput) as e:
        go(fresh(), stopped)
    assert e.value.faults == (f"checkpoint {path} {fault}delete {path.parent} to train from the start",)


def test_each_process_has_the_generator_that_it_had(tmp_path: Path):
    net = fresh()
    optimizer = loop.make_optimizer(loop.one_group(net), SETTINGS)
    checkpoints = Checkpoints(tmp_path / "c.safetensors", ())
    states = []
    for seed in (5, 6, 7):
        torch.manual_seed(seed)
        states.append(torch.get_rng_state())
    checkpoints.save(net, optimizer, Progress(step=0, losses=torch.zeros(3)), states)
    for rank in (2, 0, 1):
        checkpoints.load(net, optimizer, rank=rank, processes=3)
        assert torch.equal(torch.get_rng_state(), states[rank])
