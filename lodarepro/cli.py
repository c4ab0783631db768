"""The command line: run, decode, score, count, export, data, doctor."""

from __future__ import annotations

import argparse
import io
import json
import logging
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lodarepro import __version__
from lodarepro.errors import BadInput, LodareproError, Stopped, nearest

if TYPE_CHECKING:
    from lodarepro.cost import Count

logger = logging.getLogger("lodarepro")

INTERRUPTED = 130  # 128 + SIGINT, as shells report it

USAGE = """\
usage: lodarepro COMMAND ...

  run [-m] [KEY=VALUE ...]        train, decode, score and record a cell, or with -m a sweep of them;
                                  lodarepro run --help lists the choices, --cfg job shows every setting;
                                  --method-file FILE brings a method of your own (also decode, count, export)
  decode RUN [decode.KEY=VALUE]   decode a finished run's test set anew, with other settings
  score --hyp FILE --ref FILE     score texts by the official definitions (--suite e2e, webnlg, dart);
                                  lodarepro score --help lists formats, intervals, comparisons
  score RUN ...                   derive finished runs' scores again from their kept hypotheses
  count [--all] [KEY=VALUE ...]   parameters and multiply-accumulates of a cell, or of every method
  export RUN --to peft|hf DIR     write what a finished run trained as an adapter that peft loads, or merged
                                  as a checkpoint that transformers loads
  data prepare NAME [KEY=VALUE]   find or download a dataset, verify and count it
  doctor                          versions, device, Java, caches, disk, network: what can run here

RUN is a folder such as results/runs/e2e_gpt2-medium_lora-r4_lora_s1_0123456789ab.
exit status: 0 done, 1 a run failed, 2 bad input, 130 or 143 stopped (the same command continues)
"""

SCORE_USAGE = """\
lodarepro score [--suite NAME] --hyp FILE --ref FILE [--num-refs N [--raw]] [--subsets FILE]
                       [--confidence] [--segments FILE] [--json]
       lodarepro score --compare A B --ref FILE [...]
       lodarepro score RUN ... [--json]
       lodarepro score --compare RUN RUN [--json]"""

COUNT_HELP = """\
what is counted, of what is kept after training (an MLP that made a prefix is dropped):
  trainable      parameters that train; % of model: of the pretrained model's parameters
  adapter bytes  of the trained tensors in an adapter file, fp32, without its header
  q/k/v MACs     multiply-accumulates a token in all q/k/v projections and what is beside them (LoDA Table 2);
                 merged: with the deltas folded into the weights, where they can be
  all MACs       a token in blocks and output layer
MACs are of matrix products with weights: without attention's products between tokens and element-wise steps.

With --all, a method whose defaults don't fit the model has no row but a line on stderr, and the exit status is 2.
Defaults are those of lodarepro run, tuned settings of the chosen dataset and protocol included.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status; errors are lines on stderr, never a traceback."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a closed one is None
            # Not every locale can print an arrow or a subset's name.
            stream.reconfigure(encoding="utf-8", errors="backslashreplace")
    status, ended = 1, None
    try:
        status = _command(list(sys.argv[1:] if argv is None else argv))
    except BrokenPipeError:
        pass
    except SystemExit as e:  # of argparse, after its help or a fault
        ended = e
    try:
        if sys.stdout is not None:
            sys.stdout.flush()  # at its end the interpreter would complain, in its own words
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as e:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        print(f"lodarepro: standard output can't be written ({e.strerror}); make room", file=sys.stderr)
        return 2
    if ended is not None:
        raise ended
    return status


def _command(arguments: list[str]) -> int:
    commands: dict[str, Callable[[list[str]], int]] = {
        "run": _run,
        "decode": _decode,
        "score": _score,
        "count": _count,
        "export": _export,
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
            raise BadInput(f"'{arguments[0]}': no such command{nearest(arguments[0], commands)}")
        return commands[arguments[0]](arguments[1:])
    except LodareproError as e:
        for fault in e.faults:
            print(f"lodarepro: {fault}", file=sys.stderr)
        return e.exit_code
    except KeyboardInterrupt:
        print("lodarepro: stopped; the same command continues", file=sys.stderr)
        return INTERRUPTED


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

    first = argparse.ArgumentParser(prog="lodarepro run", add_help=False, allow_abbrev=False)
    _add_method_file(first)
    method_file, arguments = first.parse_known_args(arguments)
    own = _own(method_file)
    # Hydra shows the program's name in its help and looks for its arguments in sys.argv.
    sys.argv = ["lodarepro run", *arguments]
    parser = get_args_parser()
    parser.prog = "lodarepro run"
    given = parser.parse_args(arguments)
    informative = given.help or given.hydra_help or given.shell_completion
    if informative:
        compose.register_schemas(own)
    else:
        extra = Path(given.config_dir) if given.config_dir else None
        compose.cells(given.overrides, multirun=given.multirun, extra_folder=extra, own=own)

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


def _add_method_file(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--method-file", metavar="FILE", type=Path, help="a Python file with a method of your own")


def _own(given: argparse.Namespace) -> Any:
    """The method of `--method-file`, or None."""
    from lodarepro import compose

    return None if given.method_file is None else compose.own_method(given.method_file)


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
    _add_method_file(parser)
    given = parser.parse_args(arguments)
    _own(given)  # so that its content is known, wherever the record says that it was
    print(summary([pipeline.redecode(given.run, given.overrides)]))
    return 0


def _score(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="lodarepro score",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="score texts by the official definitions, or finished runs anew from their kept hypotheses",
        usage=SCORE_USAGE,
    )
    parser.add_argument("runs", nargs="*", metavar="RUN", type=Path, help="folder of a finished run")
    parser.add_argument("--suite", metavar="NAME", help="e2e (default), webnlg or dart")
    parser.add_argument("--hyp", metavar="FILE", type=Path, help="hypotheses: one a line, or a CSV/TSV with headers")
    parser.add_argument(
        "--ref",
        metavar="FILE",
        type=Path,
        help="references: one a line, blocks between blank lines, or a CSV/TSV with headers; "
        "with --num-refs the start of the names of N files",
    )
    parser.add_argument("--num-refs", metavar="N", type=int, help="the references are in the files FILE0 to FILE<N-1>")
    parser.add_argument(
        "--raw", action="store_true", help="with --num-refs: the texts are not lower-cased, split and padded yet"
    )
    parser.add_argument("--subsets", metavar="FILE", type=Path, help="a label a line; each is scored alone too")
    parser.add_argument("--compare", metavar=("A", "B"), nargs=2, type=Path, help="two hypothesis files, or two runs")
    parser.add_argument("--confidence", action="store_true", help="95 %% intervals by the bootstrap over segments")
    parser.add_argument("--resamples", metavar="N", type=int, help="of the bootstrap (1000)")
    parser.add_argument("--seed", metavar="N", type=int, help="of the bootstrap (12345)")
    parser.add_argument("--segments", metavar="FILE", type=Path, help="write each segment's values there, as TSV")
    parser.add_argument("--json", action="store_true", help="one object instead of a table")
    given = parser.parse_args(arguments)
    if given.runs or (given.compare and all(map(_is_folder, given.compare))):
        return _score_runs(given)
    return _score_texts(given)


def _score_runs(given: argparse.Namespace) -> int:
    """`lodarepro score RUN...` and `lodarepro score --compare RUN RUN`."""
    from lodarepro import records
    from lodarepro.report import scores as shown
    from lodarepro.report.summary import summary
    from lodarepro.rescore import compare_runs, rescore

    unfit = ["suite", "hyp", "ref", "num_refs", "raw", "subsets", "segments", "confidence"]
    unfit += ["runs"] if given.compare else ["resamples", "seed"]
    _refuse(given, unfit, "two runs to compare" if given.compare else "runs")
    if given.compare:
        found = compare_runs(given.compare[0], given.compare[1], **_bootstrap(given))
        suite = records.finished(given.compare[0]).config["dataset"]["suite"]
        _show(given, shown.comparison_as_json(suite, found), shown.comparison_table(suite, found))
        return 0
    rescored = [rescore(folder) for folder in given.runs]
    evaluations = [{"id": r.id, "evaluations": [asdict(e) for e in r.evaluations]} for r in rescored]
    _show(given, {"runs": evaluations}, summary(rescored))
    return 0


def _score_texts(given: argparse.Namespace) -> int:
    """`lodarepro score --hyp FILE --ref FILE` and `lodarepro score --compare FILE FILE --ref FILE`."""
    from lodarepro import metrics
    from lodarepro.files import write_atomically
    from lodarepro.metrics import reading
    from lodarepro.report import scores as shown

    if given.compare and not given.ref:
        raise BadInput(
            f"{given.compare[0]} and {given.compare[1]} aren't two folders of runs; to compare two files of "
            "hypotheses, give --ref FILE"
        )
    if not given.ref or not (given.hyp or given.compare):
        raise BadInput(
            "nothing to score: give --hyp FILE --ref FILE, or folders of finished runs (lodarepro score --help)"
        )
    if given.compare:
        _refuse(given, ["hyp", "segments", "confidence"], "two files to compare")
    elif not given.confidence:
        _refuse(given, ["resamples", "seed"], "scores without --confidence")
    if given.raw and given.num_refs is None:
        raise BadInput("--raw says what the files of --num-refs hold; other references are raw anyway")
    if given.segments and _is_folder(given.segments):
        raise BadInput(f"{given.segments}: a folder: name a file in it")
    suite = "e2e" if given.suite is None else given.suite
    if suite not in metrics.SUITES:  # before files are read for it
        raise BadInput(f"--suite {suite}: no such suite{nearest(suite, metrics.SUITES)}")
    resampling = _bootstrap(given)
    subsets = reading.read_labels(given.subsets) if given.subsets else None

    def measured(texts: list[str], references: list[list[str]]) -> metrics.Measurement:
        if subsets is not None and len(subsets) != len(texts):
            raise BadInput(
                f"{given.subsets} has {len(subsets)} labels for {len(texts)} segments: give one a line, a blank line "
                "for a segment of no subset"
            )
        return metrics.measure(texts, references, suite, subsets)

    def read(hypotheses: Path) -> tuple[list[str], list[list[str]]]:
        if given.num_refs is None:
            return reading.read_e2e(hypotheses, given.ref)
        texts, references = reading.read_parallel(hypotheses, given.ref, given.num_refs, raw=given.raw)
        if empty := sum(not text for segment in references for text in segment):
            logger.warning("%d empty references count as such, as in GenerationEval; --raw leaves them out", empty)
        return texts, references

    if given.compare:
        (of_a, references), (of_b, other) = map(read, given.compare)
        if len(of_a) != len(of_b):
            raise BadInput(
                f"{given.compare[0]} has {len(of_a)} hypotheses, {given.compare[1]} has {len(of_b)}: "
                "give both for the same segments"
            )
        if references != other:  # tables bring their own order of the segments
            raise BadInput(
                f"{given.compare[0]} and {given.compare[1]} are not in the same order: sort one as the other"
            )
        a, b = measured(of_a, references), measured(of_b, references)
        found = metrics.compare(a, b, **resampling)
        _show(given, shown.comparison_as_json(suite, found), shown.comparison_table(suite, found))
        return 0
    measurement = measured(*read(given.hyp))
    intervals = metrics.intervals(measurement, **resampling) if given.confidence else None
    scores = measurement.scores(intervals=intervals)
    if given.segments:
        try:
            write_atomically(given.segments, shown.segments_table(measurement).encode())
        except OSError as e:
            raise BadInput(f"{given.segments}: can't be written ({e.strerror}); give another file") from None
    _show(given, shown.as_json(scores), shown.table(scores))
    return 0


def _bootstrap(given: argparse.Namespace) -> dict[str, int]:
    from lodarepro.metrics import bootstrap

    samples = bootstrap.SAMPLES if given.resamples is None else given.resamples
    seed = bootstrap.SEED if given.seed is None else given.seed
    bootstrap.check(samples, seed)  # before what takes time
    return {"samples": samples, "seed": seed}


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except OSError:  # a name too long, a folder that may not be searched: who opens it says so
        return False


def _refuse(given: argparse.Namespace, options: Sequence[str], what: str) -> None:
    """Options that would be passed over in silence are bad input."""
    values = {option: getattr(given, option) for option in options}
    # 0 is a value that was given, though equal to False.
    found = [option for option, value in values.items() if value is not None and value is not False and value != []]
    if found:
        names = ", ".join("RUN" if option == "runs" else f"--{option.replace('_', '-')}" for option in found)
        raise BadInput(f"{names}: means nothing for {what}; leave it out (lodarepro score --help)")


def _show(given: argparse.Namespace, tree: Any, text: str) -> None:
    print(json.dumps(tree, indent=1, ensure_ascii=False, allow_nan=False) if given.json else text)


def _count(arguments: list[str]) -> int:
    from lodarepro import compose
    from lodarepro.config import METHODS
    from lodarepro.cost import count

    parser = argparse.ArgumentParser(
        prog="lodarepro count",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="size and cost of a cell, or of every method on its model; without weights or data",
        epilog=COUNT_HELP,
    )
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="as for lodarepro run")
    parser.add_argument("--all", action="store_true", help="a row for every method, each at its defaults")
    parser.add_argument("--json", action="store_true", help="an object instead of a table; with --all a list of them")
    _add_method_file(parser)
    given = parser.parse_args(arguments)
    own = _own(given)
    if not given.all:
        (cell,) = compose.cells(given.overrides, own=own)
        counted = _counted(cell.run.model.name, cell.run.method, count(cell.run.model, cell.run.method))
        _show(given, counted, _counts_table([counted]))
        return 0
    if odd := [text for text in given.overrides if text.lstrip("+~").partition("=")[0].split(".")[0] == "method"]:
        raise BadInput(f"{odd[0]}: --all counts every method at its defaults; leave one of the two out")
    compose.cells(given.overrides, own=own)  # what is wrong whatever the method is said once
    rows, faults = [], []
    for name in [*METHODS, *([] if own is None else [own.name])]:
        try:
            (cell,) = compose.cells([*given.overrides, f"method={name}"], own=own)
        except BadInput as e:
            faults += [f"method={name}: {fault}" for fault in e.faults]
        else:
            rows.append(_counted(cell.run.model.name, cell.run.method, count(cell.run.model, cell.run.method)))
    _show(given, rows, _counts_table(rows))
    if faults:
        raise BadInput(faults)
    return 0


def _counted(model: str, method: Any, count: Count) -> dict[str, Any]:
    """A row of `lodarepro count` as JSON has it."""
    row = {
        "model": model,
        "method": method.name,
        "rank": getattr(method, "rank", None),
        "trainable": count.trainable,
        "trainable_per_cent": round(count.share, 4),
        "adapter_bytes": count.adapter_bytes,
        "qkv_macs_per_token": count.qkv_macs,
        "macs_per_token": count.macs,
    }
    return row if count.qkv_macs_merged is None else {**row, "qkv_macs_per_token_merged": count.qkv_macs_merged}


def _counts_table(rows: Sequence[dict[str, Any]]) -> str:
    from lodarepro.report.summary import markdown

    columns = {
        "model": "model",
        "method": "method",
        "rank": "rank",
        "trainable": "trainable",
        "trainable_per_cent": "% of model",
        "adapter_bytes": "adapter bytes",
        "qkv_macs_per_token": "q/k/v MACs",
        "qkv_macs_per_token_merged": "merged",
        "macs_per_token": "all MACs",
    }

    def cell(value: Any) -> str:
        if isinstance(value, float):
            return f"{value:.4f}"
        return "" if value is None else f"{value:,}" if isinstance(value, int) else value

    return markdown([[*columns.values()], *([cell(row.get(key)) for key in columns] for row in rows)])


def _export(arguments: list[str]) -> int:
    from lodarepro.export import FORMS, export

    parser = argparse.ArgumentParser(prog="lodarepro export", description="write a finished run for another tool")
    parser.add_argument("run", metavar="RUN", type=Path, help="folder of a finished run")
    parser.add_argument("--to", required=True, choices=sorted(FORMS), help="an adapter of peft's; a merged checkpoint")
    parser.add_argument("folder", metavar="DIR", type=Path, help="where to; not there yet, or empty")
    parser.add_argument("overrides", nargs="*", metavar="model.path=FOLDER", help="where the base model is here")
    _add_method_file(parser)
    given = parser.parse_intermixed_args(arguments)
    _own(given)
    export(given.run, given.to, given.folder, given.overrides)
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
