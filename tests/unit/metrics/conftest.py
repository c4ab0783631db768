"""A stand-in for Java."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lodarepro.metrics import java

FakeJava = Callable[..., Path]


@pytest.fixture
def fake_java(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeJava]:
    """Puts a `java` on PATH that answers `-version` and otherwise runs the given shell commands."""

    def put(commands: str, version_status: int = 0) -> Path:
        program = tmp_path / "java"
        program.write_text(f'#!/bin/sh\n[ "$1" = -version ] && exit {version_status}\n{commands}\n')
        program.chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
        return program

    java._runs.cache_clear()
    yield put
    java._runs.cache_clear()
