"""Overrides to runs: what composes, what every fault says, and what a run is identified by."""

import functools
import math
import re
from collections.abc import Iterator
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import get_type_hints

import pytest
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser

from lodarepro import compose, config
from lodarepro.compose import cells, changed, from_plain, plain, run_id
from lodarepro.errors import BadInput

# The embedded cell: its limits are low, and no test here depends on what is tuned for it.
NANO = ("model=gpt2-nano", "dataset=mini")
CHECKSUMS = {"train": "a" * 64, "valid": "b" * 64, "test": "c" * 64, "model": "d" * 64}
METHODS = ", ".join(sorted(config.METHODS))
KEYS_OF_LORA = ", ".join(sorted(f.name for f in fields(config.Lora)))
CANNOT_ADD = "keys can't be added (+, ++) or deleted (~), as that would hide misspelt names; write "
DATASET = """\
defaults: [/schema/dataset@_here_]
name: mine
format: e2e
suite: e2e
files: {train: a.txt, valid: b.txt, test: c.txt}
"""


@functools.cache
def one(*overrides: str) -> config.Run:
    (cell,) = cells(overrides)
    return cell.run


def faults(*overrides: str, multirun: bool = False, extra: Path | None = None) -> tuple[str, ...]:
    with pytest.raises(BadInput) as e:
        cells(overrides, multirun=multirun, extra_folder=extra)
    assert e.value.exit_code == 2
    assert all("\n" not in fault for fault in e.value.faults)
    return e.value.faults


# what composes ----------------------------------------------------------------------------------


def test_options_and_values_reach_the_run():
    run = one("model=gpt2-large", "method=lora", "dataset=webnlg", "method.rank=8", "train.lr=1e-3", "seed=7")
    assert (run.model.n_layer, run.dataset.format, run.seed) == (36, "webnlg", 7)
    assert run.method == config.Lora(rank=8, dropout=run.method.dropout)
    assert run.train.lr == 1e-3
    assert run.dataset.pins["dev.json"].examples == 2258


def test_defaults_are_those_of_the_dataclasses():
    run = one(*NANO, "method=ft")
    assert run.method == config.Ft()
    assert run.dataset.limit == config.Limit()
    assert run.runtime == config.Runtime()
    assert run.results == config.Results()


def test_train_and_decode_follow_the_protocol_and_may_part_from_it():
    assert one(*NANO, "protocol=loda").protocol.name == "loda"
    run = one(*NANO, "protocol=loda", "train=lora", "decode=lora")
    assert run.protocol.name == "loda"


def test_lists_nulls_and_dictionaries():
    run = one(*NANO, "method.targets=[q,o,down]", "train.betas=[0.8,0.9]", "model.path=null", "train={epochs: 3}")
    assert run.method.targets == ("q", "o", "down")
    assert run.train.betas == (0.8, 0.9)
    assert run.model.path is None
    assert run.train.epochs == 3


def test_an_integer_is_taken_for_a_float_and_not_the_reverse():
    assert one(*NANO, "train.clip=1").train.clip == 1.0
    assert faults(*NANO, "method.rank=4.0") == ("method.rank=4.0: input should be a valid integer",)


def test_a_file_name_with_a_point_is_a_value():
    """Hydra would take `train.txt` for a path of keys only on the left of the sign."""
    run = one("dataset=e2e", "dataset.files.train=valid.txt", "dataset.files.test=/a/b c.txt")
    assert (run.dataset.files.train, run.dataset.files.test) == ("valid.txt", "/a/b c.txt")


def test_the_last_of_equal_keys_counts():
    assert one(*NANO, "seed=1", "seed=2").seed == 2


def test_the_cache_folder_may_come_from_the_environment(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("LODAREPRO_CACHE", "/elsewhere")
    assert cells(NANO)[0].run.data.cache == "/elsewhere"
    monkeypatch.delenv("LODAREPRO_CACHE")
    assert cells(NANO)[0].run.data.cache == "~/.cache/lodarepro"


def test_end_tokens_are_two_newlines_not_a_backslash():
    assert one(*NANO).decode.end_tokens == ("<|endoftext|>", "\n\n")


# one fault --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("override", "fault"),
    [
        ("method=lroa", f"method=lroa: no such method; did you mean 'lora'? (valid: {METHODS})"),
        ("method=zzz", f"method=zzz: no such method (valid: {METHODS})"),
        ("method=null", f"method=null: no such method (valid: {METHODS})"),
        (
            "model=gpt2-medum",
            "model=gpt2-medum: no such model; did you mean 'gpt2-medium'? (valid: gpt2-large, gpt2-medium, gpt2-nano)",
        ),
        ("train=lodaa", "train=lodaa: no such train; did you mean 'loda'? (valid: li-liang, loda, lora)"),
        (
            "methd=lora",
            "methd=lora: no such key or choice; did you mean 'method'? "
            "(valid: data, dataset, decode, logger, method, model, protocol, results, runtime, seed, sweep, train)",
        ),
        (
            "=3",
            "=3: no such key or choice "
            "(valid: data, dataset, decode, logger, method, model, protocol, results, runtime, seed, sweep, train)",
        ),
        ("method.rnk=8", f"method.rnk=8: no such key 'rnk' in 'method'; did you mean 'rank'? (valid: {KEYS_OF_LORA})"),
        (
            "dataset.files.trian=x",
            "dataset.files.trian=x: no such key 'trian' in 'dataset.files'; did you mean 'train'? "
            "(valid: test, train, valid)",
        ),
        ("method.rank.x=3", "method.rank.x=3: 'method.rank' has no keys of its own"),
        ("+method.rnk=8", f"'+method.rnk=8': {CANNOT_ADD}method.rnk=VALUE"),
        ("++method.rank=8", f"'++method.rank=8': {CANNOT_ADD}method.rank=VALUE"),
        ("~method.rank", f"'~method.rank': {CANNOT_ADD}method.rank=VALUE"),
        ("~method", f"'~method': {CANNOT_ADD}method=VALUE"),
        (
            "method.rank",
            "'method.rank' can't be read as KEY=VALUE; quote values with special characters: 'key=\"a b\"'",
        ),
        (
            "tuned=lora_gpt2-medum",
            "'tuned=lora_gpt2-medum': tuned settings follow from protocol, model, method and dataset; "
            "set single keys instead, as in train.lr=VALUE",
        ),
        ("method.targets=[]", "method.targets=[]: name at least one target, each once"),
        ("method.targets=[q,q]", 'method.targets=["q", "q"]: name at least one target, each once'),
        ("method.name=foo", f"method.name=foo: no such method (valid: {METHODS})"),
        ("train.lr=${nix}", "train.lr: Interpolation key 'nix' not found"),
        ("model.n_head=7", "model.n_head=7 does not divide model.n_embd=128"),
        (
            "protocol.max_length=1024",
            "protocol.max_length=1024 exceeds the model's 512 positions; set protocol.max_length=512 or less",
        ),
        (
            "decode.max_new_tokens=512",
            "decode.max_new_tokens=512 leaves no room for a prompt in protocol.max_length=512",
        ),
        ("runtime.micro_batch=0", "runtime.micro_batch=0: input should be greater than 0"),
        ("decode.beam=2049", "decode.beam=2049 exceeds the vocabulary of 2048"),
        ("train.keep=[]", "train.keep=[]: name at least one checkpoint, each once"),
        ("train.keep=[best,best]", 'train.keep=["best", "best"]: name at least one checkpoint, each once'),
        ("train.keep=[worst]", 'train.keep=["worst"]: worst is none of last, best and epoch-N'),
        ("train.keep=[epoch-0]", 'train.keep=["epoch-0"]: epoch-0 is none of last, best and epoch-N'),
        ("seed=1,2", "seed=1,2: several values for one key need -m (a sweep), as in: lodarepro run -m seed=1,2"),
        (
            "seed=range(1,3)",
            "seed=range(1,3): several values for one key need -m (a sweep), as in: lodarepro run -m seed=range(1,3)",
        ),
    ],
)
def test_a_fault_is_one_line_with_the_way_out(override: str, fault: str):
    assert faults(*NANO, override) == (fault,)


def test_an_epoch_to_keep_is_one_of_the_training():
    keep = "train.keep=[epoch-2,best,epoch-6]"
    assert faults(*NANO, "train.epochs=5", keep) == (
        "train.keep: there is no epoch-6 in a training of 5 epochs; give train.keep=[best,last]",
    )
    assert one(*NANO, "train.epochs=6", keep).train.keep == ("epoch-2", "best", "epoch-6")
    # How many epochs these are shows when the data are there.
    assert one(*NANO, "train.epochs=5", "train.max_steps=9999", keep).train.max_steps == 9999


VALUES = [
    ("method.rank=abc", "method.rank=abc: input should be a valid integer"),
    ("method.rank=", "method.rank=: input should be a valid integer"),
    ("method.rank='4'", "method.rank=4: input should be a valid integer"),
    ("method.rank=true", "method.rank=true: input should be a valid integer"),
    ("method.rank=null", "method.rank=null: input should be a valid integer"),
    ("method.same_init=1", "method.same_init=1: input should be a valid boolean"),
    ("model.path=3", "model.path=3: input should be a valid string"),
    ("seed=1.5", "seed=1.5: input should be a valid integer"),
    ("dataset.pins=3", "dataset.pins=3: input should be an object"),
    ("method.rank=0", "method.rank=0: input should be greater than 0"),
    ("method.dropout=1", "method.dropout=1: input should be less than 1"),
    ("method.dropout=-0.1", "method.dropout=-0.1: input should be greater than or equal to 0"),
    ("train.lr=0", "train.lr=0: input should be greater than 0"),
    ("train.lr=inf", "train.lr=Infinity: input should be a finite number"),
    ("train.betas=[0.9,1]", "train.betas[1]=1: input should be less than 1"),
    ("train.warmup_steps=-1", "train.warmup_steps=-1: input should be greater than or equal to 0"),
    ("train.precision=fp16", "train.precision=fp16: input should be 'fp32', 'tf32' or 'bf16'"),
    ("decode.precision=fp16", "decode.precision=fp16: input should be 'fp32', 'tf32' or 'bf16'"),
    ("train.loss=words", "train.loss=words: input should be 'tokens' or 'pairs'"),
    ("train.model_dropout=1", "train.model_dropout=1: input should be less than 1"),
    ("train.max_steps=0", "train.max_steps=0: input should be greater than 0"),
    ("train.time_limit=0", "train.time_limit=0: input should be greater than 0"),
    ("runtime.device=gpu", "runtime.device=gpu: give auto, cpu, cuda or cuda:N"),
    ("dataset.limit.test=0", "dataset.limit.test=0: input should be greater than 0"),
    ("method.targets=[z]", "method.targets[0]=z: input should be 'q', 'k', 'v', 'o', 'up' or 'down'"),
]


def batches() -> list[list[tuple[str, str]]]:
    """The faults of VALUES, no key twice in a batch: a command each would take the time of a coffee."""
    found: list[dict[str, tuple[str, str]]] = [{}]
    for override, fault in VALUES:
        key = override.partition("=")[0]
        for batch in found:
            if key not in batch:
                batch[key] = (override, fault)
                break
        else:
            found.append({key: (override, fault)})
    return [list(batch.values()) for batch in found]


@pytest.mark.parametrize("batch", batches(), ids=lambda batch: " ".join(o for o, _ in batch))
def test_an_unfit_value_is_one_line_with_what_fits(batch: list[tuple[str, str]]):
    assert sorted(faults(*NANO, *(o for o, _ in batch))) == sorted(fault for _, fault in batch)


@pytest.mark.parametrize("name", ["../elsewhere", "a/b", "", ".hidden"])
def test_a_name_that_is_part_of_a_folders_name_is_no_path(name: str):
    (fault,) = faults(*NANO, f"model.name='{name}'")
    assert fault.startswith(f"model.name={name}: string should match pattern")


def test_the_largest_values_that_fit():
    run = one(*NANO, "protocol.max_length=512", "decode.max_new_tokens=511", "decode.beam=2048")
    assert run.protocol.max_length == run.model.n_positions


def floats(section: type, where: str) -> Iterator[str]:
    """The keys of a section that take a single number with a fraction, however it is bounded."""
    hints = get_type_hints(section)
    for f in fields(section):
        hint = hints[f.name]
        if is_dataclass(hint):
            yield from floats(hint, f"{where}.{f.name}")  # type: ignore[arg-type]
        elif hint is float or hint == float | None:
            yield f"{where}.{f.name}"


@pytest.mark.parametrize("value", ["inf", "-inf", "nan"])
def test_no_number_may_be_infinite_or_none_at_all(value: str):
    """Neither is JSON: a record of such a run could not be written at its end."""
    sections = {**config.SECTIONS, **{f"method:{name}": method for name, method in config.METHODS.items()}}
    keys = {key for name, section in sections.items() for key in floats(section, name)}
    assert {"train.lr", "decode.length_penalty", "method:lora.alpha", "runtime.checkpoint_minutes"} <= keys
    for method in config.METHODS:
        mine = sorted(key.replace(f":{method}", "") for key in keys if ":" not in key or f":{method}." in key)
        found = faults(*NANO, f"method={method}", *(f"{key}={value}" for key in mine))
        assert sorted(fault.partition("=")[0] for fault in found) == mine


# several faults ---------------------------------------------------------------------------------


def test_all_faults_are_in_one_error():
    found = faults("method=lroa", "train.lrr=3", "+x=1", "model.n_head=7", "seed=1,2", "train.epochs=0")
    assert found == (
        f"'+x=1': {CANNOT_ADD}x=VALUE",
        "seed=1,2: several values for one key need -m (a sweep), as in: lodarepro run -m seed=1,2",
        f"method=lroa: no such method; did you mean 'lora'? (valid: {METHODS})",
        found[3],
        "train.epochs=0: input should be greater than 0",
    )
    assert found[3].startswith("train.lrr=3: no such key 'lrr' in 'train'; did you mean 'lr'?")


def test_keys_of_an_unknown_option_are_not_judged():
    (fault,) = faults("method=lroa", "method.rnk=8")
    assert fault.startswith("method=lroa: ")


def test_all_combined_faults_together():
    assert faults(*NANO, "model.n_head=3", "protocol.max_length=600", "decode.beam=3000") == (
        "model.n_head=3 does not divide model.n_embd=128",
        "protocol.max_length=600 exceeds the model's 512 positions; set protocol.max_length=512 or less",
        "decode.beam=3000 exceeds the vocabulary of 2048",
    )


def test_a_key_of_another_method():
    assert faults(*NANO, "method=ft", "method.rank=4") == (
        "method.rank=4: no such key 'rank' in 'method' (valid: name)",
    )


def test_a_fault_of_a_sweep_is_told_once():
    assert faults("method=lora,lroa", "seed=1,2,3", multirun=True) == (
        f"method=lroa: no such method; did you mean 'lora'? (valid: {METHODS})",
    )


def test_a_good_command_after_a_bad_one():
    """Hydra's state is global; a fault must not leave any behind."""
    faults("method=lroa")
    (cell,) = cells(NANO)
    assert cell.run.model.name == "gpt2-nano"


# sweeps -----------------------------------------------------------------------------------------

SWEEPS = [
    ["seed=1"],
    ["seed=2,1"],
    ["method=ft,lora", *NANO, "seed=1,2,3"],
    ["seed=range(1,4)", "train.epochs=choice(1,2)"],
    ["method=lora", "method.rank=4,8", "train.lr=1e-3,2e-4", "seed=1,2"],
    ["method.targets=[q],[q,v]", "seed=1,2"],
    ["data.root='a b','c,d'"],
    ["seed=5,3,4", "seed=1"],
]


@pytest.mark.parametrize("overrides", SWEEPS, ids=lambda o: " ".join(o))
def test_cells_and_their_order_are_hydras(overrides: list[str]):
    parsed = OverridesParser.create().parse_overrides(overrides)
    (expected,) = BasicSweeper.split_arguments(parsed, max_batch_size=None)
    assert [list(cell.overrides) for cell in cells(overrides, multirun=True)] == [list(c) for c in expected]


def test_a_glob_names_the_options():
    found = cells(["method=glob(ft*)", *NANO, "seed=1,2"], multirun=True)
    names = ("ft", "ft-qv", "ft-top2")
    assert [(c.run.method.name, c.run.seed) for c in found] == [(name, seed) for name in names for seed in (1, 2)]


def test_a_glob_without_a_match():
    (fault,) = faults("method=glob(z*)", multirun=True)
    assert fault == "method=glob(z*): a glob(...) among these matches no option, so there is no cell to run"


def test_hydras_own_keys_are_left_to_it():
    found = cells(["hydra/launcher=joblib", "hydra.sweep.dir=x", *NANO], multirun=True)
    assert [cell.overrides for cell in found] == [NANO]


# a user's own folder ----------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "dataset").mkdir()
    (tmp_path / "dataset" / "mine.yaml").write_text(DATASET, encoding="utf-8")
    return tmp_path


def test_a_dataset_of_the_users_own(folder: Path):
    (cell,) = cells(["dataset=mine", "model=gpt2-nano"], extra_folder=folder)
    assert cell.run.dataset == config.Dataset(
        name="mine", format="e2e", suite="e2e", files=config.Files("a.txt", "b.txt", "c.txt")
    )
    assert compose.groups(folder)["dataset"] == ["dart", "e2e", "e2e-small", "mine", "mini", "webnlg"]
    assert "mine" not in compose.groups()["dataset"]


def test_without_the_folder_it_is_unknown(folder: Path):
    cells(["dataset=mine"], extra_folder=folder)
    assert faults("dataset=mine") == (
        "dataset=mine: no such dataset; did you mean 'mini'? (valid: dart, e2e, e2e-small, mini, webnlg)",
    )


def test_contexts_are_held_out_of_the_training_file_alone():
    assert faults("dataset.hold_out=47") == (
        "dataset.hold_out=47: validates on a part of the training file; give dataset.files.valid=train.txt too, or "
        "dataset.hold_out=null",
    )
    assert faults("dataset.hold_out=0", "dataset.files.valid=train.txt") != ()


def test_faults_in_the_users_file(folder: Path):
    text = DATASET.replace("files:", "fils:").replace("suite: e2e", "suite: e2")
    (folder / "dataset" / "mine.yaml").write_text(text, encoding="utf-8")
    assert faults("dataset=mine", extra=folder) == (
        "dataset.fils: no such key in 'dataset'; did you mean 'files'? "
        "(valid: files, format, hold_out, limit, name, pins, remote, suite)",
        "dataset.files.train: a value is needed; give dataset.files.train=VALUE",
        "dataset.files.valid: a value is needed; give dataset.files.valid=VALUE",
        "dataset.files.test: a value is needed; give dataset.files.test=VALUE",
        "dataset.suite=e2: input should be 'e2e', 'dart' or 'webnlg'",
    )


def test_a_file_that_is_not_yaml(folder: Path):
    (folder / "dataset" / "mine.yaml").write_text("name: [a\n", encoding="utf-8")
    (fault,) = faults("dataset=mine", extra=folder)
    assert fault.startswith("dataset=mine: while parsing a flow sequence")
    assert f'"{folder}/dataset/mine.yaml", line 2' in fault


def test_a_folder_that_is_not_there(tmp_path: Path):
    assert faults(extra=tmp_path / "none") == (f"--config-dir={tmp_path / 'none'}: no such folder",)


# identity ---------------------------------------------------------------------------------------


def test_the_id_of_a_run_stays_what_it_was():
    """Should this fail, old results are lost: raise PROTOCOL_VERSION, or leave the identity alone.

    The run is written out, so that tuned values of the papers' models may change.
    """
    run = config.Run(
        model=config.Model("gpt2-medium", 24, 16, 1024, 50257, 1024, hub="a/b", revision="c"),
        method=config.Lora(),
        dataset=config.Dataset("e2e", "e2e", "e2e", config.Files("train.txt", "valid.txt", "test.txt"), remote="e2e"),
        protocol=config.Protocol("lora"),
        train=config.Train(),
        decode=config.Decode(),
        data=config.Data(),
        results=config.Results(),
        runtime=config.Runtime(),
    )
    assert run_id(run, CHECKSUMS) == "e2e_gpt2-medium_lora-r4_lora_s1_301a6c59a9c0"
    assert run_id(replace(run, method=config.Ft()), CHECKSUMS).startswith("e2e_gpt2-medium_ft_lora_s1_")


@pytest.mark.parametrize(
    "override",
    [
        "model.path=/somewhere",
        "model.hub=me/mine",
        "model.revision=x",
        "dataset.files.train=copy.txt",
        "dataset.remote=x",
        "data.root=/data",
        "data.cache=/c",
        "data.base_url=http://localhost",
        "results.root=/r",
        "runtime.device=cpu",
        "runtime.threads=2",
        "runtime.decode_batch=1",
        "runtime.checkpoint_minutes=1",
        "runtime.micro_batch=1",
        "runtime.compile=true",
        "train.time_limit=10",
    ],
)
def test_places_and_machines_are_not_part_of_the_id(override: str):
    assert run_id(one(*NANO, override), CHECKSUMS) == run_id(one(*NANO), CHECKSUMS)


@pytest.mark.parametrize(
    "override",
    [
        "seed=2",
        "method=ft",
        "method.rank=7",
        "method.alpha=17",
        "method.targets=[v,q]",
        "method.same_mask=false",
        "train.lr=1.23e-3",
        "train.epochs=77",
        "train.clip=0.77",
        "train.precision=bf16",
        "train.max_steps=77",
        "train.loss=pairs",
        "train.model_dropout=0.1",
        "train.keep=[last]",
        "decode.beam=7",
        "decode.banned_tokens=[a]",
        "decode.precision=bf16",
        "decode.end_tokens=['<|endoftext|>']",
        "protocol=loda",
        "protocol.loss_on=all",
        "dataset.limit.train=10",
        "dataset.hold_out=10 dataset.files.valid=train.txt",
        "dataset.suite=dart",
        "model.name=other",
    ],
)
def test_what_decides_numbers_is_part_of_the_id(override: str):
    assert run_id(one(*NANO, *override.split()), CHECKSUMS) != run_id(one(*NANO), CHECKSUMS)


@pytest.mark.parametrize("name", sorted(CHECKSUMS))
def test_contents_are_part_of_the_id(name: str):
    run = one(*NANO)
    assert run_id(run, {**CHECKSUMS, name: "e" * 64}) != run_id(run, CHECKSUMS)


def test_the_protocol_version_is_part_of_the_id(monkeypatch: pytest.MonkeyPatch):
    run = one(*NANO)
    before = run_id(run, CHECKSUMS)
    monkeypatch.setattr(compose, "PROTOCOL_VERSION", compose.PROTOCOL_VERSION + 1)
    assert run_id(run, CHECKSUMS) != before


def test_the_same_settings_have_the_same_id_however_they_are_given():
    assert run_id(one(*NANO, "train.lr=0.0002", "train.clip=1.0"), CHECKSUMS) == run_id(
        one("dataset=mini", "train.clip=1", "model=gpt2-nano", "train.lr=2e-4"), CHECKSUMS
    )


def test_the_order_in_which_checkpoints_are_named_is_not_part_of_the_id():
    runs = [one(*NANO, "train.epochs=3", f"train.keep=[{keep}]") for keep in ("last,epoch-2,best", "best,last,epoch-2")]
    assert runs[0] != runs[1]
    assert run_id(runs[0], CHECKSUMS) == run_id(runs[1], CHECKSUMS)


def test_an_id_is_a_readable_folder_name():
    name = run_id(one(*NANO, "seed=3"), CHECKSUMS)
    assert re.fullmatch(r"mini_gpt2-nano_lora-r4_lora_s3_[0-9a-f]{12}", name)
    assert run_id(one(*NANO, "method=ft"), CHECKSUMS).startswith("mini_gpt2-nano_ft_lora_s1_")


# plain and changed ------------------------------------------------------------------------------


@pytest.mark.parametrize("overrides", [[], ["method=ft"], ["dataset=dart", "model=gpt2-large"], ["train.clip=1"]])
def test_a_run_survives_its_record(overrides: list[str]):
    run = one(*overrides)
    again = from_plain(plain(run))
    assert again == run
    assert run_id(again, CHECKSUMS) == run_id(run, CHECKSUMS)


def test_a_text_with_interpolation_signs_survives_its_record():
    """A folder's name is data, not a reference to another key."""
    run = replace(one(*NANO), results=config.Results(root="a ${b} c"))
    assert from_plain(plain(run)).results.root == "a ${b} c"


def test_a_record_of_another_version_is_checked():
    tree = plain(one(*NANO))
    tree["train"]["momentum"] = 0.9
    tree["method"]["rank"] = "4"
    with pytest.raises(BadInput) as e:
        from_plain(tree)
    assert e.value.faults[0].startswith("train.momentum: no such key in 'train'")
    assert e.value.faults[1] == "method.rank=4: input should be a valid integer"


@pytest.mark.parametrize("section", ["train", "method", "seed"])
def test_a_record_without_a_section(section: str):
    tree = plain(one(*NANO))
    del tree[section]
    with pytest.raises(BadInput, match=f"^{section}"):
        from_plain(tree)


def test_decoding_may_change():
    run = one(*NANO)
    new = changed(run, ["decode.beam=5", "model.path=/m", "data.root=/d", "runtime.decode_batch=2"])
    assert (new.decode.beam, new.model.path, new.data.root, new.runtime.decode_batch) == (5, "/m", "/d", 2)
    assert new == replace(
        run,
        decode=replace(run.decode, beam=5),
        model=replace(run.model, path="/m"),
        data=replace(run.data, root="/d"),
        runtime=replace(run.runtime, decode_batch=2),
    )
    assert changed(run, []) == run


def test_nothing_else_may_change():
    with pytest.raises(BadInput) as e:
        changed(one(*NANO), ["train.lr=1", "model.n_layer=2", "decode.beem=3", "+decode.beam=3", "method=ft"])
    way_out = (
        ": a finished run's training can't change; give decode.KEY=VALUE "
        "(or model.path, data.*, runtime.* for this machine)"
    )
    found = e.value.faults
    assert found[0] == f"'+decode.beam=3': {CANNOT_ADD}decode.beam=VALUE"
    assert found[1:3] == (f"train.lr=1{way_out}", f"model.n_layer=2{way_out}")
    assert found[3].startswith("decode.beem=3: no such key 'beem' in 'decode'; did you mean 'beam'?")
    assert found[4] == f"method=ft{way_out}"


@pytest.mark.parametrize("override", ["decode.beam=x", "decode.beam=0", "decode.beam=1,2", "decode=lora"])
def test_an_unfit_change(override: str):
    with pytest.raises(BadInput) as e:
        changed(one(*NANO), [override])
    (fault,) = e.value.faults
    assert fault.startswith("decode")


def test_a_number_equal_in_print_is_kept_to_the_last_bit():
    run = one(*NANO, "train.lr=0.00020000000000000004")
    assert from_plain(plain(run)).train.lr == math.nextafter(2e-4, 1)
