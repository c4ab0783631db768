"""The command line: run, table, report, analyze, plan, decode, score, count, export, data, doctor."""

from __future__ import annotations

import argparse
import errno
import io
import json
import logging
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lodarepro import __version__
from lodarepro.errors import BadInput, LodareproError, nearest
from lodarepro.log import log_to_stderr

if TYPE_CHECKING:
    from lodarepro import config, launch, plan
    from lodarepro.archive import Archive
    from lodarepro.cost import Count
    from lodarepro.findings import Findings
    from lodarepro.report.aggregate import Counts, FilledTable
    from lodarepro.tables import Row, Table

logger = logging.getLogger("lodarepro")

INTERRUPTED = 130  # 128 + SIGINT, as shells report it

USAGE = """\
usage: lodarepro COMMAND ...

  run [-m] [KEY=VALUE ...]        train, decode, score and record a cell, or with -m a sweep of them;
                                  lodarepro run --help lists the choices, --cfg job shows every setting;
                                  --method-file FILE brings a method of your own, to this and other commands
  table NAME ... [--run]          a paper's table from the records, beside its print; --run does what is missing,
                                  --check gives verdicts; lodarepro table --help
  report [NAME ...]               one page to look at: tables beside print, figures, texts side by side, provenance
  analyze NAME ...                what is behind the tables, each with its paper's figure: latency, energy, subspace,
                                  amplification, errors; lodarepro analyze --help
  plan NAME ... | [KEY=VALUE ...] what a table's or a sweep's cells will cost: tokens, operations, memory, hours
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

ANALYZE_USAGE = """\
usage: lodarepro analyze NAME ...

  latency [KEY=VALUE ...]         time of methods beside their multiply-accumulates: forward passes, the q/k/v
                                  projection, decoding (LoRA Table 1, Figure 5; LoDA Table 2)
  energy [KEY=VALUE ...]          what low-rank and sparse projections keep, and the best rank or share for each block
                                  (LoDA Figure 2)
  subspace RUN RUN                the directions that two runs share (LoRA Figures 3, 4, 6, 7)
  amplification RUN ...           what runs amplify in the pretrained weights, and how far from linear a delta is
                                  (LoRA Table 7, Figure 8)
  errors RUN ...                  facts that texts lose, make up or get wrong (E2E); scores by category and number of
                                  triples (WebNLG, DART)

Each has --help, and writes data (JSON, CSV), Markdown and figures (PNG, SVG) to <results.root>/analyses/; lodarepro
report shows them all.
"""

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
    except OSError as e:
        if e.filename is not None or e.errno != errno.ENOSPC:
            raise
        return _unwritten(e)  # by a print of more than is buffered
    try:
        if sys.stdout is not None:
            sys.stdout.flush()  # at its end the interpreter would complain, in its own words
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as e:
        return _unwritten(e)
    if ended is not None:
        raise ended
    return status


def _unwritten(e: OSError) -> int:
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    print(f"lodarepro: standard output can't be written ({e.strerror}); make room", file=sys.stderr)
    return 2


def _command(arguments: list[str]) -> int:
    commands: dict[str, Callable[[list[str]], int]] = {
        "run": _run,
        "table": _table,
        "report": _report,
        "analyze": _analyze,
        "plan": _plan,
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
        if arguments[0] != "run" and int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise BadInput(
                f"torchrun's processes share one run; give it lodarepro run, or leave it out for {arguments[0]}"
            )
        return commands[arguments[0]](arguments[1:])
    except LodareproError as e:
        for fault in e.faults:
            print(f"lodarepro: {fault}", file=sys.stderr)
        return e.exit_code
    except KeyboardInterrupt:
        print("lodarepro: stopped; the same command continues", file=sys.stderr)
        return INTERRUPTED


# run --------------------------------------------------------------------------------------------


def _run(arguments: list[str]) -> int:
    import hydra
    from hydra._internal.utils import get_args_parser

    from lodarepro import compose, launch

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
    extra = Path(given.config_dir) if given.config_dir else None
    if informative:
        compose.register_schemas(own)
    else:
        cells = compose.cells(given.overrides, multirun=given.multirun, extra_folder=extra, own=own)

    os.environ["HYDRA_FULL_ERROR"] = "1"  # let its errors reach the lines below
    main_of_hydra = hydra.main(
        version_base="1.3", config_path=str(compose.config_folder()), config_name=compose.PRIMARY
    )
    launch.started_here()
    if not given.multirun or informative or given.cfg or given.info:
        ended = _with_lines_for_faults(main_of_hydra(launch.job))
        if informative or given.cfg or given.info:
            return 0
        if int(os.environ.get("RANK", "0")):  # one of torchrun's processes, of which the first tells
            return max(ended, _exit_code(launch.ended_here, nothing=1))
        return max(ended, _conclude(launch.ended_here, sweep=False))

    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise BadInput("torchrun's processes share one run; leave out -m, or torchrun")
    if launch.check_launcher(given.overrides):
        _fetch([cell.run for cell in cells])
    total = None if _chooses_sweeper(given.overrides) else len(cells)
    folder = partial(getattr, launch.SweepFolder, "latest")
    launch.SweepFolder.latest = None
    ended = _swept(
        main_of_hydra(launch.job),
        lambda: _settle(given.overrides, folder(), extra),
        total=total,
        folder=folder,
        overrides=given.overrides,
    )
    return ended if folder() is None else max(ended, _conclude(launch.concluded(folder()), sweep=True, total=total))


def _chooses_sweeper(overrides: Sequence[str]) -> bool:
    """Whether a sweeper of the user's decides how many cells there are."""
    return any(text.partition("=")[0] == "hydra/sweeper" for text in overrides)


def _swept(
    first: Callable[[], Any],
    then: Callable[[], Any],
    *,
    total: int | None,
    folder: Callable[[], Path | None],
    overrides: Sequence[str],
) -> int:
    """Do the cells of a sweep, shown while they are done: a first pass, then what other processes held meanwhile.

    Returns:
        The exit status of what ended it before its cells did, or 0.
    """
    from lodarepro import launch

    with launch.shown(total, folder), launch.stopping_workers(overrides, folder) as stopped:
        ended = _with_lines_for_faults(first)
        if folder() is not None and not ended:
            ended = _with_lines_for_faults(then)
    return max(ended, stopped())


def _with_lines_for_faults(work: Callable[[], Any]) -> int:
    """Let Hydra work; its own errors become lines. The exit status of its own end, or of a stop; else 0."""
    from lodarepro import compose

    try:
        work()
    except LodareproError:
        raise
    except compose.UNFIT as e:
        raise compose.fault_of(e) from None
    except SystemExit as e:  # Hydra's own, after its help, or a job's that was told to stop with all after it
        return int(e.code or 0)
    except OSError as e:
        where = e.filename or "the results"
        raise BadInput(f"{where}: can't be written ({e.strerror or e}); give results.root=FOLDER") from None
    except Exception as e:  # of a launcher whose workers or jobs went away; each cell's status says how far it came
        said = (str(e).splitlines() or [""])[0]
        print(f"lodarepro: the launcher gave up ({type(e).__name__}: {said}); what is done is kept", file=sys.stderr)
        return 1
    return 0


def _settle(overrides: Sequence[str], folder: Path, extra_folder: Path | None) -> None:
    """Do what other processes held when a sweep came to it, by the same launcher."""
    from lodarepro import compose, launch

    own = [text for text in overrides if text.lstrip("+").startswith("hydra")] + compose.searched(extra_folder)
    again: list[launch.Sweep] = []

    def launched(cells: list[tuple[str, ...]]) -> None:
        if not again:
            again.append(launch.Sweep(own, folder=folder))
        again[0].launch(cells)

    launch.settle(folder, launched)


def _add_method_file(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--method-file", metavar="FILE", type=Path, help="a Python file with a method of your own")


def _own(given: argparse.Namespace) -> Any:
    """The method of `--method-file`, or None."""
    from lodarepro import compose

    return None if given.method_file is None else compose.own_method(given.method_file)


def _conclude(statuses: Sequence[launch.Status], *, sweep: bool, total: int | None = None) -> int:
    from lodarepro import records
    from lodarepro.report.summary import summary

    folders = [Path(status.folder) for status in statuses if status.folder]
    done = [record for record in map(records.read, folders) if record is not None]
    _tell_faults(statuses, sweep=sweep)
    if done:
        print(summary(done))
        print(f"\nrecords: {', '.join(dict.fromkeys(str(folder.parent) for folder in folders))}")
    if sweep:
        print(f"{len(done)} of {len(statuses) if total is None else total} cells finished")
    return _exit_code(statuses, nothing=1)


def _tell_faults(statuses: Sequence[launch.Status], *, sweep: bool) -> None:
    """The faults of all cells, each once with the cells that have it."""
    from lodarepro.launch import own_texts

    cells: dict[str, list[str]] = {}
    for status, cell in zip(statuses, own_texts(statuses), strict=True):
        for fault in status.faults:
            cells.setdefault(fault, []).append(cell)
    for fault, found in cells.items():
        where = "; ".join(filter(None, found))
        if len(found) > 1:
            where = f"{len(found)} cells ({where})"
        print(f"lodarepro: {where + ': ' if sweep and where else ''}{fault}", file=sys.stderr)


def _exit_code(statuses: Sequence[launch.Status], *, nothing: int) -> int:
    """The worst of all cells; `nothing`: where there are none."""
    return max((status.exit_code for status in statuses), default=nothing)


# tables -----------------------------------------------------------------------------------------


def _table(arguments: list[str]) -> int:
    from lodarepro import tables
    from lodarepro.archive import Archive
    from lodarepro.report import aggregate
    from lodarepro.report import table as shown

    parser = argparse.ArgumentParser(
        prog="lodarepro table",
        description="a table of a paper from the records of runs, beside what is printed; written as Markdown, LaTeX, "
        "CSV and JSON to <results.root>/tables/",
        epilog=f"tables: {', '.join(tables.names())}; or a YAML file of the same form. Exit status: 0 done; with "
        "--check 1 unless every printed cell is within print or within reruns; with --run 1 where a cell failed.",
    )
    _add_table_arguments(parser)
    parser.add_argument("--run", action="store_true", help="first do the cells that are missing, and only those")
    parser.add_argument("--check", action="store_true", help="a verdict for each printed cell")
    parser.add_argument(
        "--significance", action="store_true", help="test each mean against the best of its group (from the kept texts)"
    )
    parser.add_argument("--json", action="store_true", help="print the JSON form instead of the table")
    given = parser.parse_intermixed_args(arguments)
    own = _own(given)
    names, places = _names_and_overrides(given.words)
    if not names:
        raise BadInput(f"which table? (valid: {', '.join(tables.names())}, or a YAML file)")
    found = [tables.read(name, places=places, seeds=given.seeds, own=own) for name in names]
    for table in found:
        aggregate.columns(table)  # whether there is anything to show in them is said before anything runs
    status = 0
    for table in found:
        if given.run and (code := _run_table(table, places, quiet=given.json)):
            status = max(status, code)
            if code > 2:  # stopped: so is what comes after
                return code
    root = _results_root(found[0].rows[0].run)  # of all of them: where results are is no part of a table
    archive = Archive(root)
    trees = []
    for table in found:
        filled = _filled_table(table, archive)
        if given.significance:
            filled = aggregate.with_significance(filled, root)
        _write_table(filled, check=given.check)
        if given.check:
            counted = shown.verdicts(filled)
            bad = counted["outside"] + counted[shown.NOT_RUN] + counted[shown.FAILED]
            status = max(status, int(bad > 0))
        if given.json:
            trees.append(shown.as_tree(filled))
            continue
        print(shown.markdown(filled, check=given.check), end="")
        if given.check:
            print("\n" + ", ".join(f"{count} {verdict}" for verdict, count in counted.items()))
        print(f"\nwritten to {_tables_folder(table) / table.name}.md, .tex, .csv and .json")
    if given.json:
        _show(given, trees[0] if len(trees) == 1 else trees, "")
    return status


def _report(arguments: list[str]) -> int:
    from lodarepro import compose, findings, report, tables
    from lodarepro.archive import Archive
    from lodarepro.records import check_whole

    parser = argparse.ArgumentParser(
        prog="lodarepro report",
        description="one self-contained page from the records of runs: tables beside print, figures, what each method "
        "wrote side by side, and every number's provenance; written to <results.root>/report/index.html, the figures "
        "as PNG and SVG to <results.root>/report/figures/",
        epilog=f"tables: {', '.join(tables.names())}; or a YAML file of the same form. Without any, all those that "
        "there are runs for.",
    )
    _add_table_arguments(parser)
    given = parser.parse_intermixed_args(arguments)
    own = _own(given)
    names, places = _names_and_overrides(given.words)
    (any_cell,) = compose.cells([text for text in places if not text.startswith("hydra")])
    root = _results_root(any_cell.run)
    archive = Archive(root)
    analyses = findings.all_below(root)
    if not archive.finished and not analyses:
        raise BadInput(
            f"{root} holds no finished run and no analysis: make some (lodarepro run, or make demo), or say with "
            "results.root=FOLDER where they are"
        )
    for record in archive.finished:
        check_whole(record)
    wanted = names or tables.names_of({record.config["dataset"]["name"] for record in archive.finished})
    found = [tables.read(name, places=places, seeds=given.seeds, own=own) for name in wanted]
    filled = [_filled_table(table, archive) for table in found]
    if not names:
        filled = [table for table in filled if any(row.records for row in table.rows)]
    page = report.write(filled, archive, analyses, root)
    print(f"report: {page} (figures as PNG and SVG in {page.parent / 'figures'})")
    return 0


def _add_table_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "words",
        nargs="*",
        metavar="NAME | KEY=VALUE",
        help="tables, and overrides for all their cells (data.*, results.*, runtime.*, logger, model.path, hydra.*)",
    )
    parser.add_argument(
        "--seeds", metavar="N,N,...", type=_seeds, help="one run each, instead of the table's own (usually 1,2,3)"
    )
    _add_method_file(parser)


def _seeds(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"'{text}' is no list of whole numbers such as 1,2,3") from None


def _names_and_overrides(words: Sequence[str]) -> tuple[list[str], list[str]]:
    return [w for w in words if "=" not in w], [w for w in words if "=" in w]


def _results_root(run: config.Run) -> Path:
    return Path(run.results.root).expanduser()


def _tables_folder(table: Table) -> Path:
    return _results_root(table.rows[0].run) / "tables"


def _filled_table(table: Table, archive: Archive) -> FilledTable:
    from lodarepro import tables
    from lodarepro.report import aggregate

    return aggregate.fill(table, archive, _counts(table, archive), tables.reruns())


def _counts(table: Table, archive: Archive) -> dict[str, Counts]:
    """What counting gives for each row; where a finished run says it, torch need not be imported."""
    from lodarepro.report.aggregate import Counts

    found = {}
    for key, row in table.keyed_rows:
        run = archive.find(row.run)
        if run and not row.macs:
            found[key] = Counts(run[0].record.parameters["trainable"], ())
            continue
        from lodarepro.cost import count

        counted = count(row.run.model, row.run.method)
        merged = () if counted.qkv_macs_merged is None else (counted.qkv_macs_merged,)
        found[key] = Counts(counted.trainable, (*merged, counted.qkv_macs))
    return found


def _write_table(filled: FilledTable, *, check: bool) -> None:
    from lodarepro import records
    from lodarepro.files import write_atomically
    from lodarepro.report import table as shown

    folder = _tables_folder(filled.table)
    with records.disk_faults(folder):
        folder.mkdir(parents=True, exist_ok=True)
        for ending, text in {
            "md": shown.markdown(filled, check=check),
            "tex": shown.latex(filled, check=check),
            "csv": shown.as_csv(filled),
            "json": shown.as_json(filled),
        }.items():
            write_atomically(folder / f"{filled.table.name}.{ending}", text.encode())


def _run_table(table: Table, places: Sequence[str], *, quiet: bool) -> int:
    """Do the cells of a table that are missing; the exit status is that of the worst of them."""
    from lodarepro import launch, plan
    from lodarepro.archive import Archive

    archive = Archive(_results_root(table.rows[0].run))
    missing = _missing(table, archive)
    if not missing:
        logger.info("%s: no cell is missing", table.name)
        return 0
    hydras = [text for text in places if text.startswith("hydra")]
    local = [text for text in places if text not in hydras]
    elsewhere = launch.check_launcher(hydras) == "elsewhere"
    launch.started_here()
    sweep = launch.Sweep([*hydras, *(text for text in local if text.startswith("results."))])
    _fetch([run for _, run in missing])
    if planned := [cell for cell in _asked(table, archive, set()) if cell.todo]:
        text = plan.report(plan.plan(planned, measure=not elsewhere))
        print(text, end="\n\n", flush=True, file=sys.stderr if quiet else sys.stdout)
    cells = [(*row.overrides, *local, f"seed={run.seed}") for row, run in missing]
    ended = _swept(
        lambda: sweep.launch(cells),
        lambda: launch.settle(sweep.folder, sweep.launch),
        total=len(cells),
        folder=lambda: sweep.folder,
        overrides=hydras,
    )
    # Of a sweep that was stopped, the cells that were not started are no failures.
    statuses = launch.concluded(sweep.folder, [] if ended > 2 else cells)
    _tell_faults(statuses, sweep=True)
    done = sum(status.state == "finished" for status in statuses)
    logger.info("%s: %d of %d missing cells finished", table.name, done, len(cells))
    return max(ended, _exit_code(statuses, nothing=0))


def _missing(table: Table, archive: Archive) -> list[tuple[Row, config.Run]]:
    return [(row, run) for row in table.rows for run in row.cells(table.seeds) if not archive.find(run)]


def _fetch(runs: Sequence[config.Run]) -> None:
    """Find or fetch weights and data once, before many cells need them, and say what is out of reach."""
    from lodarepro import pipeline
    from lodarepro.data import SPLITS
    from lodarepro.data.sources import locate

    checked, faults = set(), []
    for run in runs:
        key = repr((run.model, run.dataset, run.data))
        if key in checked:
            continue
        checked.add(key)
        try:
            pipeline.check_reachable(run)
            for split in SPLITS:
                locate(run.dataset, run.data, split)
        except BadInput as e:
            faults += [fault for fault in e.faults if fault not in faults]
    if faults:
        raise BadInput(faults)


def _asked(table: Table, archive: Archive, counted: set[str]) -> list[plan.Asked]:
    """The rows of a table as a plan takes them; what failed before is left only with `runtime.retry`.

    Args:
        table: whose rows.
        archive: what is done and what failed.
        counted: cells to leave out, as they stand in another table; those of this one are added.
    """
    from lodarepro import compose
    from lodarepro.provenance import canonical_json

    found = []
    for label, row in table.keyed_rows:
        identities = {canonical_json(compose.identity(run, {})): run for run in row.cells(table.seeds)}
        runs = [run for key, run in identities.items() if key not in counted]
        counted |= identities.keys()
        found.append(_asked_of(label, row.run, runs, archive))
    return found


def _asked_of(label: str, described: config.Run, runs: Sequence[config.Run], archive: Archive) -> plan.Asked:
    """Runs that differ in their seeds alone, as a plan takes them."""
    from lodarepro import plan

    done = sum(bool(archive.find(run)) for run in runs)
    failed = sum(archive.failure(run) is not None and not run.runtime.retry for run in runs)
    return plan.Asked(label, described, len(runs) - done - failed, done)


def _plan(arguments: list[str]) -> int:
    from lodarepro import compose, plan, tables
    from lodarepro.archive import Archive

    parser = argparse.ArgumentParser(
        prog="lodarepro plan",
        description="what the cells of tables, or of a run or sweep, will cost; what is done is left out. The rate is "
        "measured on this machine by a few steps on random weights, or stated. No data or weights are needed.",
        epilog=f"tables: {', '.join(tables.names())}; GPUs: {', '.join(plan.GPUS)}",
    )
    _add_table_arguments(parser)
    parser.add_argument("--gpu", metavar="NAME", help="reckon with a share of this GPU's peak instead of measuring")
    parser.add_argument(
        "--utilisation", metavar="X", type=float, help=f"that share, with --gpu (assumed: {plan.UTILISATION})"
    )
    parser.add_argument("--json", action="store_true", help="a list of objects instead of a table")
    given = parser.parse_intermixed_args(arguments)
    own = _own(given)
    if given.utilisation is not None and not given.gpu:
        raise BadInput("--utilisation: means nothing for a measured rate; name a GPU with --gpu")
    names, overrides = _names_and_overrides(given.words)
    asked: list[plan.Asked] = []
    if names:
        counted: set[str] = set()  # tables share cells
        for name in names:
            table = tables.read(name, places=overrides, seeds=given.seeds, own=own)
            asked += _asked(table, Archive(_results_root(table.rows[0].run)), counted)
    else:
        if given.seeds:
            overrides = [*overrides, f"seed={','.join(map(str, given.seeds))}"]
        cells = compose.cells(overrides, multirun=True, own=own)
        archive = Archive(_results_root(cells[0].run))
        for cell in cells:
            asked.append(_asked_of(" ".join(cell.overrides) or "defaults", cell.run, [cell.run], archive))
    utilisation = plan.UTILISATION if given.utilisation is None else given.utilisation
    planned = plan.plan(asked, gpu=given.gpu, utilisation=utilisation)
    _show(given, plan.as_json(planned), plan.report(planned))
    return 0


# analyses ---------------------------------------------------------------------------------------


def _analyze(arguments: list[str]) -> int:
    from lodarepro.report import analyses as shown

    commands: dict[str, Callable[[argparse.ArgumentParser, list[str]], tuple[argparse.Namespace, Findings, Path]]] = {
        "latency": _latency,
        "energy": _energy,
        "subspace": _subspace,
        "amplification": _amplification,
        "errors": _errors,
    }
    if not arguments or arguments[0] in ("-h", "--help"):
        print(ANALYZE_USAGE, end="")
        return 0 if arguments else 2
    name = arguments[0]
    if name not in commands:
        raise BadInput(f"'{name}': no such analysis{nearest(name, commands)}")
    parser = argparse.ArgumentParser(prog=f"lodarepro analyze {name}", allow_abbrev=False)
    parser.add_argument("--json", action="store_true", help="print all figures as one object instead of tables")
    _add_method_file(parser)
    given, found, root = commands[name](parser, arguments[1:])
    folder = shown.write(found, root)
    _show(given, asdict(found), f"{shown.markdown(found)}\nwritten to {folder}")
    return 0


def _latency(parser: argparse.ArgumentParser, arguments: list[str]) -> tuple[argparse.Namespace, Findings, Path]:
    from lodarepro import compose
    from lodarepro.analysis import latency

    parser.description = (
        "time of forward passes, of the q/k/v projection and of decoding with each method against the bare model, "
        "beside counted multiply-accumulates (LoRA Table 1, Figure 5; LoDA Table 2); on random weights"
    )
    _add_overrides(parser, "model=NAME, decode.precision=bf16, runtime.device=cuda, results.root=FOLDER and the like")
    parser.add_argument("--parts", metavar="NAME,...", type=_words, help=f"of {', '.join(latency.PARTS)} (all)")
    parser.add_argument("--methods", metavar="NAME,...", type=_words, help="which (one of each kind)")
    parser.add_argument(
        "--sizes", metavar="N,...", type=_counting, help="ranks, bottlenecks or prefix lengths (each method's own)"
    )
    parser.add_argument("--batch-sizes", metavar="N,...", type=_counting, help="rows of a forward pass")
    parser.add_argument("--lengths", metavar="N,...", type=_counting, help="tokens of a row")
    parser.add_argument("--beams", metavar="N,...", type=_counting, help="of a search (1,10)")
    parser.add_argument("--trials", metavar="N", type=_count_of, default=latency.TRIALS, help="of each (100)")
    parser.add_argument(
        "--warmup", metavar="N", type=_count_of, default=latency.WARMUP, help="not counted, before (10)"
    )
    parser.add_argument("--paper", action="store_true", help="the points of LoRA's Figure 5 and Table 1: for a GPU")
    given = parser.parse_intermixed_args(arguments)
    parts = given.parts or latency.PARTS
    for part in parts:
        if part not in latency.PARTS:
            raise BadInput(f"--parts {part}: no such part{nearest(part, latency.PARTS)}")
    asked = latency.Asked(
        parts=parts,
        methods=given.methods,
        sizes=given.sizes,
        batch_sizes=given.batch_sizes,
        lengths=given.lengths,
        beams=given.beams,
        trials=given.trials,
        warmup=given.warmup,
        paper=given.paper,
    )
    own = _own(given)
    (cell,) = compose.cells(given.overrides, own=own)
    return given, latency.latency(cell, asked, own=own), _results_root(cell.run)


def _energy(parser: argparse.ArgumentParser, arguments: list[str]) -> tuple[argparse.Namespace, Findings, Path]:
    from lodarepro import compose
    from lodarepro.analysis.energy import energy

    parser.description = (
        "energy of W_proj = [Wq, Wk, Wv] kept by rank and by share of the entries, block by block (LoDA Figure 2); "
        "with --budget the ranks and shares that keep most, as settings for lodarepro run"
    )
    _add_overrides(parser, "model=NAME, model.path=FOLDER, results.root=FOLDER")
    parser.add_argument(
        "--budget", metavar="X", type=float, help="per cent of the dense projections' multiply-accumulates"
    )
    given = parser.parse_intermixed_args(arguments)
    (cell,) = compose.cells(given.overrides, own=_own(given))
    return given, energy(cell.run, budget=given.budget), _results_root(cell.run)


def _subspace(parser: argparse.ArgumentParser, arguments: list[str]) -> tuple[argparse.Namespace, Findings, Path]:
    from lodarepro.analysis import subspace
    from lodarepro.reopen import reopen

    parser.description = (
        "similarity phi(i, j) of the top directions of two runs' matrices, block by block, beside random ones (LoRA "
        "Figures 3, 4, 6, 7)"
    )
    _add_runs(parser)
    parser.add_argument("--matrix", choices=subspace.MATRICES, default="A", help="A (default), B or dW")
    parser.add_argument(
        "--directions", metavar="N", type=_count_of, default=subspace.MOST, help="looked at of each matrix (64)"
    )
    given, folders, overrides, root = _given_runs(parser, arguments)
    if len(folders) != 2:
        raise BadInput(f"lodarepro analyze subspace compares two runs; {len(folders)} given")
    a, b = (reopen(folder, overrides, checkpoint=given.checkpoint or "last") for folder in folders)
    return given, subspace.subspace((a, b), matrix=given.matrix, most=given.directions), root


def _amplification(parser: argparse.ArgumentParser, arguments: list[str]) -> tuple[argparse.Namespace, Findings, Path]:
    from lodarepro.analysis.amplification import amplification
    from lodarepro.reopen import reopen

    parser.description = (
        "how much of the pretrained weights lies in the directions that runs changed, and by which factor they amplify "
        "them (LoRA Table 7, Figure 8); of deltas that are not linear by their mean Jacobian at test inputs"
    )
    _add_runs(parser)
    parser.add_argument("--directions", metavar="N", type=_count_of, help="top ones looked at (the rank of each)")
    given, folders, overrides, root = _given_runs(parser, arguments)
    opened = [reopen(folder, overrides, checkpoint=given.checkpoint or "last") for folder in folders]
    return given, amplification(opened, r=given.directions), root


def _errors(parser: argparse.ArgumentParser, arguments: list[str]) -> tuple[argparse.Namespace, Findings, Path]:
    from lodarepro.analysis.errors import errors

    parser.description = (
        "facts that texts lose, make up or get wrong, by rules (E2E, mini); scores by category and number of triples, "
        "seen against unseen (WebNLG, DART)"
    )
    _add_runs(parser)
    given, folders, overrides, root = _given_runs(parser, arguments)
    return given, errors(folders, overrides, checkpoint=given.checkpoint), root


def _add_overrides(parser: argparse.ArgumentParser, which: str) -> None:
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help=which)


def _add_runs(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "words",
        nargs="+",
        metavar="RUN | KEY=VALUE",
        help="folders of finished runs; model.path=FOLDER or data.root=FOLDER where this machine has them, "
        "results.root=FOLDER for what is written (where the first run is)",
    )
    parser.add_argument("--checkpoint", metavar="NAME", help="last, best or epoch-N (last; the first that has texts)")


def _given_runs(
    parser: argparse.ArgumentParser, arguments: list[str]
) -> tuple[argparse.Namespace, list[Path], list[str], Path]:
    """What was asked, the runs' folders, their overrides, and the results folder to write to."""
    from lodarepro import records

    given = parser.parse_intermixed_args(arguments)
    _own(given)
    names, overrides = _names_and_overrides(given.words)
    folders = [Path(name) for name in names]
    if not folders:
        raise BadInput("which runs? give folders such as results/runs/e2e_gpt2-medium_lora-r4_lora_s1_0123456789ab")
    own = [text for text in overrides if text.startswith("results.")]
    for text in own:
        if text.partition("=")[0] != "results.root" or text == "results.root=":
            raise BadInput(f"{text}: no such setting of an analysis; give results.root=FOLDER, or nothing")
    if twice := [folder for folder in folders if [f.resolve() for f in folders].count(folder.resolve()) > 1]:
        raise BadInput(f"{twice[0]} is given twice; give each run once")
    roots = [text.partition("=")[2] for text in own]
    above = folders[0].resolve().parent
    root = Path(roots[-1]).expanduser() if roots else above.parent if above.name == records.RUNS else Path("results")
    return given, folders, [text for text in overrides if text not in own], root


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split(","))


def _counting(text: str) -> tuple[int, ...]:
    return tuple(map(_count_of, text.split(",")))


def _count_of(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"'{text}' is no whole number above 0")
    return int(text)


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
    print(summary([pipeline.redecode(given.run, given.overrides, show_bar=True)]))
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
    parser.add_argument("--checkpoint", default="last", metavar="NAME", help="last (default), best or epoch-N")
    parser.add_argument("folder", metavar="DIR", type=Path, help="where to; not there yet, or empty")
    parser.add_argument("overrides", nargs="*", metavar="model.path=FOLDER", help="where the base model is here")
    _add_method_file(parser)
    given = parser.parse_intermixed_args(arguments)
    _own(given)
    export(given.run, given.to, given.folder, given.overrides, checkpoint=given.checkpoint)
    return 0


def _data(arguments: list[str]) -> int:
    from lodarepro import compose
    from lodarepro.data import prepare

    parser = argparse.ArgumentParser(prog="lodarepro data", description="find or download, verify and count")
    parser.add_argument("action", choices=["prepare"])
    parser.add_argument("name", metavar="NAME", help=", ".join(compose.groups()["dataset"]))
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
