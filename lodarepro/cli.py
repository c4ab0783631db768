"""The command line: run, decode, score, count, data, doctor."""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from lodarepro import __version__
from lodarepro.errors import BadInput, LodareproError, Stopped

logger = logging.getLogger("lodarepro")

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

    os.environ["HYDRA_FULL_ERROR"] = "1"  # let its errors reach the lines below
    _in_process.clear()
    try:
        hydra.main(version_base="1.3", config_path=str(compose.config_folder()), config_name=compose.PRIMARY)(job)()
    except compose.UNFIT as e:
        raise compose.fault_of(e) from None
    except SystemExit as e:
        if not _in_process:  # Hydra's own: after its help, or an error that it has told
            return int(e.code or 0)
        # Else a job that was told to stop, and a sweep's other cells with it.
    except OSError as e:
        raise BadInput(f"{e.filename}: can't be written ({e.strerror}); give results.root=FOLDER") from None
    if informative or given.cfg or given.info:
        return 0
    if given.multirun and (folder := compose.SweepFolder.latest) is not None:
        return _conclude(_statuses(folder), sweep=True)
    return _conclude(list(_in_process), sweep=False)


def job(composed: Any) -> dict[str, Any]:
    """One cell as Hydra's launchers call it, in this process or another; it never raises a fault.

    Returns:
        `exit_code`, `faults`, `stopped` (an exit code where a signal asked to stop, else None), and
        `folder` where the run is finished.
    """
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    from lodarepro import compose

    log_to_stderr()
    status = _status(composed)
    hydra_config = HydraConfig.get()
    if hydra_config.mode is RunMode.MULTIRUN:
        status |= {"overrides": list(hydra_config.overrides.task), "number": hydra_config.job.num}
        path = Path(hydra_config.runtime.output_dir) / compose.STATUS
        path.write_text(json.dumps(status, indent=1) + "\n", encoding="utf-8")
    _in_process.append(status)
    if status["stopped"]:
        raise SystemExit(status["stopped"])  # so that a sweep does not go on with its next cell
    return status


def _status(composed: Any) -> dict[str, Any]:
    from lodarepro import compose, pipeline

    status: dict[str, Any] = {"exit_code": 0, "faults": [], "stopped": None}
    try:
        outcome = pipeline.execute(compose.to_run(composed))
        return {**status, "folder": str(outcome.folder), "stopped": outcome.stopped}
    except LodareproError as e:
        stopped = e.exit_code if isinstance(e, Stopped) else None
        return {**status, "exit_code": e.exit_code, "faults": list(e.faults), "stopped": stopped}
    except Exception as e:  # a bug of ours must not end a sweep
        logger.error("%s", traceback.format_exc())
        fault = f"unexpected {type(e).__name__}: {e} (the traceback is above; please report it)"
        return {**status, "exit_code": 1, "faults": [fault]}


def _statuses(sweep: Path) -> list[dict[str, Any]]:
    from lodarepro import compose

    found = [json.loads(path.read_text(encoding="utf-8")) for path in sweep.rglob(compose.STATUS)]
    return sorted(found, key=lambda status: int(status["number"]))


def _conclude(statuses: Sequence[dict[str, Any]], *, sweep: bool) -> int:
    from lodarepro import records
    from lodarepro.report.summary import summary

    folders = [Path(status["folder"]) for status in statuses if "folder" in status]
    done = [record for record in map(records.read, folders) if record is not None]
    for status in statuses:
        cell = " ".join(status["overrides"]) + ": " if sweep else ""
        for fault in status["faults"]:
            print(f"lodarepro: {cell}{fault}", file=sys.stderr)
    if done:
        print(summary(done))
        print(f"\nrecords: {', '.join(dict.fromkeys(str(folder.parent) for folder in folders))}")
    if sweep:
        print(f"{len(done)} of {len(statuses)} cells finished")
    codes = [int(status["exit_code"]) for status in statuses]
    return max([*codes, *(int(status["stopped"] or 0) for status in statuses if sweep)], default=1)


# the other commands -----------------------------------------------------------------------------


def _decode(arguments: list[str]) -> int:
    from lodarepro import pipeline
    from lodarepro.report.summary import summary

    parser = argparse.ArgumentParser(prog="lodarepro decode", description="decode a finished run anew")
    parser.add_argument("run", metavar="RUN", type=Path, help="folder of a finished run")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="decode.*, model.path, data.*, runtime.*")
    given = parser.parse_args(arguments)
    print(summary([pipeline.redecode(given.run, given.overrides)]))
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

    parser = argparse.ArgumentParser(prog="lodarepro count", description="size and cost of a cell")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="as for lodarepro run")
    (cell,) = compose.cells(parser.parse_args(arguments).overrides)
    counted = count(cell.run.model, cell.run.method)
    print(f"trainable parameters  {counted.trainable:,}")
    print(f"all parameters        {counted.total:,}")
    print(f"MACs a token in q/k/v {counted.qkv_macs:,}")
    return 0


def _data(arguments: list[str]) -> int:
    from lodarepro import compose
    from lodarepro.data import prepare

    parser = argparse.ArgumentParser(prog="lodarepro data", description="find or download, verify and count")
    parser.add_argument("action", choices=["prepare"])
    parser.add_argument("name", metavar="NAME", help="e2e, dart, webnlg or mini")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="data.root=FOLDER and the like")
    given = parser.parse_args(arguments)
    (cell,) = compose.cells([f"dataset={given.name}", *given.overrides])
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
