"""Where a number comes from: code version, packages, machine."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import lodarepro

PACKAGES = ("torch", "numpy", "tokenizers", "datasets", "hydra-core", "sacrebleu", "nltk", "pycocoevalcap")


def canonical_json(value: Any) -> str:
    """One text for one value: sorted keys, no spaces, no NaN."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def code_version() -> dict[str, Any]:
    """Version, commit and whether the working tree differs from it, but for `results/`, which holds no code.

    `commit` and `dirty` are None where the package does not run from a checkout.
    """
    root = Path(__file__).resolve().parent.parent
    return {"version": lodarepro.__version__, **_git_state(root)}


def _git_state(root: Path) -> dict[str, Any]:
    if not (root / ".git").exists():
        return {"commit": None, "dirty": None}
    try:
        commit = _git(root, "rev-parse", "HEAD")
        dirty = bool(_git(root, "status", "--porcelain", "--untracked-files=no", "--", ".", ":!results"))
    except (OSError, subprocess.SubprocessError):
        return {"commit": None, "dirty": None}
    return {"commit": commit, "dirty": dirty}


def _git(root: Path, *args: str) -> str:
    done = subprocess.run(["git", *args], cwd=root, capture_output=True, text=True, check=True, timeout=20)
    return done.stdout.strip()


def package_versions() -> dict[str, str | None]:
    """Versions of the packages that numbers can depend on; None: not installed."""
    found: dict[str, str | None] = {}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = None
    return found


def machine() -> dict[str, Any]:
    """Processor, cores, memory in GiB and operating system; no host or user name."""
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "memory_gib": _memory_gib(),
        "system": _system(),
        "python": platform.python_version(),
    }


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _system() -> str:
    """Kernel without its builder's suffix, architecture and C library."""
    release = platform.release().partition("-")[0]
    return " ".join([platform.system(), release, platform.machine(), *platform.libc_ver()]).strip()


def _memory_gib() -> float | None:
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    except (ValueError, OSError):
        return None


def gather() -> dict[str, Any]:
    """All of it, for a record; `argv` is the command's arguments without the program's path."""
    return {
        "code": code_version(),
        "packages": package_versions(),
        "machine": machine(),
        "argv": sys.argv[1:],
    }
