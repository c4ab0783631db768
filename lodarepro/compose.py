"""From command-line overrides to a typed `Run`, its identity, and all that is wrong with it.

Hydra composes; this module checks first, so that every fault is reported at once, one line each,
before anything is downloaded. Besides it, only `launch/` and `cli.py` know Hydra.
"""

from __future__ import annotations

import copy
import hashlib
import inspect
import itertools
import json
import re
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import MISSING, asdict, dataclass, fields, is_dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, get_type_hints

from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Glob, Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import ConfigDict, PydanticUserError, TypeAdapter, ValidationError
from yaml import YAMLError  # type: ignore[import-untyped]

from lodarepro import config
from lodarepro.errors import BadInput, nearest
from lodarepro.provenance import canonical_json

PROTOCOL_VERSION = 2
"""Raised when the same configuration and data would give other numbers."""

PRIMARY = "run"
SCHEMA = "schema"
FOLLOWING = ("settings", "tuned")  # groups that follow from the choices of the others
NO_CHOICES = (*FOLLOWING, "hydra", "table", "analysis", "slots")  # folders of configs/ that hold no options of a run
SWEEP = "sweep"  # the group of named sweeps
LACKING = "???"  # OmegaConf's mark of a key without a value
NOT_IDENTITY = {
    "model": ("hub", "revision", "path"),
    "dataset": ("files", "remote", "pins"),
    "train": ("time_limit",),
    "method_file": ("path",),
}
"""what of a section does not decide numbers: a time limit, and places; the checksums of what was found there do"""

# Hydra lets its parser's errors through, and refuses some values of a choice by a bare ValueError.
UNFIT = (HydraException, OmegaConfBaseException, YAMLError, ValueError)


def config_folder() -> Path:
    """The YAML files: inside the package where it was installed, beside it in a checkout."""
    inside = Path(__file__).parent / "configs"
    return inside if inside.is_dir() else Path(__file__).parent.parent / "configs"


def register_schemas(own: OwnMethod | None = None) -> None:
    """Give Hydra the dataclasses' defaults, which the YAML files start from.

    They are plain dictionaries: Hydra then refuses unknown keys, and the types are checked by
    `to_run`, all at once. A field without a default becomes `???`.

    Args:
        own: a method of the user's, which becomes an option of the group `method`.
    """
    # For the help page; Hydra's own list would show the schemas as choices. The text alone, as resolvers travel to
    # workers, which have not imported a method of the user's by then.
    listed = _listed(groups(own=own))
    OmegaConf.register_new_resolver("choices", lambda: listed, replace=True)
    store = ConfigStore.instance()
    store.repo.pop("method", None)  # what an earlier command of this process brought
    if own is not None:
        # The file goes with the option: workers know from it what to import, other cells of a sweep lack it.
        node = {"method": _defaults(own.settings), "method_file": asdict(own.file)}
        store.store(group="method", name=own.name, node=node, package="_global_")
    # Once a process: registering them is an eighth of the time that composing takes.
    nodes = {(SCHEMA, name): section for name, section in config.SECTIONS.items()}
    nodes |= {(f"{SCHEMA}/method", name): method for name, method in config.METHODS.items()}
    for (group, name), section in nodes.items():
        if name not in _REGISTERED.setdefault(group, set()):
            store.store(group=group, name=name, node=_defaults(section))
            _REGISTERED[group].add(name)


_REGISTERED: dict[str, set[str]] = {}
"""group to the names of the schemas that Hydra has"""


def _listed(options: Mapping[str, Sequence[str]]) -> str:
    return "\n".join(f"  {group}={'|'.join(names)}" for group, names in options.items())


def _defaults(section: type) -> dict[str, Any]:
    hints = get_type_hints(section)
    found: dict[str, Any] = {}
    for f in fields(section):
        if f.default is not MISSING:
            found[f.name] = _plain_value(f.default)
        elif f.default_factory is not MISSING:
            found[f.name] = _plain_value(f.default_factory())
        else:
            found[f.name] = _defaults(hints[f.name]) if is_dataclass(hints[f.name]) else LACKING
    return copy.deepcopy(found)


def _plain_value(value: Any) -> Any:
    return asdict(value) if is_dataclass(value) and not isinstance(value, type) else value


def groups(extra_folder: Path | None = None, own: OwnMethod | None = None) -> dict[str, list[str]]:
    """Name of each group that a user chooses from to its options."""
    found: dict[str, set[str]] = {} if own is None else {"method": {own.name}}
    for root in (config_folder(), *([extra_folder] if extra_folder else [])):
        for path in root.glob("*/*.yaml"):
            if path.parent.name not in NO_CHOICES:
                found.setdefault(path.parent.name, set()).add(path.stem)
    return {group: sorted(options) for group, options in sorted(found.items())}


@dataclass(frozen=True)
class Cell:
    """One combination of overrides that was checked.

    Attributes:
        overrides: as for the command line, without sweeps.
        run: the typed configuration.
    """

    overrides: tuple[str, ...]
    run: config.Run


def cells(
    overrides: Sequence[str],
    *,
    multirun: bool = False,
    extra_folder: Path | None = None,
    own: OwnMethod | None = None,
) -> list[Cell]:
    """Check the overrides of one command and compose every cell that they name.

    Args:
        overrides: as typed, `KEY=VALUE` each.
        multirun: whether `-m` was given, which alone allows several values for a key.
        extra_folder: the user's own configs (`--config-dir`).
        own: the user's own method (`--method-file`).

    Raises:
        BadInput: with every fault found, one line each.
    """
    register_schemas(own)
    if extra_folder is not None and not extra_folder.is_dir():
        raise BadInput(f"--config-dir={extra_folder}: no such folder")
    options = groups(extra_folder, own)
    faults: list[str] = []
    parsed = _parsed(overrides, faults)
    if named := [o for o in parsed if o.key_or_group == SWEEP]:
        if multirun:
            parsed = [*_named_sweep(named[-1], options, extra_folder, faults), *parsed]
        else:
            faults.append(f"{named[-1].input_line}: a sweep of several cells needs -m")
    if not multirun:
        faults += [
            f"{o.input_line}: several values for one key need -m (a sweep), as in: lodarepro run -m {o.input_line}"
            for o in parsed
            if o.is_sweep_override()
        ]
        parsed = [o for o in parsed if not o.is_sweep_override()]
    try:
        combinations = list(_combinations(parsed, options))
    except UNFIT as e:
        fault = f"{' '.join(overrides)}: {_reason(e)}; give choices (a,b,c), range(...) or glob(...)"
        raise BadInput([*faults, fault]) from None
    with _composer(extra_folder) as composer:
        found = []
        for combination in combinations:
            try:
                found.append(Cell(tuple(combination), _checked(composer, combination, options)))
            except BadInput as e:
                faults += [fault for fault in e.faults if fault not in faults]
    if faults:
        raise BadInput(faults)
    if not found:
        raise BadInput(f"{' '.join(overrides)}: a glob(...) among these matches no option, so there is no cell to run")
    return found


def _parsed(overrides: Sequence[str], faults: list[str]) -> list[Override]:
    parser = OverridesParser.create()
    parsed = []
    for text in overrides:
        try:
            (override,) = parser.parse_overrides([text])
        except HydraException:
            faults.append(f"'{text}' can't be read as KEY=VALUE; quote values with special characters: 'key=\"a b\"'")
            continue
        if not _is_hydras(override) and (override.is_add() or override.is_force_add() or override.is_delete()):
            faults.append(
                f"'{text}': keys can't be added (+, ++) or deleted (~), as that would hide misspelt names; "
                f"write {override.key_or_group!s}=VALUE"
            )
            continue
        if override.key_or_group.split(".")[0] == "method_file":
            faults.append(f"'{text}': the file of a method is given as --method-file FILE")
            continue
        if override.key_or_group.split("/")[0] in FOLLOWING:
            faults.append(
                f"'{text}': tuned settings follow from protocol, model, method and dataset; set single keys instead, "
                "as in train.lr=VALUE"
            )
            continue
        parsed.append(override)
    return parsed


def _named_sweep(
    chosen: Override, options: Mapping[str, Sequence[str]], extra_folder: Path | None, faults: list[str]
) -> list[Override]:
    """The overrides that a file of `configs/sweep/` holds as Hydra's sweeper takes them, `hydra.sweeper.params`."""
    name = str(chosen.value())
    if name not in options[SWEEP]:
        return []  # said with the other choices that there are not
    roots = [config_folder(), *([extra_folder] if extra_folder else [])]
    (path, *_) = [path for root in roots if (path := root / SWEEP / f"{name}.yaml").is_file()]
    params = OmegaConf.select(OmegaConf.load(path), "hydra.sweeper.params") or {}
    return _parsed([f"{key}={value}" for key, value in params.items()], faults)


def _is_hydras(override: Override) -> bool:
    return override.key_or_group.split(".")[0].split("/")[0] == "hydra"


def _combinations(parsed: Sequence[Override], options: Mapping[str, Sequence[str]]) -> Iterator[list[str]]:
    """The cells of a sweep, as Hydra's basic sweeper makes them: the last key varies fastest."""
    values: dict[str, list[str]] = {}  # of equal keys the last counts
    for o in parsed:
        if _is_hydras(o):
            continue
        if not o.is_sweep_override():
            values[o.get_key_element()] = [o.input_line or ""]
            continue
        value = o.value()
        texts = (
            value.filter(list(options.get(o.key_or_group, ())))
            if isinstance(value, Glob)
            else list(o.sweep_string_iterator())
        )
        values[o.get_key_element()] = [f"{o.get_key_element()}={text}" for text in texts]
    for combination in itertools.product(*values.values()):
        yield list(combination)


Composer = Callable[[Sequence[str]], DictConfig]


def searched(extra_folder: Path | None) -> list[str]:
    """The override by which Hydra looks into the user's own configs too."""
    return [] if extra_folder is None else [f"hydra.searchpath=[file://{extra_folder.resolve()}]"]


@contextmanager
def _composer(extra_folder: Path | None) -> Iterator[Composer]:
    """A function from overrides to a composed configuration, over our folder and the user's."""
    search = searched(extra_folder)
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(config_folder()), version_base="1.3", job_name=PRIMARY):
        yield lambda overrides: hydra_compose(PRIMARY, overrides=[*search, *overrides])
    GlobalHydra.instance().clear()


def _checked(composer: Composer, overrides: Sequence[str], options: Mapping[str, Sequence[str]]) -> config.Run:
    """Compose one cell; all that is wrong with it is in the error."""
    with suppress(*UNFIT):
        return to_run(composer(overrides))
    # Hydra stops at the first fault: look at each override by itself.
    faults: list[str] = []
    broken: set[str] = set()  # sections whose option is unknown: their keys can't be judged
    choices, values = [], []
    for text in overrides:
        key, _, value = text.partition("=")
        if key not in options:
            values.append(text)
        elif value in options[key]:
            choices.append(text)
        else:
            faults.append(f"{text}: no such {key}{nearest(value, options[key])}")
            broken.add(key)
    composed = _compose_or_fault(composer, choices, faults)
    if composed is None:
        raise BadInput(faults)
    known = {*config.SECTIONS, "method", "seed"}
    good = []
    for text in values:
        key = text.partition("=")[0]
        section = key.split(".")[0]
        if section in broken:
            continue
        if section not in known:
            faults.append(f"{text}: no such key or choice{nearest(section, known | options.keys())}")
        elif fault := _unknown_key(composed, key):
            faults.append(f"{text}: {fault}")
        else:
            good.append(text)
    final = _compose_or_fault(composer, [*choices, *good], faults)
    if final is None:
        raise BadInput(faults)
    try:
        run = to_run(final)
    except BadInput as e:
        raise BadInput([*faults, *e.faults]) from None
    if faults:
        raise BadInput(faults)
    return run


def _compose_or_fault(composer: Composer, overrides: Sequence[str], faults: list[str]) -> DictConfig | None:
    try:
        return composer(overrides)
    except UNFIT as e:
        faults.append(f"{' '.join(overrides) or 'configs'}: {_reason(e)}")
        return None


def _reason(e: Exception) -> str:
    """One line of an error of Hydra's: the reason is often in the cause, and both are several lines long."""
    text = str(e.__cause__ or e).strip()
    # YAML's says the place in its last line.
    lines = [" ".join(text.split())] if isinstance(e, YAMLError) else text.splitlines()
    return lines[0] if lines else type(e).__name__


def fault_of(e: Exception) -> BadInput:
    """What an error of Hydra's own becomes, as one of its launchers' or sweepers' that the checks don't know."""
    return BadInput(_reason(e))


def _unknown_key(composed: DictConfig, key: str) -> str | None:
    """What is wrong with a dotted key, or None."""
    node: Any = composed
    path: list[str] = []
    for part in key.split("."):
        if not isinstance(node, DictConfig):
            return f"'{'.'.join(path)}' has no keys of its own"
        if part not in node:
            where = f"'{'.'.join(path)}'" if path else "the configuration"
            return f"no such key '{part}' in {where}{nearest(part, [str(k) for k in node])}"
        path.append(part)
        node = OmegaConf.select(composed, ".".join(path))
    return None


def to_run(composed: DictConfig) -> config.Run:
    """Check types and closedness of a composed configuration and build the `Run`.

    Raises:
        BadInput: with every fault found, one line each.
    """
    try:
        tree = OmegaConf.to_container(composed, resolve=True, throw_on_missing=False)
    except OmegaConfBaseException as e:
        raise BadInput(f"{e.full_key or 'configuration'}: {str(e).splitlines()[0]}") from None
    assert isinstance(tree, dict)
    return _built(tree)


def _built(tree: dict[Any, Any]) -> config.Run:
    faults: list[str] = []
    sections: dict[str, Any] = {}
    known = {**config.SECTIONS, "method": dict, "seed": int}
    for name in sorted(tree.keys() - known.keys() - {"hydra", "method_file"}):
        faults.append(f"{name}: no such section{nearest(str(name), known)}")
    if lacking := sorted(known.keys() - tree.keys()):
        raise BadInput([*faults, *(f"{name}: this section is missing" for name in lacking)])
    types = {**config.SECTIONS, "seed": int}
    methods = config.METHODS
    if file := tree.get("method_file"):
        own = own_method(Path(file["path"]), file["sha256"])
        sections["method_file"], methods = own.file, {own.name: own.settings}
    chosen = tree["method"].get("name") if isinstance(tree["method"], dict) else tree["method"]
    if chosen in methods:
        types["method"] = methods[chosen]
    else:
        faults.append(f"method.name={chosen}: no such method{nearest(str(chosen), methods)}")
    for name, section in types.items():
        sections[name] = _typed(tree[name], section, name, faults)
    if faults:
        raise BadInput(faults)
    run = config.Run(**sections)
    if faults := _combined_faults(run):
        raise BadInput(faults)
    return run


def _typed(value: Any, wanted: type, where: str, faults: list[str]) -> Any:
    _unknown_fields(value, wanted, where, faults)
    _lacking(value, where, faults)
    try:
        # As JSON, where strictness still takes an integer for a float and a list for a tuple.
        return TypeAdapter(wanted).validate_json(json.dumps(value), strict=True)
    except ValidationError as e:
        for error in e.errors():
            loc = (part for part in error["loc"] if not str(part).startswith(config.TAG))
            path = where + "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in loc)
            if error["type"] == "value_error":  # of a section's own check, which names the field
                faults.append(f"{path}.{error['ctx']['error']}")
            elif error["input"] != LACKING:
                faults.append(f"{path}={_shown(error['input'])}: {_lower(error['msg'])}")
    return None


def _lacking(value: Any, where: str, faults: list[str]) -> None:
    """The keys without a value, which a text would take for a good one."""
    if value == LACKING:
        faults.append(f"{where}: a value is needed; give {where}=VALUE")
    elif isinstance(value, dict):
        for key, part in value.items():
            _lacking(part, f"{where}.{key}", faults)


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _lower(text: str) -> str:
    return text[0].lower() + text[1:]


def _unknown_fields(value: Any, wanted: Any, where: str, faults: list[str]) -> None:
    if not is_dataclass(wanted) or not isinstance(value, dict):
        return
    hints = get_type_hints(wanted)
    for key in value:
        if key in hints:
            _unknown_fields(value[key], hints[key], f"{where}.{key}", faults)
        else:
            faults.append(f"{where}.{key}: no such key in '{where}'{nearest(str(key), hints)}")


def _combined_faults(run: config.Run) -> list[str]:
    """What no single value is wrong with."""
    fit = getattr(run.method, "faults", None)
    faults = [f"method.{fault}" for fault in fit(run)] if fit else []
    if run.model.n_embd % run.model.n_head:
        faults.append(f"model.n_head={run.model.n_head} does not divide model.n_embd={run.model.n_embd}")
    if run.protocol.max_length > run.model.n_positions:
        faults.append(
            f"protocol.max_length={run.protocol.max_length} exceeds the model's {run.model.n_positions} positions; "
            f"set protocol.max_length={run.model.n_positions} or less"
        )
    if run.decode.max_new_tokens >= run.protocol.max_length:
        faults.append(
            f"decode.max_new_tokens={run.decode.max_new_tokens} leaves no room for a prompt in "
            f"protocol.max_length={run.protocol.max_length}"
        )
    numbers = [int(name.removeprefix("epoch-")) for name in run.train.keep if name.startswith("epoch-")]
    if run.train.max_steps is None and max(numbers, default=0) > run.train.epochs:
        faults.append(
            f"train.keep: there is no epoch-{max(numbers)} in a training of {run.train.epochs} epochs; give "
            "train.keep=[best,last]"
        )
    candidates = run.decode.beam * (2 if run.decode.search == "transformers-3" else 1)
    if candidates > run.model.vocab_size:
        faults.append(f"decode.beam={run.decode.beam} exceeds the vocabulary of {run.model.vocab_size}")
    return faults


def plain(run: config.Run) -> dict[str, Any]:
    """The run as JSON would hold it."""
    return json.loads(json.dumps(asdict(run)))


def without_places(tree: Mapping[str, Any]) -> dict[str, Any]:
    """What `plain` gives, as others may see it: without this machine's folders, and without the logger."""
    shown = {name: part for name, part in tree.items() if name not in ("data", "results", "logger")}
    for section in ("model", "method_file"):
        if shown.get(section) and shown[section].get("path"):
            shown[section] = {**shown[section], "path": Path(shown[section]["path"]).name}
    if "files" in shown["dataset"]:
        files = {split: Path(file).name for split, file in shown["dataset"]["files"].items()}
        shown["dataset"] = {**shown["dataset"], "files": files}
    return shown


def plain_defaults(section: str) -> dict[str, Any]:
    """A section of a run, other than its method, as its dataclass starts it."""
    return json.loads(json.dumps(_defaults(config.SECTIONS[section])))


def from_plain(tree: Mapping[str, Any]) -> config.Run:
    """The run that `plain` described, checked as any other.

    Raises:
        BadInput: it does not fit this version's configuration.
    """
    return _built({"logger": plain_defaults("logger"), **tree})  # of which the first records know nothing


REDECODE_SECTIONS = ("decode", "model", "data", "runtime")


def changed(run: config.Run, overrides: Sequence[str]) -> config.Run:
    """A finished run's configuration with other settings of its decoding, or other places.

    Raises:
        BadInput: an override is none of `decode.*`, `model.path`, `data.*` and `runtime.*`, or unfit.
    """
    faults: list[str] = []
    tree = plain(run)
    for o in _parsed(overrides, faults):
        section = o.key_or_group.split(".")[0]
        if section not in REDECODE_SECTIONS or (section == "model" and o.key_or_group != "model.path"):
            faults.append(
                f"{o.input_line}: a finished run's training can't change; give decode.KEY=VALUE "
                "(or model.path, data.*, runtime.* for this machine)"
            )
        elif o.is_sweep_override():
            faults.append(f"{o.input_line}: one value for a key, please; decode again for the next")
        elif fault := _unknown_key(OmegaConf.create(tree), o.key_or_group):
            faults.append(f"{o.input_line}: {fault}")
        else:
            *path, last = o.key_or_group.split(".")
            node: Any = tree
            for part in path:
                node = node[part]
            node[last] = o.value()
    if faults:
        raise BadInput(faults)
    return _built(tree)


def identity(run: config.Run, checksums: Mapping[str, str]) -> dict[str, Any]:
    """Everything that decides a run's numbers and nothing else.

    Args:
        run: the configuration; its paths, results folder and runtime are left out.
        checksums: SHA-256 of each data split's file and of the base model's weights.
    """
    described = plain(run)
    for name in ("data", "results", "runtime", "logger"):
        del described[name]
    if run.method_file is None:
        del described["method_file"]  # other runs keep the ids that they had before there were such files
    if run.dataset.hold_out is None:
        del described["dataset"]["hold_out"]  # likewise
    described["train"]["keep"].sort()  # in whichever order they were named
    for section in NOT_IDENTITY.keys() & described.keys():
        for place in NOT_IDENTITY[section]:
            del described[section][place]
    return {**described, "checksums": dict(checksums), "protocol_version": PROTOCOL_VERSION}


def run_id(run: config.Run, checksums: Mapping[str, str]) -> str:
    """A readable name plus the first 12 digits of the SHA-256 of the identity's canonical JSON."""
    digest = hashlib.sha256(canonical_json(identity(run, checksums)).encode()).hexdigest()[:12]
    rank = getattr(run.method, "rank", None)
    method = run.method.name if rank is None else f"{run.method.name}-r{rank}"
    return f"{run.dataset.name}_{run.model.name}_{method}_{run.protocol.name}_s{run.seed}_{digest}"


# a user's own method ----------------------------------------------------------------------------

HOOKS = {
    "attach": ("model", "config", "generator"),
    "layout": ("config", "tokenizer"),
    "param_groups": ("model", "config"),
    "finalize": ("model", "config"),
}
"""the functions of a method's file and their arguments, as in `methods.base.Method`; all but the first may lack"""
ELSEWHERE = "or say with --method-file where it is"


@dataclass(frozen=True)
class OwnMethod:
    """A method that a file of the user's defines.

    Attributes:
        file: where it is, and its content's hash.
        settings: its dataclass; the functions stand in the same module.
        name: the option's name.
    """

    file: config.MethodFile
    settings: type
    name: str


def own_method(path: Path, sha256: str | None = None) -> OwnMethod:
    """Import a method's file, once for each content.

    Args:
        path: of the file.
        sha256: the content that it must have; None: any. Where this content was imported already,
            from wherever, the file is not looked for.

    Raises:
        BadInput: it is missing, has another content, can't be imported, or does not define a method.
    """
    where = f"method file {path}"
    path = path.expanduser().absolute()  # a record or a worker may be read from another folder
    if sha256 is None or _module(sha256) not in sys.modules:
        try:
            content = path.read_bytes()
        except OSError as e:
            way_out = "check the path" if sha256 is None else f"put it there again, {ELSEWHERE}"
            raise BadInput(f"{where}: can't be read ({e.strerror}); {way_out}") from None
        found = hashlib.sha256(content).hexdigest()
        if sha256 not in (None, found):
            raise BadInput(
                f"{where} has changed since the run was made (sha256 {found}, not {sha256}); put the old one there "
                f"again, {ELSEWHERE}"
            )
        sha256 = found
        if _module(sha256) not in sys.modules:
            _import(content, path, name=_module(sha256), where=where)
    settings = _settings(sys.modules[_module(sha256)])[0]
    return OwnMethod(config.MethodFile(str(path), sha256), settings, name=_defaults(settings)["name"])


def _module(sha256: str) -> str:
    return f"lodarepro_method_{sha256}"


def _import(content: bytes, path: Path, *, name: str, where: str) -> None:
    """Make a module of a file's content, which is what was hashed, and check that it defines a method."""
    module = sys.modules[name] = ModuleType(name)  # there already now, as dataclasses look for it
    module.__file__ = str(path)
    try:
        exec(compile(content, str(path), "exec", dont_inherit=True), module.__dict__)
        faults = _own_faults(module)
    except (Exception, SystemExit) as e:
        del sys.modules[name]
        lines = [frame.lineno for frame in traceback.extract_tb(e.__traceback__) if frame.filename == str(path)]
        line = e.lineno if isinstance(e, SyntaxError) else lines[-1] if lines else None
        said = e.msg if isinstance(e, SyntaxError) else str(e).partition("\n")[0]
        at = f", line {line}" if line else ""
        raise BadInput(f"{where}{at}: can't be imported ({type(e).__name__}: {said})") from None
    if faults:
        del sys.modules[name]
        raise BadInput([f"{where}: {fault}" for fault in faults])


def _settings(module: ModuleType) -> list[type]:
    """The dataclasses that a module defines itself."""
    classes = dict.fromkeys(value for value in vars(module).values() if isinstance(value, type))
    return [c for c in classes if c.__module__ == module.__name__ and "__dataclass_fields__" in vars(c)]


def _own_faults(module: ModuleType) -> list[str]:
    """All that keeps a user's module from being a method."""
    faults = []
    for hook, arguments in HOOKS.items():
        function = getattr(module, hook, None)
        if function is None and hook != "attach":
            continue
        try:
            inspect.signature(function).bind(*arguments)  # type: ignore[arg-type]
        except (TypeError, ValueError):
            faults.append(f"it needs a function {hook}({', '.join(arguments)})")
    found = _settings(module)
    if len(found) != 1:
        named = f"{len(found)} dataclasses ({', '.join(c.__name__ for c in found)})" if found else "no dataclass"
        return [*faults, f"it defines {named}; exactly one, please: the method's settings, each with a default"]
    # Records hold no infinity.
    found[0].__pydantic_config__ = ConfigDict(allow_inf_nan=False)  # type: ignore[attr-defined]
    return faults + _unfit_fields(found[0])


def _unfit_fields(settings: type) -> list[str]:
    faults = []
    defaults, hints = _defaults(settings), get_type_hints(settings)
    name = defaults.get("name")
    if not isinstance(name, str) or not re.fullmatch(r"[a-z][a-z0-9.-]*", name):
        given = "no name" if name is None else f"name={name}"
        faults.append(
            f'{given} in {settings.__name__}; give the method\'s with name: str = "NAME", of small letters, digits, '
            "points and hyphens"
        )
    elif name in config.METHODS:
        faults.append(f"name={name} is that of a built-in method; choose another")
    for f in fields(settings):
        where = f"{settings.__name__}.{f.name}"
        if defaults[f.name] == LACKING:
            faults.append(f"{where} has no default; give it one")
            continue
        try:
            value = TypeAdapter(hints[f.name]).validate_json(json.dumps(defaults[f.name]), strict=True)
            json.dumps(_plain_value(value))  # as a record will hold it
        except ValidationError as e:
            faults.append(f"{where}={_shown(defaults[f.name])}: {_lower(e.errors()[0]['msg'])}")
        except (PydanticUserError, TypeError):
            faults.append(
                f"{where} is of a type that YAML can't hold; use bool, int, float, str, None, Literal, and lists, "
                "tuples and dictionaries of these"
            )
    return faults
