"""`lodarepro analyze`: from finished runs, or a model, to tables, files and figures; and what it refuses."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest

from lodarepro import compose, findings
from lodarepro.cli import main
from lodarepro.findings import Findings

QUICK = [
    *("model=gpt2-nano", "dataset=mini", "runtime.device=cpu"),
    *("train.epochs=1", "train.warmup_steps=2", "decode.max_new_tokens=12", "decode.beam=2"),
    *("dataset.limit.train=64", "dataset.limit.valid=4", "dataset.limit.test=4"),
]
CELLS = {
    "lora2": ["method=lora", "method.rank=2"],
    "lora4": ["method=lora", "method.rank=4"],
    "loda": ["method=loda", "method.rank=4"],
    "bitfit": ["method=bitfit"],
}
LATENCY = [
    *("--trials", "2", "--warmup", "1", "--batch-sizes", "1", "--lengths", "16", "--methods", "lora,adapter-l"),
    *("--beams", "1,2", "runtime.decode_batch=2"),
]


@pytest.fixture(scope="module")
def root(caches: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A results folder with finished runs."""
    folder = tmp_path_factory.mktemp("analyses") / "results"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["lodarepro"])
        for overrides in CELLS.values():
            assert main(["run", *QUICK, *overrides, f"results.root={folder}"]) == 0
    return folder


@pytest.fixture(scope="module")
def runs(root: Path) -> dict[str, str]:
    """Name to folder of each."""
    folders = [str(path) for path in (root / "runs").iterdir()]
    parts = {"lora2": "_lora-r2_", "lora4": "_lora-r4_", "loda": "_loda-r4_", "bitfit": "_bitfit_"}
    return {name: next(folder for folder in folders if part in folder) for name, part in parts.items()}


def whole(folder: Path) -> Findings:
    """What the folder of an analysis holds; all files that it should have are there, and no others."""
    found = findings.read(folder / "analysis.json")
    assert found.name == folder.name
    names = {"analysis.json", "analysis.md", *(f"{grid.key}.csv" for grid in found.grids), *found.files}
    names |= {f"{plot.key}.{form}" for plot in found.plots for form in ("png", "svg")}
    assert {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()} == names
    for path in folder.rglob("*.png"):
        assert path.read_bytes().startswith(b"\x89PNG")
    for grid in found.grids:
        lines = (folder / f"{grid.key}.csv").read_text(encoding="utf-8").splitlines()
        assert lines[0] == ",".join(column.key for column in grid.columns)
    return found


def done(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(["analyze", *arguments]) == 0
    shown = capsys.readouterr()
    assert "Traceback" not in shown.err
    return shown.out


def check(capsys: pytest.CaptureFixture[str], root: Path, *arguments: str) -> Findings:
    """Do an analysis; what was printed is its Markdown and where its files are."""
    shown = done(capsys, *arguments)
    folder = Path(shown.splitlines()[-1].removeprefix("written to "))
    found = whole(folder)
    assert found.analysis == arguments[0]
    assert folder.parent == root / "analyses"
    assert shown == f"{(folder / 'analysis.md').read_text(encoding='utf-8')}\nwritten to {folder}\n"
    assert f"# {found.title}" in shown
    return found


# the analyses -----------------------------------------------------------------------------------


def test_latency(settings: list[str], tmp_path: Path, capsys):
    tiny = [text for text in settings if text.startswith("model")]  # and not its method
    found = check(capsys, tmp_path, "latency", *tiny, *LATENCY, "runtime.device=cpu", f"results.root={tmp_path}")
    assert [grid.key for grid in found.grids] == [
        *("forward", "forward-all", "projection", "projection-all", "decoding")
    ]
    assert [row[0] for row in found.grids[0].rows][:2] == ["bare", "lora (merged)"]
    assert found.settings["asked"]["methods"] == ["lora", "adapter-l"]


@pytest.mark.parametrize("kind", ["low-rank", "sparse"])
def test_energy_and_what_it_suggests(kind: str, tmp_path: Path, capsys):
    found = check(capsys, tmp_path, "energy", "model=gpt2-nano", "--budget", "40", f"results.root={tmp_path}")
    (suggested,) = (grid for grid in found.grids if grid.key == f"suggested-{kind}")
    values = tuple(row[1] for row in suggested.rows)
    assert len(values) == 4
    (override,) = (note.split("'")[1] for note in found.notes if f"on a {kind} base with '" in note)
    method = "r-loda" if kind == "low-rank" else "s-loda"
    (cell,) = compose.cells(["model=gpt2-nano", "dataset=mini", f"method={method}", override])
    assert (cell.run.method.base.rank if kind == "low-rank" else cell.run.method.base.keep) == values
    folder = tmp_path / "analyses" / found.name
    chosen = ["model=gpt2-nano", "dataset=mini", f"method={method}", f"sweep=suggested-{kind}"]
    (swept,) = compose.cells(chosen, multirun=True, extra_folder=folder)
    assert swept.run.method == cell.run.method


def test_subspace(root: Path, runs: dict[str, str], capsys):
    found = check(capsys, root, "subspace", runs["lora4"], runs["lora2"])
    assert found.title == "Directions of A shared by lora r=2 and lora r=4"
    assert [row[:2] for row in found.grids[0].rows] == [(t, str(block)) for t in "qv" for block in (1, 2, 3, 4)]
    assert [plot.key for plot in found.plots] == ["phi-q", "phi-v"]


def test_amplification(root: Path, runs: dict[str, str], capsys):
    found = check(capsys, root, "amplification", runs["lora4"], runs["loda"])
    assert [row[:3] for row in found.grids[0].rows] == [
        *(("lora r=4", "q", 4), ("lora r=4", "v", 4), ("loda r=4", "q", 4), ("loda r=4", "v", 4))
    ]


def test_errors(root: Path, runs: dict[str, str], capsys):
    found = check(capsys, root, "errors", runs["lora4"], runs["loda"], runs["bitfit"])
    assert [row[0] for row in found.grids[0].rows] == ["lora r=4", "loda r=4", "bitfit", "references"]
    assert {row[1] for row in found.grids[0].rows[:3]} == {4}
    shown = done(capsys, "errors", runs["lora4"], runs["loda"], runs["bitfit"], "--checkpoint", "last")
    assert f"written to {root / 'analyses' / found.name}\n" in shown  # the same again


def test_json_is_all_of_it(root: Path, runs: dict[str, str], tmp_path: Path, capsys):
    shown = done(capsys, "subspace", runs["lora4"], runs["loda"], "--matrix", "B", "--json", f"results.root={tmp_path}")
    (folder,) = (tmp_path / "analyses").iterdir()
    found = whole(folder)
    assert json.loads(shown)["title"] == found.title == "Directions of B shared by lora r=4 and loda r=4"
    assert json.loads(shown) == json.loads((folder / "analysis.json").read_text())


def test_the_report_shows_the_analyses(root: Path, runs: dict[str, str], capsys):
    done(capsys, "errors", runs["lora2"], runs["lora4"])
    done(capsys, "subspace", runs["lora2"], runs["loda"])
    assert main(["report", f"results.root={root}"]) == 0
    page = (root / "report" / "index.html").read_text(encoding="utf-8")
    for title in ("Errors on mini: lora r=2, lora r=4", "Directions of A shared by lora r=2 and loda r=4"):
        assert title in page


@pytest.mark.parametrize("arguments", [[], ["--help"]])
def test_usage(arguments: Sequence[str], capsys):
    assert main(["analyze", *arguments]) == (0 if arguments else 2)
    shown = capsys.readouterr().out
    assert shown.startswith("usage: lodarepro analyze NAME ...")
    for name in ("latency", "energy", "subspace", "amplification", "errors"):
        assert f"\n  {name} " in shown


@pytest.mark.parametrize("name", ["latency", "energy", "subspace", "amplification", "errors"])
def test_help(name: str, capsys):
    with pytest.raises(SystemExit) as e:
        main(["analyze", name, "--help"])
    assert e.value.code == 0
    assert capsys.readouterr().out.startswith(f"usage: lodarepro analyze {name} ")


# refusals ---------------------------------------------------------------------------------------


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one line of a command that was refused."""
    capsys.readouterr()
    assert main(["analyze", *arguments]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    (line,) = shown.err.splitlines()
    assert line.startswith("lodarepro: ")
    return line.removeprefix("lodarepro: ")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["energie"], "'energie': no such analysis; did you mean 'energy'? (valid: amplification, energy, errors, "),
        (["subspace", "{lora2}"], "lodarepro analyze subspace compares two runs; 1 given"),
        (["subspace", "{lora2}", "{lora4}", "{loda}"], "lodarepro analyze subspace compares two runs; 3 given"),
        (
            ["subspace", "{lora2}", "/nowhere/run"],
            "/nowhere/run holds no record.json: not the folder of a finished run",
        ),
        (["errors", "{root}"], "{root} holds no record.json: not the folder of a finished run"),
        (["errors", "results.root=/tmp"], "which runs? give folders such as results/runs/"),
        (["amplification", "{bitfit}"], "{bitfit_id}: bitfit changed no weight matrix and stands beside none, so "),
        (
            ["subspace", "{lora2}", "{bitfit}"],
            "{bitfit_id}: bitfit changed no weight matrix and stands beside none, so ",
        ),
        (
            ["subspace", "{lora2}", "{loda}", "--matrix", "dW"],
            "{loda_id}: loda has no dW that is not zero; it has A, B",
        ),
        (["latency", "--parts", "x"], "--parts x: no such part (valid: decoding, forward, projection)"),
        (["latency", "--methods", "lorra", "--parts", "forward"], "method=lorra: no such method; did you mean 'lora'?"),
        (["energy", "model=gpt2-nano", "--budget", "0"], "--budget 0: give per cent of the dense projection's "),
        (["energy", "model=gpt2-nano", "--budget", "nan"], "--budget nan: give per cent of the dense projection's "),
        (["errors", "{lora2}", "--checkpoint", "nope"], "{lora2_id} has no checkpoint 'nope'"),
        (["subspace", "{lora2}", "{lora4}", "--checkpoint", "nope"], "{lora2_id} has no checkpoint 'nope'"),
        (["energy", "model=gpt2-nano", "seeed=2"], "seeed=2: no such key or choice; did you mean 'seed'?"),
        (["latency", "modell=gpt2-nano"], "modell=gpt2-nano: no such key or choice; did you mean 'model'?"),
        (["subspace", "{lora2}", "{lora4}", "model.pth=x"], "model.pth=x: "),
        (["amplification", "{lora2}", "nothing=x"], "nothing=x: a finished run's training can't change"),
        (["errors", "{lora2}", "nothing=x"], "nothing=x: "),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_input(arguments: list[str], said: str, root: Path, runs: dict[str, str], capsys):
    places = {**runs, **{f"{name}_id": Path(folder).name for name, folder in runs.items()}, "root": str(root)}
    assert refused(capsys, *(text.format(**places) for text in arguments)).startswith(said.format(**places))


@pytest.mark.parametrize(
    "arguments",
    [
        ["latency", "--sizes", "0"],
        ["latency", "--trials", "x"],
        ["latency", "--lengths", "16,-1"],
        ["energy", "--budget", "much"],
        ["energy", "--checkpoint", "last"],
        ["subspace", "a", "b", "--matrix", "C"],
        ["subspace"],
        ["amplification", "a", "--directions", "0"],
    ],
    ids=" ".join,
)
def test_arguments_that_argparse_refuses(arguments: list[str], capsys):
    with pytest.raises(SystemExit) as e:
        main(["analyze", *arguments])
    assert e.value.code == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith(f"lodarepro analyze {arguments[0]}: error: ")


@pytest.mark.parametrize("analysis", ["subspace", "amplification"])
def test_runs_of_other_models(analysis: str, runs: dict[str, str], tmp_path: Path, capsys):
    """A run whose base model changed its weights."""
    from safetensors.torch import load_file, save_file

    from lodarepro.model import weights
    from lodarepro.model.weights import EMBEDDED

    base = Path(shutil.copytree(EMBEDDED / "gpt2-nano", tmp_path / "base"))
    tensors = load_file(base / "model.safetensors")
    name = next(name for name in tensors if name.endswith("ln_f.bias"))
    tensors[name] = tensors[name] + 1.0
    save_file(tensors, base / "model.safetensors", metadata={"format": "pt"})
    other = Path(shutil.copytree(runs["lora2"], tmp_path / "runs" / Path(runs["lora2"]).name))
    record = json.loads((other / "record.json").read_text())
    record["config"]["model"]["path"] = str(base)
    (other / "record.json").write_text(json.dumps(record))
    said = refused(capsys, analysis, runs["lora4"], str(other))
    assert said.startswith(f"{Path(runs['lora4']).name} is of gpt2-nano (weights sha256 ")
    assert said.endswith(
        f" of gpt2-nano ({weights.sha256_of(base / 'model.safetensors')[:12]}); give runs of one base model"
    )


def test_an_analysis_that_is_damaged_is_named_by_the_report(root: Path, runs: dict[str, str], capsys):
    done(capsys, "errors", runs["loda"])
    (folder,) = (root / "analyses").glob("errors_mini-gpt2-nano-loda-r4_*")
    (folder / "analysis.json").write_text("{")
    capsys.readouterr()
    assert main(["report", f"results.root={root}"]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("lodarepro: ")]
    assert line.startswith(f"lodarepro: {folder / 'analysis.json'} is not an analysis (")
    shutil.rmtree(folder)
