"""A user's own method: one file outside the package, through every stage, here and in other processes."""

import json
import multiprocessing
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from hydra._internal.core_plugins.basic_launcher import BasicLauncher
from hydra.core.utils import JobReturn, run_job, setup_globals
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf, open_dict

from lodarepro import compose, records
from lodarepro.cli import main
from lodarepro.errors import BadInput
from lodarepro.methods import Method

METHOD = '''\
"""A trained factor on the output of every block's MLP."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class MlpScale:
    name: str = "mlp-scale"
    start: float = 1.0
    blocks: tuple[int, ...] = (0, 1)
    kind: Literal["vector", "number"] = "vector"


class Scale(nn.Module):
    def __init__(self, factor: Tensor) -> None:
        super().__init__()
        self.factor = nn.Parameter(factor)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.factor

    def macs(self) -> int:
        return 0


def attach(model, config, generator):
    width = model.ln_f.weight.shape[0] if config.kind == "vector" else 1
    for number in config.blocks:
        model.h[number].after_mlp = Scale(torch.full((width,), config.start, device=model.ln_f.weight.device))


def param_groups(model, config):
    return [{"params": [p for p in model.parameters() if p.requires_grad], "lr_scale": 2.0}]
'''
NANO = ["model=gpt2-nano", "dataset=mini"]
CELL = [
    *NANO,
    "method=mlp-scale",
    "train.epochs=2",
    "train.warmup_steps=2",
    "decode.max_new_tokens=4",
    "decode.beam=2",
    "dataset.limit.train=32",
    "dataset.limit.valid=4",
    "dataset.limit.test=3",
]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "my methods" / "scale.py"
    path.parent.mkdir()
    path.write_text(METHOD, encoding="utf-8")
    return path


@pytest.fixture
def cell(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Overrides of a run that takes seconds; nothing is read from the user's caches."""
    monkeypatch.setenv("LODAREPRO_CACHE", str(tmp_path / "cache"))
    sizes = json.loads((tiny_model / "config.json").read_text())
    keys = ("n_layer", "n_head", "n_embd", "vocab_size", "n_positions")
    return [
        *CELL,
        f"model.path={tiny_model}",
        *(f"model.{key}={sizes[key]}" for key in keys),
        f"results.root={tmp_path / 'results'}",
    ]


def run_folders(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "results" / "runs").iterdir())


def faults(path: Path, *overrides: str) -> tuple[str, ...]:
    with pytest.raises(BadInput) as e:
        compose.cells([*NANO, *overrides], own=compose.own_method(path))
    assert e.value.exit_code == 2
    assert all("\n" not in fault for fault in e.value.faults)
    return e.value.faults


def forget() -> None:
    """As in a process that has not met any method's file."""
    for name in [name for name in sys.modules if name.startswith("lodarepro_method_")]:
        del sys.modules[name]


# through the pipeline ---------------------------------------------------------------------------


def test_a_method_of_the_users_own_runs_is_found_again_and_decoded_anew(file, cell, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(file.parent)
    command = ["run", "--method-file", "scale.py", *cell, "method.start=0.5"]
    assert main(command) == 0
    assert "mlp-scale" in capsys.readouterr().out
    (folder,) = run_folders(tmp_path)
    assert folder.name.startswith("mini_gpt2-nano_mlp-scale_lora_s1_")
    record = records.finished(folder)
    assert record.config["method"] == {"name": "mlp-scale", "start": 0.5, "blocks": [0, 1], "kind": "vector"}
    assert record.config["method_file"] == {"path": str(file), "sha256": record.identity["method_file"]["sha256"]}
    assert record.parameters["trainable"] == 2 * 32

    written = (folder / "record.json").stat().st_mtime_ns
    forget()
    assert main(command) == 0
    assert (folder / "record.json").stat().st_mtime_ns == written

    forget()
    monkeypatch.chdir(tmp_path)
    assert main(["decode", str(folder), "decode.beam=3"]) == 0
    found = records.finished(folder).evaluations
    assert [(e.checkpoint, e.decode["beam"]) for e in found] == [("last", 2), ("best", 2), ("last", 3), ("best", 3)]


def test_a_finished_run_whose_file_is_gone_or_changed(file, cell, tmp_path, capsys):
    assert main(["run", "--method-file", str(file), *cell]) == 0
    (folder,) = run_folders(tmp_path)
    kept = Path(shutil.copy(file, tmp_path / "kept.py"))

    file.unlink()
    forget()
    capsys.readouterr()
    assert main(["decode", str(folder), "decode.beam=3"]) == 2
    assert capsys.readouterr().err == (
        f"lodarepro: method file {file}: can't be read (No such file or directory); put it there again, "
        "or say with --method-file where it is\n"
    )
    file.write_text(METHOD + "\n", encoding="utf-8")
    assert main(["decode", str(folder), "decode.beam=3"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert re.fullmatch(
        re.escape(f"lodarepro: method file {file} has changed since the run was made (sha256 ")
        + "[0-9a-f]{64}, not [0-9a-f]{64}"
        + re.escape("); put the old one there again, or say with --method-file where it is"),
        line,
    )
    assert main(["decode", "--method-file", str(kept), str(folder), "decode.beam=3"]) == 0


def launch_elsewhere(self: Any, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> list[Any]:
    """Each job in a process of its own, as Hydra's joblib and submitit launchers do it."""
    setup_globals()
    found = []
    for number, overrides in enumerate(job_overrides, initial_job_idx):
        composed = self.hydra_context.config_loader.load_sweep_config(self.config, list(overrides))
        with open_dict(composed):
            composed.hydra.job.id, composed.hydra.job.num = str(number), number
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
            found.append(pool.submit(work, self.hydra_context, self.task_function, composed).result())
    return found


def work(context: HydraContext, task_function: TaskFunction, composed: DictConfig) -> JobReturn:
    assert not [name for name in sys.modules if name.startswith("lodarepro_method_")]
    setup_globals()
    return run_job(
        hydra_context=context,
        task_function=task_function,
        config=composed,
        job_dir_key="hydra.sweep.dir",
        job_subdir_key="hydra.sweep.subdir",
    )


def test_workers_import_the_file_again(file, cell, tmp_path, capsys, monkeypatch):
    """A sweep over it and a built-in method."""
    monkeypatch.setattr(BasicLauncher, "launch", launch_elsewhere)
    assert main(["run", "-m", "--method-file", str(file), *cell, "method=mlp-scale,bitfit"]) == 0
    assert "2 of 2 cells finished" in capsys.readouterr().out
    found = {record.config["method"]["name"]: record for record in map(records.finished, run_folders(tmp_path))}
    assert found.keys() == {"mlp-scale", "bitfit"}
    assert found["mlp-scale"].identity["method_file"].keys() == {"sha256"}
    # The id of a method that is not the file's is what it is without the file.
    (alone,) = compose.cells([*cell, "method=bitfit"])
    bitfit = found["bitfit"]
    assert compose.run_id(alone.run, bitfit.identity["checksums"]) == bitfit.id
    assert "method_file" not in bitfit.identity


def test_a_method_can_be_counted(file, capsys):
    assert main(["count", "--json", "--method-file", str(file), "method=mlp-scale", "model=gpt2-nano"]) == 0
    assert json.loads(capsys.readouterr().out)["trainable"] == 2 * 128


# composing --------------------------------------------------------------------------------------


def test_settings_are_typed_and_closed(file):
    own = compose.own_method(file)
    found = compose.cells(["method=mlp-scale", "method.start=1,2.5", *NANO], multirun=True, own=own)
    assert [cell.run.method.start for cell in found] == [1.0, 2.5]
    (run,) = [cell.run for cell in compose.cells(["method=mlp-scale", "method.blocks=[3]", *NANO], own=own)]
    assert run.method.blocks == (3,)
    assert compose.from_plain(compose.plain(run)) == run
    bad = ["method.start=x", "method.strt=1", "method.kind=a", "method.blocks=[0.5]"]
    assert faults(file, "method=mlp-scale", *bad) == (
        "method.strt=1: no such key 'strt' in 'method'; did you mean 'start'? (valid: blocks, kind, name, start)",
        "method.start=x: input should be a valid number",
        "method.blocks[0]=0.5: input should be a valid integer",
        "method.kind=a: input should be 'vector' or 'number'",
    )
    assert faults(file, "method=mlp-scale", "method.start=inf") == (
        "method.start=Infinity: input should be a finite number",
    )
    (fault,) = faults(file, "method=mlp-scal")
    assert fault.startswith("method=mlp-scal: no such method; did you mean 'mlp-scale'? (valid: adapter-")
    assert faults(file, "method=mlp-scale", "method.name=lora") == (
        "method.name=lora: no such method (valid: mlp-scale)",
    )
    assert faults(file, "method_file.path=x") == (
        "'method_file.path=x': the file of a method is given as --method-file FILE",
    )


def test_without_the_file_the_method_is_unknown(file):
    compose.cells(["method=mlp-scale", *NANO], own=compose.own_method(file))
    with pytest.raises(BadInput, match=r"^method=mlp-scale: no such method"):
        compose.cells(["method=mlp-scale", *NANO])


def test_the_command_line_shows_it(file, capsys):
    assert main(["run", "--method-file", str(file), "method=mlp-scale", *NANO, "--cfg", "job"]) == 0
    shown = capsys.readouterr().out
    assert "method:\n  name: mlp-scale\n  start: 1.0\n" in shown
    said = OmegaConf.create(shown).method_file
    assert said.path == str(file) and len(said.sha256) == 64
    assert main(["run", f"--method-file={file}", "--help"]) == 0
    assert re.search(r"method=.*\|mlp-scale\|", capsys.readouterr().out)


def test_the_content_is_part_of_the_id_and_the_path_is_not(file, tmp_path):
    def identifier(path: Path) -> str:
        (cell,) = compose.cells(["method=mlp-scale", *NANO], own=compose.own_method(path))
        return compose.run_id(cell.run, {})

    first = identifier(file)
    copied = shutil.copy(file, tmp_path / "copied.py")
    assert identifier(Path(copied)) == first
    file.write_text(METHOD.replace('"lr_scale": 2.0', '"lr_scale": 3.0'), encoding="utf-8")
    assert identifier(file) != first


def test_an_edited_file_is_imported_anew(file):
    """A process may live on while its user edits the file, as in a notebook."""
    assert compose.own_method(file).settings().start == 1.0
    file.write_text(METHOD.replace("start: float = 1.0", "start: float = 3.0"), encoding="utf-8")
    assert compose.own_method(file).settings().start == 3.0


def test_only_a_methods_file_brings_torch(file):
    program = (
        "import sys\nfrom pathlib import Path\nfrom lodarepro import compose\n"
        "compose.cells([])\nprint('torch' in sys.modules)\n"
        f"compose.own_method(Path({str(file)!r}))\nprint('torch' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.stdout.split(), done.stderr) == (["False", "True"], "")


# faults -----------------------------------------------------------------------------------------

HEAD = "from dataclasses import dataclass, field\nfrom pathlib import Path\nfrom typing import Any\n"
ATTACH = "def attach(model, config, generator): pass\n"
SETTINGS = "@dataclass(frozen=True)\nclass Mine:\n    name: str = 'mine'\n"
NO_YAML = (
    "is of a type that YAML can't hold; use bool, int, float, str, None, Literal, and lists, tuples and "
    "dictionaries of these"
)
ONE_PLEASE = "exactly one, please: the method's settings, each with a default"
NO_ATTACH = "it needs a function attach(model, config, generator)"
TAKEN = "is that of a built-in method; choose another"
LINE_2 = ", line 2: can't be imported"
LEGAL = 'give the method\'s with name: str = "NAME", of small letters, digits, points and hyphens'


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("x = 1\nimport none_such\n", [f"{LINE_2} (ModuleNotFoundError: No module named 'none_such')"]),
        ("x = 1\n\ndef f(:\n", [", line 3: can't be imported (SyntaxError: invalid syntax)"]),
        ("def f():\n    raise ValueError('a\\nb')\nf()\n", [f"{LINE_2} (ValueError: a)"]),
        ("import sys\nsys.exit(3)\n", [f"{LINE_2} (SystemExit: 3)"]),
        (HEAD + ATTACH, [f": it defines no dataclass; {ONE_PLEASE}"]),
        (
            HEAD + ATTACH + SETTINGS + SETTINGS.replace("Mine", "Other"),
            [f": it defines 2 dataclasses (Mine, Other); {ONE_PLEASE}"],
        ),
        (HEAD + SETTINGS, [f": {NO_ATTACH}"]),
        (HEAD + SETTINGS + "attach = 3\n", [f": {NO_ATTACH}"]),
        (HEAD + SETTINGS + "def attach(model): pass\n", [f": {NO_ATTACH}"]),
        (HEAD + SETTINGS + ATTACH + "def layout(): pass\n", [": it needs a function layout(config, tokenizer)"]),
        (HEAD + ATTACH + SETTINGS.replace("'mine'", "'lora'"), [f": name=lora {TAKEN}"]),
        (HEAD + ATTACH + SETTINGS.replace("'mine'", "'My_Method'"), [f": name=My_Method in Mine; {LEGAL}"]),
        (HEAD + ATTACH + SETTINGS.replace("'mine'", "'../x'"), [f": name=../x in Mine; {LEGAL}"]),
        (HEAD + ATTACH + SETTINGS.replace("name", "nam"), [f": no name in Mine; {LEGAL}"]),
        (
            HEAD + ATTACH + "@dataclass\nclass Mine:\n    rank: int\n    name: str = 'mine'\n",
            [": Mine.rank has no default; give it one"],
        ),
        (HEAD + ATTACH + SETTINGS + "    place: Path = Path('x')\n", [f": Mine.place {NO_YAML}"]),
        (HEAD + ATTACH + SETTINGS + "    size: object = object()\n", [f": Mine.size {NO_YAML}"]),
        (HEAD + ATTACH + SETTINGS + "    place: Path = 'x'\n", [f": Mine.place {NO_YAML}"]),
        (
            HEAD + ATTACH + SETTINGS + "    rank: int = 0.5\n    up: bool = None\n",
            [": Mine.rank=0.5: input should be a valid integer", ": Mine.up=null: input should be a valid boolean"],
        ),
    ],
)
def test_a_file_that_defines_no_method(text: str, expected: list[str], tmp_path: Path):
    path = tmp_path / "mine.py"
    path.write_text(text, encoding="utf-8")
    for _ in range(2):  # a failed import leaves nothing behind
        assert faults(path, "method=mine") == tuple(f"method file {path}{fault}" for fault in expected)


def test_a_file_that_is_not_there(tmp_path: Path, capsys):
    path = tmp_path / "none.py"
    for command in (["run"], ["count"], ["decode", str(tmp_path)]):
        assert main([*command, "--method-file", str(path)]) == 2
        assert capsys.readouterr().err == (
            f"lodarepro: method file {path}: can't be read (No such file or directory); check the path\n"
        )


def test_what_is_not_the_files_own_does_not_count(tmp_path: Path):
    """Dataclasses that it imports, other classes, and one dataclass under two names."""
    text = HEAD + "from lodarepro.config import Base, Lora\n" + ATTACH + SETTINGS + "    base: Base = Base()\n"
    path = tmp_path / "mine.py"
    path.write_text(text + "Same = Mine\nclass Other: pass\n", encoding="utf-8")
    own: Any = compose.own_method(path)
    (cell,) = compose.cells(["method=mine", "method.base={kind: low-rank, rank: 3}", *NANO], own=own)
    assert cell.run.method.base.rank == 3


def test_a_file_may_define_all_that_a_method_is():
    assert list(compose.HOOKS) == [f.name for f in fields(Method)]


def test_a_fault_of_the_users_code_is_a_line_that_names_its_place(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    file = tmp_path / "broken.py"
    file.write_text(
        "from dataclasses import dataclass\n"
        "@dataclass\n"
        "class Broken:\n"
        "    name: str = 'broken'\n"
        "def attach(model, config, generator):\n"
        "    model.nothing.there\n",
        encoding="utf-8",
    )
    assert main(["count", "--method-file", str(file), "method=broken", "model=gpt2-nano"]) == 2
    fault = f"method file {file}, line 6: attach failed (AttributeError: 'GPT2' object has no attribute 'nothing')"
    assert capsys.readouterr().err == f"lodarepro: {fault}\n"
