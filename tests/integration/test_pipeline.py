"""The whole pipeline through the command line, on a tiny random model and the embedded data."""

import hashlib
import json
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from lodarepro import records
from lodarepro.cli import main
from lodarepro.train import loop


@pytest.fixture(scope="module")
def finished(settings: list[str], caches: None, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder of one finished run, which no test may change, and what the command printed."""
    root = tmp_path_factory.mktemp("finished") / "results"
    done = subprocess.run(
        [sys.executable, "-m", "lodarepro.cli", "run", *settings, f"results.root={root}"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    (folder,) = (root / "runs").iterdir()
    return folder, done.stdout


@pytest.fixture
def copied(finished: tuple[Path, str], tmp_path: Path) -> Path:
    """A finished run in this test's results, to change."""
    folder, _ = finished
    return Path(shutil.copytree(folder, tmp_path / "results" / "runs" / folder.name))


def run_folders(root: Path) -> list[Path]:
    return sorted((root / "results" / "runs").iterdir())


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_run_leaves_a_record(finished):
    folder, table = finished
    record = records.read(folder)
    assert record is not None
    assert record.id == folder.name
    assert folder.name.startswith("mini_gpt2-nano_lora-r2_lora_s1_")
    assert record.parameters["trainable"] == 2 * 2 * (2 * 32 * 2)  # L x {q, v} x 2 d r
    assert record.training["steps"] == 4 * 160 // 8
    assert [e["epoch"] for e in record.training["epochs"]] == [1, 2, 3, 4]
    checkpoints = record.training["checkpoints"]
    assert list(checkpoints) == [e.checkpoint for e in record.evaluations] == ["last", "best"]
    assert all(e.val_loss == checkpoints[e.checkpoint]["val_loss"] for e in record.evaluations)
    assert checkpoints["best"]["val_loss"] == min(e["val_loss"] for e in record.training["epochs"])
    evaluation = record.evaluations[0]
    assert (evaluation.checkpoint, evaluation.split, evaluation.subset) == ("last", "test", "all")
    assert list(evaluation.scores) == ["bleu", "nist", "meteor", "rouge_l", "cider"]
    assert all(score.signature for score in evaluation.scores.values())
    assert f"{record.training['epochs'][-1]['val_loss']:.3f}" in table
    for part in ("code", "packages", "machine", "data", "base_model", "device"):
        assert record.provenance[part]
    data = record.provenance["data"]
    assert {split: data[split]["origin"] for split in data} == dict.fromkeys(("train", "valid", "test"), "embedded")
    files = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert checkpoints["best"] == checkpoints["last"]  # so that there is one file of it
    evaluated = {"evaluations/last-test.jsonl", "evaluations/last-test.values.json"}
    assert files == {"record.json", "adapter.safetensors", "steps.csv", ".lock", *evaluated}
    steps = (folder / "steps.csv").read_text().splitlines()
    assert steps[0] == "step,lr,loss"
    assert len(steps) == 1 + record.training["steps"]
    assert len(records.read_decoded(folder / evaluation.hypotheses)) == evaluation.segments == 6


def test_the_scores_follow_from_the_folder_alone(copied, finished, capsys):
    """A record that was tampered with is brought back to what its hypotheses say."""
    before = records.read(copied)
    assert before is not None
    tampered = json.loads((copied / "record.json").read_text())
    tampered["evaluations"][0]["scores"]["bleu"]["value"] = 0.999
    (copied / "record.json").write_text(json.dumps(tampered))
    assert main(["score", str(copied)]) == 0
    assert capsys.readouterr().out.strip() == finished[1].partition("\n\nrecords")[0].strip()
    assert records.read(copied) == before


def test_a_finished_run_is_not_repeated(cell, copied, finished, capsys):
    before = (copied / "record.json").stat().st_mtime_ns
    assert main(["run", *cell, "runtime.decode_batch=3"]) == 0  # no part of the identity
    table = capsys.readouterr().out.partition("\n\nrecords")[0]
    assert table == finished[1].partition("\n\nrecords")[0]
    assert (copied / "record.json").stat().st_mtime_ns == before


def test_a_killed_run_continues_to_the_same_bits(cell, tmp_path, finished, command):
    whole, _ = finished
    killed = command("run", *cell, "runtime.checkpoint_minutes=0.0001")
    folder = tmp_path / "results" / "runs" / whole.name
    wait_for(folder / "checkpoint.safetensors", killed)
    killed.kill()
    killed.wait()
    assert not (folder / "record.json").exists()

    assert main(["run", *cell]) == 0
    assert digest(folder / "adapter.safetensors") == digest(whole / "adapter.safetensors")
    assert (folder / "steps.csv").read_bytes() == (whole / "steps.csv").read_bytes()
    hypotheses = "evaluations/last-test.jsonl"
    assert (folder / hypotheses).read_bytes() == (whole / hypotheses).read_bytes()
    one, other = records.read(folder), records.read(whole)
    assert one is not None
    assert other is not None
    assert one.evaluations == other.evaluations


def wait_for(path: Path, process: subprocess.Popen[str], seconds: float = 120) -> None:
    began = time.monotonic()
    while not path.exists():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() - began < seconds
        time.sleep(0.01)


def test_a_stopped_run_says_so_and_nobody_else_works_on_it(cell, tmp_path, capsys, command):
    long = [*cell, "train.epochs=400"]
    process = command("run", *long, "runtime.checkpoint_minutes=0.0001")
    while not list((tmp_path / "results" / "runs").glob("*/checkpoint.safetensors")):
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.01)

    assert main(["run", *long]) == 1
    assert "another process is at work on" in capsys.readouterr().err

    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 128 + signal.SIGTERM
    assert "the same command continues" in said.splitlines()[-1]
    assert "Traceback" not in said
    (folder,) = run_folders(tmp_path)
    assert (folder / "checkpoint.safetensors").exists()
    assert not (folder / "record.json").exists()


def test_a_sweep_does_every_cell_and_reports_those_that_fail(cell, copied, tmp_path, capsys):
    status = main(["run", "-m", *cell, "train.lr=1e-2,1e30"])
    shown = capsys.readouterr()
    assert status == 1
    assert "1 of 2 cells finished" in shown.out
    (fault,) = [line for line in shown.err.splitlines() if line.startswith("lodarepro:")]
    assert "train.lr=1e+30" in fault
    assert "training diverged" in fault
    finished = [folder for folder in run_folders(tmp_path) if (folder / "record.json").exists()]
    assert finished == [copied]


def test_what_is_missing_is_said_in_one_line_with_the_ways_out(tmp_path, capsys):
    began = time.monotonic()
    status = main(["run", "dataset=e2e", "data.base_url=http://127.0.0.1:9", f"results.root={tmp_path / 'results'}"])
    assert status == 2
    assert time.monotonic() - began < 30
    (line,) = capsys.readouterr().err.splitlines()
    for part in (
        "the data of e2e (train.txt, valid.txt, test.txt",
        "the weights of openai-community/gpt2-medium",
        "data.root=FOLDER",
        "model.path=FOLDER",
        "model=gpt2-nano dataset=mini",
        "another machine",
    ):
        assert part in line
    assert not (tmp_path / "results").exists()


@pytest.mark.parametrize(
    ("overrides", "parts"),
    [
        (["model.path=nowhere"], ["nowhere lacks config.json, model.safetensors, tokenizer.json", "no such folder"]),
        (["model.n_layer=7"], ["says n_layer = 2, expected 7"]),
        (["data.root=nowhere", "dataset=e2e"], ["no file 'train.txt'", "dataset.files.train=FILE"]),
        (["decode.end_tokens=[wxyz]"], ["decode.end_tokens", "tokens in this model's tokenizer, not one"]),
        (["runtime.device=cuda"], ["torch sees no CUDA device here"]),
    ],
)
def test_unfit_input_is_one_line_and_exit_code_2(cell, overrides, parts, capsys):
    assert main(["run", *cell, *overrides]) == 2
    shown = capsys.readouterr().err
    faults = [line for line in shown.splitlines() if line.startswith("lodarepro:")]
    assert len(faults) == 1
    for part in parts:
        assert part in faults[0]
    assert "Traceback" not in shown


def test_all_faults_of_a_command_are_told_at_once(capsys):
    assert main(["run", "method=lroa", "dataset=e3e", "train.ephocs=3", "+seed=2"]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 4
    assert all(line.startswith("lodarepro: ") for line in lines)
    shown = "\n".join(lines)
    for part in (
        "did you mean 'lora'",
        "did you mean 'e2e'",
        "did you mean 'epochs'",
        "'+seed=2': keys can't",
    ):
        assert part in shown


def test_an_unknown_command_names_the_nearest(capsys):
    assert main(["rnu"]) == 2
    assert "'rnu': no such command; did you mean 'run'?" in capsys.readouterr().err


def test_results_that_cannot_be_written(cell, tmp_path, capsys):
    (tmp_path / "results").write_text("a file is in the way")
    assert main(["run", *cell]) == 2
    (line,) = [text for text in capsys.readouterr().err.splitlines() if text.startswith("lodarepro:")]
    assert "can't be written (Not a directory)" in line
    assert "results.root=FOLDER" in line


def test_a_full_disk_leaves_nothing_half_written(cell, tmp_path, command):
    """A limit on file size is the nearest thing to a full disk that needs no privilege."""

    def limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (8_000, 8_000))

    full = command("run", *cell, preexec_fn=limit)
    _, said = full.communicate(timeout=200)
    assert full.returncode == 2, said
    assert "can't be written (File too large); make room" in said.splitlines()[-1]
    (folder,) = run_folders(tmp_path)
    # What was trained in an epoch fits, a checkpoint does not: whole files alone are there.
    assert {p.name for p in folder.iterdir()} <= {".lock", "checkpoint-epoch-1.safetensors"}


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 400 kB of its own."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", str(place)], capture_output=True, text=True
    )
    if mounted.returncode:
        pytest.skip(f"no file system can be mounted here ({mounted.stderr.strip()})")
    yield place
    subprocess.run(["umount", "--lazy", str(place)], check=True)


@pytest.mark.needs_mount
def test_a_full_disk_stops_a_run_with_its_last_checkpoint_intact(cell, small_disk, tmp_path, command):
    longer = [*cell, "train.epochs=20"]
    here = [*longer, f"results.root={small_disk}"]
    running = command("run", *here, "runtime.checkpoint_minutes=0.0001")
    while not (found := list((small_disk / "runs").glob("*/checkpoint-before.safetensors"))):
        assert running.poll() is None, running.communicate()[1]
        time.sleep(0.005)
    folder = found[0].parent
    with suppress(OSError), (small_disk / "filler").open("wb") as filler:
        while True:
            filler.write(b"0" * 1024)
            filler.flush()
    _, said = running.communicate(timeout=100)
    assert running.returncode == 2, said
    assert "can't be written (No space left on device); make room" in said.splitlines()[-1]
    assert "Traceback" not in said
    assert not list(folder.glob("*.partial")) and not (folder / "record.json").exists()

    (small_disk / "filler").unlink()
    assert main(["run", *here]) == 0
    record = records.read(folder)
    assert record is not None
    assert len(record.training["stretches"]) == 2 and record.training["stretches"][1]["from_step"] > 0
    assert main(["run", *longer]) == 0
    (whole,) = run_folders(tmp_path)
    for name in ("adapter.safetensors", "steps.csv", "evaluations/last-test.jsonl"):
        assert digest(folder / name) == digest(whole / name), name


def test_every_checkpoint_that_is_kept_is_evaluated_and_can_be_decoded_anew(cell, tmp_path, monkeypatch, capsys):
    """A best epoch before the last has an adapter and texts of its own."""
    losses = iter([2.0, 1.0, 1.5, 3.0])
    monkeypatch.setattr(loop, "validation_loss", lambda *_, **__: next(losses))
    assert main(["run", *cell, "train.keep=[epoch-1,best,last]", "train.lr=3e-2", "decode.max_new_tokens=6"]) == 0
    (folder,) = run_folders(tmp_path)
    record = records.read(folder)
    assert record is not None
    kept = record.training["checkpoints"]
    assert {name: (e["epoch"], e["val_loss"]) for name, e in kept.items()} == {
        "last": (4, 3.0),
        "best": (2, 1.0),
        "epoch-1": (1, 2.0),
    }
    assert [(e.checkpoint, e.val_loss) for e in record.evaluations] == [("last", 3.0), ("best", 1.0), ("epoch-1", 2.0)]
    adapters = {name: digest(folder / e["adapter"]) for name, e in kept.items()}
    assert len(set(adapters.values())) == 3
    assert not list(folder.glob("checkpoint*"))
    shown = capsys.readouterr().out
    assert all(f"| {name} " in shown for name in ("last", "best", "epoch-1"))
    assert main(["decode", str(folder), "decode.beam=1"]) == 0
    after = records.read(folder)
    assert after is not None
    assert [e.checkpoint for e in after.evaluations] == ["last", "best", "epoch-1"] * 2
    assert len({e.hypotheses for e in after.evaluations}) == 6

    for name in ("last", "best"):
        place = tmp_path / f"exported-{name}"
        assert main(["export", str(folder), "--to", "peft", str(place), "--checkpoint", name]) == 0
    exported = {digest(tmp_path / f"exported-{name}" / "adapter_model.safetensors") for name in ("last", "best")}
    assert len(exported) == 2
    capsys.readouterr()
    assert main(["export", str(folder), "--to", "peft", str(tmp_path / "x"), "--checkpoint", "epoch-3"]) == 2
    assert "has no checkpoint 'epoch-3'; did you mean 'epoch-1'?" in capsys.readouterr().err


def test_decoding_anew_appends_an_evaluation(copied, capsys):
    before = records.read(copied)
    assert before is not None
    assert main(["decode", str(copied), "decode.beam=2"]) == 0
    after = records.read(copied)
    assert after is not None
    assert after.evaluations[0] == before.evaluations[0]
    assert [(e.checkpoint, e.decode["beam"]) for e in after.evaluations] == [
        ("last", 10),
        ("best", 10),
        ("last", 2),
        ("best", 2),
    ]
    assert main(["decode", str(copied), "decode.beam=2"]) == 0  # there already
    assert records.read(copied) == after
    capsys.readouterr()
    assert main(["decode", str(copied), "train.lr=1"]) == 2
    assert "a finished run's training can't change" in capsys.readouterr().err


def test_decoding_again_with_the_adapter_gives_the_same_texts(copied):
    """What was saved is what was trained: the search over the loaded adapter finds the same texts."""
    before = records.read_decoded(copied / "evaluations" / "last-test.jsonl")
    record = json.loads((copied / "record.json").read_text())
    record["evaluations"][0]["decode"]["beam"] = 9  # so that the run's own settings count as new
    (copied / "record.json").write_text(json.dumps(record))
    assert main(["decode", str(copied)]) == 0
    assert records.read_decoded(copied / "evaluations" / "last-test-2.jsonl") == before


def test_an_adapter_is_refused_on_another_base(copied, tmp_path, tiny_model, capsys):
    other = tmp_path / "other"
    other.mkdir()
    for file in tiny_model.iterdir():
        content = bytearray(file.read_bytes())
        if file.name == "model.safetensors":
            content[-1] ^= 1  # one bit of one weight
        (other / file.name).write_bytes(content)
    assert main(["decode", str(copied), "decode.beam=3", f"model.path={other}"]) == 2
    assert "was trained on gpt2-nano (weights sha256" in capsys.readouterr().err


def test_another_tokenizer_is_another_base(cell, copied, tmp_path, tiny_model, capsys):
    other = Path(shutil.copytree(tiny_model, tmp_path / "other"))
    tokenizer = json.loads((other / "tokenizer.json").read_text())
    one, two = list(tokenizer["model"]["vocab"])[100:102]
    vocabulary = tokenizer["model"]["vocab"]
    vocabulary[one], vocabulary[two] = vocabulary[two], vocabulary[one]
    (other / "tokenizer.json").write_text(json.dumps(tokenizer))
    assert main(["decode", str(copied), "decode.beam=3", f"model.path={other}"]) == 2
    assert "its tokenizer is not the one that" in capsys.readouterr().err

    # Nor is the finished run served for it: this one starts, and is stopped by its first fault.
    assert main(["run", *cell, f"model.path={other}", "train.lr=1e-2", "decode.end_tokens=[wxyz]"]) == 2
    assert len(run_folders(tmp_path)) == 2


def test_lost_hypotheses_are_decoded_again(copied, capsys):
    before = records.read(copied)
    assert before is not None
    (copied / before.evaluations[0].hypotheses).unlink()
    assert main(["score", str(copied)]) == 2
    assert "decode the run again" in capsys.readouterr().err
    assert main(["decode", str(copied)]) == 0
    assert records.read(copied) == before


def test_options_may_stand_anywhere_and_a_sweeps_folder_is_hydras(cell, copied, tmp_path, capsys):
    stale = tmp_path / "sweep" / "cell7"
    stale.mkdir(parents=True)
    (stale / "status.json").write_text('{"number": 7, "exit_code": 1, "faults": ["old"], "overrides": []}')
    folder = f"hydra.sweep.dir={tmp_path / 'sweep'}"
    assert main(["run", *cell, "train.lr=1e-2", folder, "hydra.sweep.subdir=cell${hydra.job.num}", "-m"]) == 0
    assert "1 of 1 cells finished" in capsys.readouterr().out
    assert (tmp_path / "sweep" / "cell0" / "status.json").exists()


@pytest.mark.parametrize("command", ["decode", "score", "count", "data"])
def test_every_command_has_help(command, capsys):
    with pytest.raises(SystemExit) as e:
        main([command, "--help"])
    assert e.value.code == 0
    assert f"lodarepro {command}" in capsys.readouterr().out


def test_a_damaged_token_cache_is_made_again(cell, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("LODAREPRO_CACHE", str(tmp_path / "cache"))
    stop = ["dataset.limit.train=16", "decode.end_tokens=[wxyz]"]  # a fault after training, to be quick
    assert main(["run", *cell, *stop, "train.epochs=1"]) == 2
    (entry, *_) = sorted((tmp_path / "cache" / "tokenised").iterdir())
    for file in entry.glob("*.arrow"):
        file.write_bytes(b"damaged")
    assert main(["run", *cell, *stop, "train.epochs=2"]) == 2
    shown = capsys.readouterr().err
    assert "is damaged" in shown
    assert "can't be" not in shown.replace("can't be added", "")


def test_what_hydras_users_expect(cell, capsys):
    assert main(["run", *cell, "--cfg", "job"]) == 0
    shown = capsys.readouterr().out
    assert "max_new_tokens: 12" in shown
    assert "rank: 2" in shown
    assert main(["run", "--help"]) == 0
    shown = capsys.readouterr().out
    assert "method=adapter-drop|adapter-h|" in shown
    assert "schema" not in shown


@pytest.mark.needs_mount
@pytest.mark.parametrize(
    ("overrides", "subsets"),
    [(["dataset=e2e", "dataset.files.train=valid.txt"], ["all"]), (["dataset=webnlg"], ["all", "seen", "unseen"])],
)
def test_real_data(cell, tmp_path, shared, overrides, subsets):
    (tmp_path / "cwd").mkdir()
    limits = ["dataset.limit.test=40"] if "dataset=e2e" in overrides else ["dataset.limit.test=1862"]
    few = ["decode.max_new_tokens=4", "decode.beam=2", "runtime.decode_batch=64"]
    assert main(["run", *cell, *overrides, *limits, *few, f"data.root={shared / 'data'}"]) == 0
    (folder,) = run_folders(tmp_path)
    record = records.read(folder)
    assert record is not None
    assert [e.subset for e in record.evaluations if e.checkpoint == "best"] == subsets
    data = record.provenance["data"]
    assert data["valid"]["pinned"]
    assert data["train"]["pinned"] == ("dataset=e2e" in overrides)  # WebNLG's train split is rebuilt from XML
    if len(subsets) > 1:
        assert [e.segments for e in record.evaluations] == [1862, 971, 891] * 2  # last and best


def test_an_identity_names_no_places(finished, tiny_model):
    record = records.read(finished[0])
    assert record is not None
    identity = json.dumps(record.identity)
    assert str(tiny_model) not in identity
    assert str(finished[0].parent) not in identity
