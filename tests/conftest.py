"""What all tests share: one torch thread, the reference material beside the repository, a tiny model."""

import os

# Before torch is imported, and inherited by the commands that tests start: on a busy machine two
# threads are many times slower than one on models this small.
os.environ.setdefault("OMP_NUM_THREADS", "1")

from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def shared() -> Path:
    """The reference material (real data, corpora); the test is skipped where it is not."""
    folder = Path(os.environ.get("LODAREPRO_SHARED", ROOT.parent / "shared"))
    if not (folder / "data").is_dir():
        pytest.skip(f"needs the reference material in {folder} (or in $LODAREPRO_SHARED)")
    return folder
