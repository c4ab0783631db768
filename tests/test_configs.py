"""Guard: every file in `configs/` is what its name says, composes, and is known to the code."""

import ast
import inspect
import itertools
import random
import re
from collections.abc import Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path

import pytest
from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from omegaconf import DictConfig, OmegaConf

from lodarepro import compose, config
from lodarepro.methods import REGISTRY

FOLDER = compose.config_folder()
GROUPS = compose.groups()
OPTIONS = [(group, name) for group, names in GROUPS.items() for name in names]
CELL = ("protocol", "model", "method", "dataset")
FOLLOWING = {
    "settings": ("protocol", "dataset"),
    "tuned": CELL,
    **{f"tuned/{path.name}": tuple(path.name.split("_")) for path in (FOLDER / "tuned").iterdir() if path.is_dir()},
}
"""groups whose files are found by the names of these choices"""
TUNED = sorted((group, path.stem) for group in FOLLOWING for path in (FOLDER / group).glob("*.yaml"))
NAMES = [
    (protocol, model, method, dataset)
    for protocol, model, method, dataset in itertools.product(*(GROUPS[group] for group in CELL))
]
CHECKED = 80  # cells composed, at 0.1 s each: all, or so many drawn at random
COPIED = "ft ft-top2 adapter-l adapter-l-wide prefix-layer"
LARGE = "ft adapter-l adapter-l-wide prefix-layer lora"
LODA = "lora loda r-loda s-loda loda-plus r-loda-plus s-loda-plus"
ROWS = {
    "loda-1": ("loda", "e2e", {"gpt2-medium": f"{COPIED} adapter-h ft-qv one-shot {LODA}"}),
    "loda-2": ("loda", "dart", {"gpt2-medium": f"ft-qv {LODA}"}),
    "loda-3": ("loda", "e2e", {"gpt2-medium": "lora loda loda-plus"}),
    "lora-3": (
        "lora",
        "e2e",
        {"gpt2-medium": f"{COPIED} adapter-h lora", "gpt2-large": LARGE},
    ),
    "lora-13": ("lora", "dart", {"gpt2-medium": f"{COPIED} lora", "gpt2-large": LARGE}),
    "lora-14": ("lora", "webnlg", {"gpt2-medium": f"{COPIED} lora", "gpt2-large": LARGE}),
    "lora-18": ("lora", "e2e", {"gpt2-medium": "lora"}),
}
"""the cells of the papers' tables: protocol, dataset, and each model's methods"""
LI_LIANG = {
    ("ft", "e2e"): (5e-5, 5, 10),
    ("ft", "webnlg"): (1e-5, 10, 6),
    ("ft", "dart"): (1e-5, 10, 6),
    ("ft-top2", "e2e"): (5e-5, 5, 10),
    ("ft-top2", "webnlg"): (5e-5, 10, 9),
    ("ft-top2", "dart"): (5e-5, 5, 5),
    ("adapter-l", "e2e"): (8e-5, 10, 5),
    ("adapter-l", "webnlg"): (5e-5, 10, 5),
    ("adapter-l", "dart"): (8e-5, 5, 5),
    ("adapter-l-wide", "e2e"): (5e-5, 5, 5),
    ("adapter-l-wide", "webnlg"): (5e-5, 5, 5),
    ("adapter-l-wide", "dart"): (5e-5, 5, 5),
    ("prefix-layer", "e2e"): (8e-5, 5, 10),
    ("prefix-layer", "webnlg"): (5e-5, 5, 5),
    ("prefix-layer", "dart"): (5e-5, 10, 5),
}
"""learning rate, epochs, batch size of Li & Liang 2021, Table 6"""


def run_of(names: Sequence[str]) -> config.Run:
    (cell,) = compose.cells([f"{group}={name}" for group, name in zip(CELL, names, strict=True)])
    return cell.run


def parts(group: str, stem: str) -> list[tuple[str, ...]]:
    """The cells for which a file of this group would be called so."""
    places = [CELL.index(choice) for choice in FOLLOWING[group]]
    return [names for names in NAMES if "_".join(names[i] for i in places) == stem]


def test_the_groups_are_those_that_the_plan_names():
    assert GROUPS.keys() >= {"model", "method", "dataset", "protocol", "train", "decode"}
    folders = {path.name for path in FOLDER.iterdir() if path.is_dir()}
    assert folders >= GROUPS.keys()


def test_nothing_else_lies_in_the_folder():
    odd = [p for p in FOLDER.rglob("*") if p.is_file() and p.suffix != ".yaml"]
    assert odd == []


@pytest.mark.parametrize(("group", "name"), [option for option in OPTIONS if option[0] != compose.SWEEP])
def test_every_option_composes_alone(group: str, name: str):
    (cell,) = compose.cells([f"{group}={name}"])
    if group in CELL:
        assert getattr(cell.run, group).name == name


@pytest.mark.parametrize("name", GROUPS[compose.SWEEP])
def test_every_sweep_composes(name: str):
    assert len(compose.cells([f"sweep={name}", "seed=1"], multirun=True)) > 1  # one seed stands for all: it is slow


def test_every_method_has_a_config_a_file_and_code():
    assert set(GROUPS["method"]) == set(config.METHODS) == set(REGISTRY)


def test_every_protocol_has_its_training_and_decoding():
    for protocol in GROUPS["protocol"]:
        assert protocol in GROUPS["train"], f"configs/train/{protocol}.yaml is missing"
        assert protocol in GROUPS["decode"], f"configs/decode/{protocol}.yaml is missing"


def test_names_leave_no_doubt():
    """No two cells may look for the same tuned file, and a name must fit into a folder's."""
    for group, choices in FOLLOWING.items():
        places = [CELL.index(choice) for choice in choices]
        found = {tuple(names[i] for i in places) for names in NAMES}
        assert len({"_".join(names) for names in found}) == len(found), group
    assert all(re.fullmatch(r"[a-z0-9][a-z0-9.-]*", name) for _, name in OPTIONS)


@pytest.mark.parametrize(("group", "stem"), TUNED)
def test_a_tuned_file_belongs_to_its_cells(group: str, stem: str):
    """Hydra looks for it as an optional group: a misnamed file would never be read, silently."""
    found = parts(group, stem)
    assert found, f"configs/{group}/{stem}.yaml is no {'_'.join(f'<{choice}>' for choice in FOLLOWING[group])}"


@pytest.mark.parametrize(("group", "stem"), TUNED)
def test_a_tuned_file_takes_effect(group: str, stem: str):
    """Each of its values is in the composed run, and at least one is not what it would be without."""
    path = FOLDER / group / f"{stem}.yaml"
    assert path.read_text(encoding="utf-8").startswith("# @package _global_\n"), "else it lands below its group"
    tree = OmegaConf.load(path)
    assert isinstance(tree, DictConfig)
    assert tree.keys() <= {"train", "decode", "method", "protocol"}, "these sections alone may be tuned"
    # A more special file has the last word, so one cell is enough that shows all values.
    assert any(takes_effect(tree, names, group) for names in parts(group, stem))


def takes_effect(tree: DictConfig, names: Sequence[str], group: str) -> bool:
    described = OmegaConf.create(compose.plain(run_of(names)))
    without = untuned(names, group)
    return bool(OmegaConf.merge(described, tree) == described and OmegaConf.merge(without, tree) != without)


def untuned(names: Sequence[str], group: str) -> DictConfig:
    """The cell as it would be without its file of this group."""
    compose.register_schemas()
    overrides = [f"{group}={name}" for group, name in zip(CELL, names, strict=True)]
    with initialize_config_dir(str(FOLDER), version_base="1.3"):
        composed = hydra_compose(compose.PRIMARY, overrides=[*overrides, f"{group}=none-such"])
    resolved = OmegaConf.to_container(composed, resolve=True)  # no run yet: some cells fit only with their file
    assert isinstance(resolved, dict)
    return OmegaConf.create(resolved)


@pytest.mark.parametrize(("group", "stem"), TUNED)
def test_a_tuned_value_names_its_source(group: str, stem: str):
    """A number of a paper carries where it stands; one of our own says so and why."""
    text = (FOLDER / group / f"{stem}.yaml").read_text(encoding="utf-8")
    for line in text.splitlines()[1:]:
        code, _, comment = line.partition("#")
        if re.search(r":\s*\S", code):
            named = re.match(r" (LoRA paper|LoDA paper|Li & Liang 2021|ours: \S)", comment)
            assert named, f"configs/{group}/{stem}.yaml: no source on the line '{line}'"


@pytest.mark.parametrize("table", ROWS)
def test_every_row_of_a_table_composes(table: str):
    protocol, dataset, methods = ROWS[table]
    for model, names in methods.items():
        for method in names.split():
            run_of((protocol, model, method, dataset))


@pytest.mark.parametrize(("method", "dataset"), LI_LIANG)
def test_rows_that_the_papers_copy_have_li_and_liangs_settings(method: str, dataset: str):
    """Learning rate, epochs and batch size in any protocol, all else in theirs alone."""
    for protocol in ("lora", "li-liang"):
        train = run_of((protocol, "gpt2-medium", method, dataset)).train
        assert (train.lr, train.epochs, train.batch_size, train.warmup_steps) == (*LI_LIANG[method, dataset], 0)
    for model in ("gpt2-medium", "gpt2-large"):  # those on Large were never published
        run = run_of(("li-liang", model, method, dataset))
        train, decode = run.train, run.decode
        assert (train.lr, train.epochs, train.batch_size) == LI_LIANG[method, dataset]
        prefix = method == "prefix-layer"
        assert (train.loss, train.model_dropout) == (("pairs", 0.0) if prefix else ("tokens", 0.1))
        assert (train.eps, train.clip, train.weight_decay, train.label_smoothing) == (1e-8, 1.0, 0.0, 0.0)
        assert (decode.search, decode.beam, decode.no_repeat_ngram, decode.min_length) == ("transformers-3", 5, 0, 5)
        assert (decode.banned_tokens, decode.end_tokens) == (("\n\n", "\n"), ("<|endoftext|>",))


@pytest.mark.parametrize("method", GROUPS["method"])
def test_every_method_composes_on_the_embedded_model_and_data(method: str):
    assert run_of(("lora", "gpt2-nano", method, "mini")).train.epochs == 1


@pytest.mark.slow
def test_all_cells_compose():
    for names in random.Random(0).sample(NAMES, min(CHECKED, len(NAMES))):
        run = run_of(names)
        assert (run.protocol.name, run.model.name, run.method.name, run.dataset.name) == names


def test_pins_are_whole_hashes():
    for name in GROUPS["dataset"]:
        (cell,) = compose.cells([f"dataset={name}"])
        dataset = cell.run.dataset
        files = {dataset.files.train, dataset.files.valid, dataset.files.test}
        assert all(re.fullmatch("[0-9a-f]{40}", pin.blob) for pin in dataset.pins.values())
        assert dataset.pins.keys() == (files if dataset.remote else set()), f"{name}: one pin for each downloaded file"
        assert len({pin.blob for pin in dataset.pins.values()}) == len(dataset.pins)


def test_models_of_the_hub_are_pinned():
    for name in GROUPS["model"]:
        (cell,) = compose.cells([f"model={name}"])
        model = cell.run.model
        assert model.path is None
        if model.hub is None:
            assert model.revision is None
        else:
            assert re.fullmatch("[0-9a-f]{40}", model.revision or ""), f"{name}: a commit, not a branch"


def test_data_come_from_a_fixed_commit():
    assert re.search("/[0-9a-f]{40}/", config.Data().base_url)


def classes() -> list[ast.ClassDef]:
    tree = ast.parse(Path(inspect.getfile(config)).read_text(encoding="utf-8"))
    return [node for node in tree.body if isinstance(node, ast.ClassDef)]


@pytest.mark.parametrize("node", classes(), ids=lambda node: node.name)
def test_every_field_is_documented(node: ast.ClassDef):
    """One line after each field: what it is, in which unit, where its default comes from."""
    for field, after in itertools.pairwise([*node.body, ast.Pass()]):
        if isinstance(field, ast.AnnAssign):
            line = after.value.value if isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant) else None
            name = f"config.{node.name}.{ast.unparse(field.target)}"
            assert isinstance(line, str), f"{name} has no line that says what it is"
            assert line.strip() and "\n" not in line, f"{name}: one line, please"


def test_every_section_is_closed_and_frozen():
    assert set(config.SECTIONS) | {"method", "seed", "method_file"} == {f.name for f in fields(config.Run)}
    for section in [*config.SECTIONS.values(), *config.METHODS.values(), config.MethodFile, config.Run]:
        assert is_dataclass(section)
        assert section.__dataclass_params__.frozen, section.__name__  # type: ignore[attr-defined]


@pytest.mark.parametrize("section", config.METHODS.values())
def test_a_default_name_is_one_of_its_methods(section: type):
    """Methods may share a dataclass; their YAML files then say the name."""
    assert config.METHODS[section().name] is section
