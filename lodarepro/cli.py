"""The command line: run, decode, score, count, data, doctor."""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from lodarepro import __version__
from lodarepro.errors import BadInput, LodareproError, Stopped

logger = logging.getLogger("lodarepro")

STATUS = "status.json"
INTERRUPTED = 130  # 128 + SIGINT, as shells report it

USAGE = """\
usage: lodarepro COMMAND ...

  run [-m] [KEY=VALUE ...]        train, decode, score and record a cell, or with -m a sweep of them;
                                  lodarepro run --help lists the choices, --cfg job shows every setting
  decode RUN [decode.KEY=VALUE]   decode a finished run's test set anew, with other settings
  score RUN ...                   derive finished runs' scores again from their kept hypotheses
  count [KEY=VALUE ...]           parameters and multiply-accumulates of a cell, without weights or data
  data prepare NAME [KEY=VALUE]   find or download a dataset, verify and count it
  doctor                          versions, device, Java, caches, disk, network: what can run here

RUN is a folder such as results/runs/e2e_gpt2-medium_lora-r4_lora_s1_0123456789ab.
exit status: 0 done, 1 a run failed, 2 bad input, 130 or 143 stopped (the same command continues)
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status; errors are lines on stderr, never a traceback."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    commands: dict[str, Callable[[list[str]], int]] = {
        "run": _run,
        "decode": _decode,
        "score": _score,
        "count": _count,
        "data": _data,
        "doctor": _doctor,
    }
    if not arguments or arguments[0] in ("-h", "--help"):
        print(USAGE, end="")
        return 0 if arguments else 2
    if arguments[0] == "--version":
        print(f"lodarepro {__version__}")
        return 0
    log_to_stderr()
    try:
        if arguments[0] not in commands:
            from lodarepro.errors import nearest

            raise BadInput(f"'{arguments[0]}': no such command{nearest(arguments[0], commands)}")
        return commands[arguments[0]](arguments[1:])
    except LodareproError as e:
        for fault in e.faults:
            print(f"lodarepro: {fault}", file=sys.stderr)
        return e.exit_code
    except KeyboardInterrupt:
        print("lodarepro: stopped; the same command continues", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def log_to_stderr() -> None:
    """Send the package's log to what is stderr now."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", datefmt="%H:%M:%S"))
    logger.handlers[:] = [handler]
    logger.setLevel(logging.INFO)
    logger.propagate = False


# run --------------------------------------------------------------------------------------------

_in_process: list[dict[str, Any]] = []  # statuses of jobs of this process; others leave files


def _run(arguments: list[str]) -> int:
    import hydra
    from hydra._internal.utils import get_args_parser
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    from lodarepro import compose

    # Hydra shows the program's name in its help and looks for its arguments in sys.argv.
    sys.argv = ["lodarepro run", *arguments]
    parser = get_args_parser()
    parser.prog = "lodarepro run"
    given = parser.parse_args(arguments)
    informative = given.help or given.hydra_help or given.shell_completion
    if informative:
        compose.register_schemas()
    else:
        extra = Path(given.config_dir) if given.config_dir else None
        compose.cells(given.overrides, multirun=given.multirun, extra_folder=extra)

    sweep: Path | None = None
    if given.multirun and not any(o.startswith("hydra.sweep.dir=") for o in given.overrides):
        root = [o.partition("=")[2] for o in given.overrides if o.startswith("results.root=")]
        stamp = f"{datetime.now():%Y-%m-%d_%H-%M-%S}-{os.getpid()}"
        sweep = Path(root[-1] if root else "results") / "sweeps" / stamp
        sys.argv.append(f"hydra.sweep.dir={sweep}")
    elif given.multirun:
        sweep = Path([o for o in given.overrides if o.startswith("hydra.sweep.dir=")][-1].partition("=")[2])

    os.environ["HYDRA_FULL_ERROR"] = "1"  # let its errors reach the lines below
    _in_process.clear()
    try:
        hydra.main(version_base="1.3", config_path=str(compose.config_folder()), config_name=compose.PRIMARY)(job)()
    except (HydraException, OmegaConfBaseException) as e:
        raise BadInput(str(e.__cause__ or e).strip().splitlines()[0]) from None
    except SystemExit as e:
        if not _in_process:  # Hydra's own: after its help, or an error that it has told
            return int(e.code or 0)
        # Else a job that was told to stop, and a sweep's other cells with it.
    except OSError as e:
        raise BadInput(f"{e.filename}: can't be written ({e.strerror}); give results.root=FOLDER") from None
    if informative or given.cfg or given.info:
        return 0
    return _conclude(_statuses(sweep) if sweep else list(_in_process), sweep)


def job(composed: Any) -> dict[str, Any]:
    """One cell as Hydra's launchers call it, in this process or another; it never raises a fault.

    Returns:
        `status` (finished, failed, stopped), `exit_code`, `faults`, and `folder` where finished.
    """
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    log_to_stderr()
    status = _status(composed)
    hydra_config = HydraConfig.get()
    if hydra_config.mode is RunMode.MULTIRUN:
        status["overrides"] = list(hydra_config.overrides.task)
        folder = Path(hydra_config.runtime.output_dir)
        (folder / STATUS).write_text(json.dumps(status, indent=1) + "\n", encoding="utf-8")
    _in_process.append(status)
    if status["status"] == "stopped":
        raise SystemExit(status["exit_code"])  # so that a sweep does not go on with its next cell
    return status


def _status(composed: Any) -> dict[str, Any]:
    from lodarepro import compose, pipeline

    try:
        outcome = pipeline.execute(compose.to_run(composed))
        return {"status": "finished", "exit_code": 0, "faults": [], "folder": str(outcome.folder)}
    except LodareproError as e:
        status = "stopped" if isinstance(e, Stopped) else "failed"
        return {"status": status, "exit_code": e.exit_code, "faults": list(e.faults)}
    except Exception as e:  # a bug of ours must not end a sweep
        logger.error("%s", traceback.format_exc())
        fault = f"unexpected {type(e).__name__}: {e} (the traceback is above; please report it)"
        return {"status": "failed", "exit_code": 1, "faults": [fault]}


def _statuses(sweep: Path) -> list[dict[str, Any]]:
    jobs = sorted((path.parent for path in sweep.glob(f"*/{STATUS}")), key=lambda p: int(p.name))
    return [json.loads((folder / STATUS).read_text(encoding="utf-8")) for folder in jobs]


def _conclude(statuses: Sequence[dict[str, Any]], sweep: Path | None) -> int:
    from lodarepro import records
    from lodarepro.report.summary import summary

    found = [records.read(Path(s["folder"])) for s in statuses if s["status"] == "finished"]
    done = [record for record in found if record is not None]
    for status in statuses:
        cell = " ".join(status["overrides"]) + ": " if status.get("overrides") else ""
        for fault in status["faults"]:
            print(f"lodarepro: {cell}{fault}", file=sys.stderr)
    if done:
        print(summary(done))
        print(
            f"\nrecords: {', '.join(dict.fromkeys(str(Path(s['folder']).parent) for s in statuses if 'folder' in s))}"
        )
    if sweep is not None:
        print(f"{len(done)} of {len(statuses)} cells finished")
    return max((int(s["exit_code"]) for s in statuses), default=1)


# the other commands -----------------------------------------------------------------------------


def _decode(arguments: list[str]) -> int:
    from lodarepro import pipeline
    from lodarepro.report.summary import summary

    folders = [Path(a) for a in arguments if "=" not in a]
    overrides = [a for a in arguments if "=" in a]
    if len(folders) != 1:
        raise BadInput("decode needs one RUN folder: lodarepro decode RUN [decode.KEY=VALUE ...]")
    print(summary([pipeline.redecode(folders[0], overrides)]))
    return 0


def _score(arguments: list[str]) -> int:
    from lodarepro import pipeline
    from lodarepro.report.summary import summary

    parser = argparse.ArgumentParser(prog="lodarepro score", description="re-score finished runs")
    parser.add_argument("runs", nargs="+", metavar="RUN", type=Path, help="folder of a finished run")
    parser.add_argument("--json", action="store_true", help="scores with units and signatures")
    given = parser.parse_args(arguments)
    found = [pipeline.rescore(folder) for folder in given.runs]
    if given.json:
        from dataclasses import asdict

        shown = [{"id": r.id, "evaluations": [asdict(e) for e in r.evaluations]} for r in found]
        print(json.dumps(shown, indent=1, ensure_ascii=False))
    else:
        print(summary(found))
    return 0


def _count(arguments: list[str]) -> int:
    from lodarepro import compose
    from lodarepro.cost import count

    (cell,) = compose.cells(arguments)
    counted = count(cell.run.model, cell.run.method)
    print(f"trainable parameters  {counted.trainable:,}")
    print(f"all parameters        {counted.total:,}")
    print(f"MACs a token in q/k/v {counted.qkv_macs:,}")
    return 0


def _data(arguments: list[str]) -> int:
    from lodarepro import compose
    from lodarepro.data import prepare

    if len(arguments) < 2 or arguments[0] != "prepare" or "=" in arguments[1]:
        raise BadInput("data takes: lodarepro data prepare NAME [data.root=FOLDER ...]; e.g. e2e, dart, webnlg, mini")
    (cell,) = compose.cells([f"dataset={arguments[1]}", *arguments[2:]])
    for split in prepare(cell.run.dataset, cell.run.data):
        source = split.source
        content = "the papers' bytes" if source.pinned else "other bytes"
        if source.origin == "embedded":
            content = "the package's"
        counts = f"{len(split.examples):>7,} pairs {len(split.segments):>7,} contexts"
        print(f"{split.name:<6}{counts}  {content:<17}  {source.path}")
    return 0


def _doctor(arguments: list[str]) -> int:
    from lodarepro.doctor import examine

    argparse.ArgumentParser(prog="lodarepro doctor", description="what can run here").parse_args(arguments)
    print(examine())
    return 0


if __name__ == "__main__":
    sys.exit(main())
