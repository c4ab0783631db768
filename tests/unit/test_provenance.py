"""What a record says of the code that made it."""

import subprocess
from pathlib import Path

import pytest

from lodarepro import provenance


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A committed working tree in place of this one."""
    for file in ("lodarepro/provenance.py", "configs/run.yaml", "results/mini/tables/mini.md"):
        (tmp_path / file).parent.mkdir(parents=True)
        (tmp_path / file).write_text("one\n")
    who = ["-c", "user.name=n", "-c", "user.email=n@example.org"]
    for arguments in (["init", "-q"], ["add", "-A"], [*who, "commit", "-qm", "one"]):
        subprocess.run(["git", *arguments], cwd=tmp_path, check=True)
    monkeypatch.setattr(provenance, "__file__", str(tmp_path / "lodarepro" / "provenance.py"))
    return tmp_path


@pytest.mark.parametrize(
    ("changed", "dirty"),
    [
        (None, False),
        ("lodarepro/provenance.py", True),
        ("configs/run.yaml", True),
        ("results/mini/tables/mini.md", False),  # a sweep renders its tables while other runs begin
    ],
)
def test_changes_of_code_are_said_and_not_those_of_results(checkout: Path, changed: str | None, dirty: bool):
    if changed is not None:
        (checkout / changed).write_text("other\n")
    version = provenance.code_version()
    assert version["dirty"] is dirty
    assert len(version["commit"]) == 40


def test_without_a_checkout_nothing_is_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(provenance, "__file__", str(tmp_path / "lodarepro" / "provenance.py"))
    assert provenance.code_version() == {"version": provenance.lodarepro.__version__, "commit": None, "dirty": None}
