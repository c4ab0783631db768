"""A progress bar on a terminal, with the log above it; elsewhere none."""

import io
import logging
import sys
from collections.abc import Iterator

import pytest
from rich.console import Console

from lodarepro import bar as module
from lodarepro.bar import bar
from lodarepro.log import log_to_stderr

logger = logging.getLogger("lodarepro")


@pytest.fixture(autouse=True)
def as_it_was() -> Iterator[None]:
    """Other tests' handlers and level."""
    before = logger.handlers[:], logger.level, logger.propagate
    yield
    logger.handlers[:], logger.propagate = before[0], before[2]
    logger.setLevel(before[1])


def terminal(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    """What is written to a terminal that stderr is. Called by tests: a fixture's stderr is not theirs."""
    screen = io.StringIO()
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setattr(module, "Console", lambda **options: Console(force_terminal=True, width=120, **options))
    return screen


def test_a_bar_shows_how_far_things_are(monkeypatch: pytest.MonkeyPatch):
    screen = terminal(monkeypatch)
    with bar("training", 12, done=3, shown=True) as tick:
        assert tick is not None
        tick(7, "loss 1.2345, 678 tokens/s")
    assert "training" in screen.getvalue() and "7/12" in screen.getvalue()
    assert "loss 1.2345, 678 tokens/s" in screen.getvalue()


def test_a_bar_starts_where_things_are(monkeypatch: pytest.MonkeyPatch):
    screen = terminal(monkeypatch)
    with bar("training", 12, done=3, shown=True):
        pass
    assert "3/12" in screen.getvalue()


def test_the_log_goes_above_the_bar(monkeypatch: pytest.MonkeyPatch):
    """Through what guards the bar's line, and past it again in the end."""
    screen = terminal(monkeypatch)
    log_to_stderr()
    with bar("training", 12, shown=True):
        assert sys.stderr is not screen and streams() == [sys.stderr]
        logger.info("epoch 1 of 4")
    logger.info("after it")
    text = screen.getvalue()
    assert "epoch 1 of 4\n" in text and text.rstrip().endswith("after it")
    assert text.index("training") < text.index("after it")
    assert sys.stderr is screen
    assert streams() == [screen]


def streams() -> list[object]:
    return [handler.stream for handler in logger.handlers if isinstance(handler, logging.StreamHandler)]


def test_the_log_is_what_it_was_after_a_fault(monkeypatch: pytest.MonkeyPatch):
    screen = terminal(monkeypatch)
    log_to_stderr()
    with pytest.raises(ZeroDivisionError), bar("training", 12, shown=True):
        raise ZeroDivisionError
    assert sys.stderr is screen
    assert streams() == [screen]


def test_what_is_printed_is_not_the_bars(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    terminal(monkeypatch)
    with bar("training", 12, shown=True):
        print("a table")
    assert capsys.readouterr().out == "a table\n"


def test_without_a_terminal_there_is_none(monkeypatch: pytest.MonkeyPatch):
    screen = io.StringIO()
    monkeypatch.setattr(sys, "stderr", screen)
    log_to_stderr()
    with bar("training", 12, shown=True) as tick:
        assert tick is None
        logger.info("a line")
    assert screen.getvalue().endswith(" a line\n") and screen.getvalue().count("\n") == 1


def test_where_others_use_the_terminal_there_is_none(monkeypatch: pytest.MonkeyPatch):
    screen = terminal(monkeypatch)
    with bar("training", 12, shown=False) as tick:
        assert tick is None
    assert screen.getvalue() == ""
