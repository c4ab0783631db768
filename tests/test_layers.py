"""Guard: dependencies run downward only, and what must stay light or apart does."""

import ast
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from lodarepro import config

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "lodarepro"
FILES = sorted(path for path in PACKAGE.rglob("*.py") if "configs" not in path.parts)

LEVELS = {
    "__init__": 0,
    "errors": 0,
    "files": 0,
    "log": 0,
    "seeds": 0,
    "bar": 1,
    "config": 1,
    "distributed": 1,
    "network": 1,
    "scores": 1,
    "yaml_files": 1,
    "data": 2,
    "devices": 2,
    "metrics": 2,
    "model": 2,
    "precision": 2,
    "provenance": 2,
    "records": 2,
    "units": 2,
    "compose": 3,
    "findings": 3,
    "loggers": 3,
    "methods": 3,
    "rescore": 3,
    "archive": 4,
    "cost": 4,
    "decode": 4,
    "reopen": 4,
    "tables": 4,
    "train": 4,
    "analysis": 5,
    "export": 5,
    "pipeline": 5,
    "report": 5,
    "doctor": 6,
    "launch": 6,
    "plan": 6,
    "cli": 7,  # above all, as it calls them
}
"""level of each module or folder of the package; a module imports lower levels or its own folder"""

NO_TORCH = (
    *(
        "archive",
        "compose",
        "config",
        "errors",
        "findings",
        "launch",
        "log",
        "loggers",
        "metrics",
        "network",
        "provenance",
        "records",
        "report",
    ),
    *("rescore", "scores", "seeds", "tables", "units", "yaml_files"),
)
HEAVY = {"torch", "transformers", "datasets", "tokenizers", "safetensors"}


def unit(path: Path) -> str:
    """The module or folder of the package that a file belongs to: `model`, `cost`."""
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def imported(path: Path) -> Iterator[str]:
    """Full names of everything that a file imports, anywhere in it, submodules of `from` included."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: imports are absolute"
            assert node.module is not None
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def uses(path: Path) -> set[str]:
    """The modules or folders of this package that a file imports."""
    found = set()
    for name in imported(path):
        parts = name.split(".")
        if parts[0] == "lodarepro":
            # `from lodarepro import compose` names a module, `from lodarepro import __version__` does not.
            found.add(parts[1] if len(parts) > 1 and parts[1] in LEVELS else "__init__")
    return found


def where(path: Path) -> str:
    return str(path.relative_to(ROOT))


def test_every_file_has_a_level():
    assert {unit(path) for path in FILES} <= LEVELS.keys()
    assert len(FILES) > 30  # the guard looks at the package, not at an empty folder


@pytest.mark.parametrize("path", FILES, ids=where)
def test_imports_run_downward(path: Path):
    own = unit(path)
    for used in uses(path) - {own}:
        assert LEVELS[used] < LEVELS[own], (
            f"{where(path)} (level {LEVELS[own]}) imports lodarepro.{used} (level {LEVELS[used]})"
        )


@pytest.mark.parametrize("path", [p for p in FILES if unit(p) in NO_TORCH], ids=where)
def test_light_modules_import_nothing_heavy(path: Path):
    heavy = {name.partition(".")[0] for name in imported(path)} & HEAVY
    assert not heavy, f"{where(path)} imports {', '.join(sorted(heavy))}"


def test_light_modules_import_nothing_heavy_through_others():
    """In a process of its own, as this one has torch already."""
    modules = [
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for path in FILES
        if unit(path) in (*NO_TORCH, "cli")
    ]
    program = f"import importlib, sys\nfor m in {modules!r}: importlib.import_module(m)\n"
    program += "print(sorted(sys.modules.keys() & {'torch', 'transformers', 'datasets'}))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, check=False)
    assert (done.stdout.strip(), done.stderr) == ("[]", "")


@pytest.mark.parametrize("path", FILES, ids=where)
def test_hydra_is_known_to_three_modules(path: Path):
    if unit(path) not in ("compose", "launch", "cli"):
        used = {name.partition(".")[0] for name in imported(path)} & {"hydra", "omegaconf"}
        assert not used, f"{where(path)} imports {', '.join(sorted(used))}: only compose.py, launch/ and cli.py may"


@pytest.mark.parametrize("path", FILES, ids=where)
def test_only_the_command_line_prints(path: Path):
    calls = [
        node.lineno
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
    ]
    assert unit(path) == "cli" or not calls, f"{where(path)}: print in lines {calls}; use the logger"


def texts(path: Path) -> Iterator[ast.Constant]:
    """The string literals of a file other than docstrings and the lines after fields."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    statements = {id(n.value) for n in ast.walk(tree) if isinstance(n, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in statements:
            yield node


# Names of the LoRA paper, not of its method: its AdamW, its search, and its protocol's files of the same name.
OTHER_MEANINGS = {"train/optim.py": {"lora"}, "decode/beam.py": {"lora"}}


@pytest.mark.parametrize("path", [p for p in FILES if unit(p) not in ("methods", "config")], ids=where)
def test_no_module_names_a_method(path: Path):
    """What depends on the method belongs into `methods/`; whoever asks for a name breaks the seam."""
    allowed = OTHER_MEANINGS.get(str(path.relative_to(PACKAGE)), set())
    named = [(n.lineno, n.value) for n in texts(path) if n.value in config.METHODS.keys() - allowed]
    assert not named, f"{where(path)} names methods: {named}"


def test_scripts_are_not_imported():
    scripts = {path.stem for path in (ROOT / "scripts").glob("*.py")}
    assert scripts
    for path in FILES:
        used = {name.partition(".")[0] for name in imported(path)}
        assert not used & (scripts | {"scripts", "tests"}), where(path)


def test_no_file_is_a_drawer_for_everything():
    drawers = {"utils", "util", "helpers", "helper", "common", "misc"}
    every = [*FILES, *(ROOT / "scripts").rglob("*.py"), *(ROOT / "tests").rglob("*.py")]
    assert [where(path) for path in every if path.stem in drawers] == []


@pytest.mark.parametrize("path", FILES, ids=where)
def test_only_safetensors_are_read(path: Path):
    """A pickle runs whatever its author wrote."""
    text = path.read_text(encoding="utf-8")
    names = {name.partition(".")[0] for name in imported(path)}
    assert not names & {"pickle", "dill", "joblib", "shelve", "marshal"}, where(path)
    assert not re.search(r"\btorch\.load\(|allow_pickle\s*=\s*True|\btrust_remote_code\b", text), where(path)


def test_test_files_have_names_of_their_own():
    """Without packages, pytest tells test files apart by their name alone."""
    names = [path.name for path in (ROOT / "tests").rglob("test_*.py")]
    assert len(set(names)) == len(names)
    assert not list((ROOT / "tests").rglob("__init__.py"))


def test_the_guard_sees_an_import_inside_a_function(tmp_path: Path):
    path = tmp_path / "x.py"
    path.write_text("def f():\n    from lodarepro import pipeline\n    import lodarepro.cli\n", encoding="utf-8")
    assert uses(path) == {"pipeline", "cli"}


def test_importing_the_package_needs_no_configuration():
    """`import lodarepro` alone must work from any folder, without a home to write to."""
    environment = {k: v for k, v in os.environ.items() if k not in ("HOME", "LODAREPRO_CACHE")}
    environment["PYTHONPATH"] = str(ROOT)
    program = "import lodarepro.cli, lodarepro.compose; lodarepro.compose.cells([])"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd="/", env=environment, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
