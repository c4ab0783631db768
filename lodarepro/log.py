"""The package's log, as commands and their workers show it."""

from __future__ import annotations

import logging
import sys
from pathlib import Path


def log_to_stderr() -> None:
    """Send the package's log to what is stderr now."""
    _log_to(logging.StreamHandler(sys.stderr))


def log_to_file(path: Path) -> None:
    """Send the package's log to the end of a file."""
    _log_to(logging.FileHandler(path, encoding="utf-8"))


def _log_to(handler: logging.Handler) -> None:
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", datefmt="%H:%M:%S"))
    logger = logging.getLogger("lodarepro")
    logger.handlers[:] = [handler]
    logger.setLevel(logging.INFO)
    logger.propagate = False
