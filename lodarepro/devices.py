"""The device of a run: a CUDA device is held by one run at a time, so that sweeps may use all of a machine."""

from __future__ import annotations

import fcntl
import logging
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch

from lodarepro import config
from lodarepro.distributed import local_rank
from lodarepro.errors import BadInput, Stopped

logger = logging.getLogger(__name__)

# Up to this width d a CPU run takes one thread: on a busy machine two were 20 times slower, as the
# operations of a model of a million parameters are shorter than the threads' waiting for each other.
TINY_WIDTH = 256
DEFAULT_THREADS = torch.get_num_threads()
WAIT_SECONDS = 2.0  # between two looks whether a device is free


def set_threads(run: config.Run) -> None:
    """Set torch to a run's threads, which what attaching computes has too."""
    torch.set_num_threads(run.runtime.threads or (1 if run.model.n_embd <= TINY_WIDTH else DEFAULT_THREADS))


def check(wanted: str) -> None:
    """Whether this machine has a device of the kind that `runtime.device` names.

    Raises:
        BadInput: it has not.
    """
    if not wanted.startswith("cuda"):
        return
    found = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if not found:
        raise BadInput(f"runtime.device={wanted}: torch sees no CUDA device here; see `lodarepro doctor`")
    if ":" in wanted and int(wanted.partition(":")[2]) >= found:
        raise BadInput(
            f"runtime.device={wanted}: torch sees {found} CUDA devices here; give cuda:0 to cuda:{found - 1}"
        )


@contextmanager
def taken(
    wanted: str, *, stop_signal: Callable[[], int | None] = lambda: None, wait: bool = True
) -> Iterator[torch.device]:
    """The device of a run, held until the run ends.

    `auto` and `cuda` take the first CUDA device that no other run on this machine holds, and wait for one where all
    are held. An environment variable would come too late here: a worker that does one run after the other has
    initialised CUDA by then, so the device is set in torch itself. Of several processes of one run each has its own.

    Args:
        wanted: `runtime.device`; a device that it names by number is shared with whoever is on it.
        stop_signal: asked while waiting: the number of a signal that asks to stop, or None.
        wait: False: where all are held, share the first.

    Raises:
        BadInput: there is no such device.
        Stopped: `stop_signal` answered.
    """
    check(wanted)
    if wanted == "cpu" or not torch.cuda.is_available():
        yield torch.device("cpu")
        return
    # Equal runs should give equal bits: matrix products ask for this before their first call.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True, warn_only=True)
    if (rank := local_rank()) is not None:  # torchrun gives each process one
        if ":" in wanted:
            raise BadInput(f"runtime.device={wanted}: torchrun gives each process a device of its own; give cuda")
        torch.cuda.set_device(rank)
        yield torch.device("cuda", rank)
        return
    if ":" in wanted:
        torch.cuda.set_device(wanted)
        yield torch.device(wanted)
        return
    # By their identity: which number a device has depends on CUDA_VISIBLE_DEVICES.
    names = [str(torch.cuda.get_device_properties(i).uuid) for i in range(torch.cuda.device_count())]
    with first_free(names, lock_folder(), stop_signal=stop_signal, wait=wait) as number:
        torch.cuda.set_device(number)
        yield torch.device("cuda", number)


def lock_folder() -> Path:
    """Where this user's runs on this machine leave the locks of devices."""
    folder = Path(tempfile.gettempdir()) / f"lodarepro-devices-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    return folder


@contextmanager
def first_free(
    names: Sequence[str], folder: Path, *, stop_signal: Callable[[], int | None] = lambda: None, wait: bool = True
) -> Iterator[int]:
    """Hold the first of some things that no other process holds; a process's death frees what it held.

    Args:
        names: of the things, each good for a file's name.
        folder: of the locks.
        stop_signal: asked while waiting.
        wait: False: where all are held, give the first without holding it.

    Returns:
        The place in `names` of the one that is held.

    Raises:
        Stopped: `stop_signal` answered.
    """
    waiting = False
    while True:
        for number, name in enumerate(names):
            with (folder / f"{name}.lock").open("a") as lock:
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    continue
                yield number
                return
        if not wait:
            logger.info("other runs hold every device (%d): sharing the first", len(names))
            yield 0
            return
        if not waiting:
            logger.info("other runs hold every device (%d): waiting; runtime.device=cuda:N shares one", len(names))
            waiting = True
        if (signal := stop_signal()) is not None:
            raise Stopped("stopped while waiting for a device; the same command continues", signal)
        time.sleep(WAIT_SECONDS)
