"""Computing beside the caller."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

T = TypeVar("T")


def beside(compute: Callable[[], T]) -> Future[T]:
    """Starts a computation in a thread that this process does not wait for when it ends.

    The threads of `concurrent.futures` are waited for, so that an interrupt would not end a process while one of
    them waits for a program that hangs.
    """
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(compute())
        except BaseException as e:
            future.set_exception(e)

    threading.Thread(target=run, daemon=True).start()
    return future
