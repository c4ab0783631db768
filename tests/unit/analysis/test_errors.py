"""What texts get wrong: planted errors are counted, each in its place; groups are those of the data."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from lodarepro import records
from lodarepro.analysis import slots
from lodarepro.analysis.errors import errors
from lodarepro.errors import BadInput
from lodarepro.findings import Findings, Grid, HeatMap
from lodarepro.metrics import SUITES, score
from lodarepro.records import Decoded
from lodarepro.scores import Score, SuiteScores

Fabricate = Callable[..., Path]
MINI = Path(__file__).resolve().parents[3] / "lodarepro" / "data" / "mini" / "test.txt"


def grid(found: Findings, key: str) -> Grid:
    return next(one for one in found.grids if one.key == key)


def rows(found: Findings, key: str) -> list[dict[str, Any]]:
    of = grid(found, key)
    return [dict(zip((column.key for column in of.columns), row, strict=True)) for row in of.rows]


def decoded(context: str, references: Sequence[str], hypothesis: str, subset: str | None = None) -> Decoded:
    return Decoded(context, tuple(references), hypothesis, subset, -1.0, True)


def fault(*folders: Path, overrides: Sequence[str] = (), checkpoint: str | None = None) -> str:
    with pytest.raises(BadInput) as e:
        errors(folders, overrides, checkpoint=checkpoint)
    (line,) = e.value.faults
    assert "\n" not in line
    return line


# slots ------------------------------------------------------------------------------------------

TRAILS = {
    "name : Norcombe Trail | region : the Pelholt Moors | length : 18.6 km | climb : 440 m | difficulty : hard": (
        "Norcombe Trail , a hard route in the Pelholt Moors , rises 440 m . Plan for 18.6 km ."
    ),
    "name : High Wren Walk | region : Pelenholt | season : July to October": (
        "High Wren Walk in Pelenholt is at its best from July to October ."
    ),
    "name : Stony Marsh Circuit | climb : 370 m | dogs : not allowed": (
        "On Stony Marsh Circuit , no dogs are admitted . The route has 370 m of uphill walking ."
    ),
    "name : Tarevik Trail | length : 2.8 km | dogs : on a lead": (
        "Tarevik Trail is 2.8 km long . Dogs must be on a lead ."
    ),
}
FACTS = 5 + 3 + 3 + 3
SLOTS = ("name", "region", "highlight", "length", "climb", "difficulty", "season", "dogs")
PLANTED = [
    "Norcombe Trail , an easy route in the Pelholt Moors . Plan for 18.6 km .",  # difficulty wrong, climb missing
    "High Wren Walk in Pelenholt is at its best from July to October . Dogs are welcome .",  # dogs added
    "Stony Marsh Circuit rises 380 m .",  # climb wrong, dogs missing
    "Tarevik Trail is 2.8 km long . Dogs must be on a lead .",  # right
]
EXPECTED = {"missing": {"climb": 1, "dogs": 1}, "added": {"dogs": 1}, "wrong": {"difficulty": 1, "climb": 1}}


def texts(hypotheses: Sequence[str]) -> list[Decoded]:
    return [decoded(context, [right], text) for (context, right), text in zip(TRAILS.items(), hypotheses, strict=True)]


@pytest.fixture
def mini(fabricate: Fabricate) -> list[Path]:
    """A run that gets all right, and one with planted errors."""
    return [
        fabricate("method=lora", decoded=texts(list(TRAILS.values())), bleu=0.5),
        fabricate("method=lora", "method.rank=2", decoded=texts(PLANTED)),
    ]


def test_planted_errors_are_counted(mini: list[Path]):
    right, planted, references = rows(errors(mini), "slot-errors")
    assert (right["run"], planted["run"], references["run"]) == ("lora r=4", "lora r=2", "references")
    for one in (right, references):
        assert [one[key] for key in ("texts", "slots", "missing", "added", "wrong")] == [4, FACTS, 0, 0, 0]
        assert (one["slot_error_rate"], one["with_error"]) == (0.0, 0.0)
    assert [planted[key] for key in ("texts", "slots", "missing", "added", "wrong")] == [4, FACTS, 2, 1, 2]
    assert planted["slot_error_rate"] == pytest.approx(100 * 5 / FACTS)
    assert planted["with_error"] == pytest.approx(75.0)
    assert (right["bleu"], planted["bleu"], references["bleu"]) == (50.0, 25.0, None)


def test_each_slot_has_its_own(mini: list[Path]):
    found = errors(mini)
    having = {slot: sum(f"{slot} : " in context for context in TRAILS) for slot in SLOTS}
    whole = {(row["slot"], row["run"]): row for row in rows(found, "slot-errors-by-slot-and-run")}
    assert list(whole) == [(slot, run) for slot in SLOTS for run in ("lora r=4", "lora r=2", "references")]
    for (slot, run), row in whole.items():
        counts = {kind: of.get(slot, 0) if run == "lora r=2" else 0 for kind, of in EXPECTED.items()}
        assert row["contexts"] == having[slot]
        assert row["added_per_cent"] == 100 * counts["added"] / 4
        for kind in ("missing", "wrong"):
            shares = 100 * counts[kind] / having[slot] if having[slot] else None
            assert row[f"{kind}_per_cent"] == (None if shares is None else pytest.approx(shares))
    shown = {row["slot"]: row["lora r=2"] for row in rows(found, "slot-errors-by-slot")}
    assert shown["climb"] == "50.0 / 0.0 / 50.0"
    assert shown["dogs"] == "50.0 / 25.0 / 0.0"
    assert shown["highlight"] == "– / 0.0 / –"
    (heat,) = (plot for plot in found.plots if isinstance(plot, HeatMap))
    assert [panel.title for panel in heat.panels[0]] == ["missing", "added", "wrong"]
    assert [panel.values[SLOTS.index("climb")][1] for panel in heat.panels[0]] == [50.0, 0.0, 50.0]


def test_the_texts_themselves_can_be_looked_at(mini: list[Path]):
    found = rows(errors(mini), "texts-with-errors")
    assert [(row["run"], row["missing"], row["added"], row["wrong"]) for row in found] == [
        ("lora r=2", "climb", "", "difficulty"),
        ("lora r=2", "", "dogs", ""),
        ("lora r=2", "dogs", "", "climb"),
    ]
    assert [row["text"] for row in found] == PLANTED[:3]
    assert [row["context"] for row in found] == list(TRAILS)[:3]


def test_of_the_embedded_data_references_are_right_and_a_dropped_sentence_is_missed(fabricate: Fabricate):
    whole: dict[str, list[str]] = {}
    for line in MINI.read_text(encoding="utf-8").splitlines()[:120]:
        context, _, text = line.partition("||")
        whole.setdefault(context, []).append(text)
    cut = [
        decoded(context, of, of[0].rpartition(" . ")[0].rpartition(" . ")[0] + " .") for context, of in whole.items()
    ]
    found = errors([fabricate("method=lora", decoded=cut)])
    ours, references = rows(found, "slot-errors")
    assert references["texts"] == 120
    assert (references["missing"], references["added"], references["wrong"]) == (0, 0, 0)
    assert ours["missing"] >= 0.8 * len(whole)
    assert (ours["added"], ours["wrong"]) == (0, 0)


def test_keys_that_the_rules_do_not_know_are_named(fabricate: Fabricate):
    known, text = next(iter(TRAILS.items()))
    odd = [
        decoded(f"{known} | colour : red | mood : calm", [text], text),
        decoded(f"{known} | mood : calm", [text], text),
    ]
    found = errors([fabricate("method=lora", decoded=odd)])
    assert [row["slots"] for row in rows(found, "slot-errors")] == [10, 10]
    assert [note for note in found.notes if note.startswith("not judged")] == [
        "not judged, as the rules don't know them: colour, mood"
    ]


def test_another_selection_of_a_datasets_files_has_its_facts(fabricate: Fabricate):
    text = "The Mill is a cheap pub ."
    folder = fabricate(
        "method=lora", "dataset=e2e-small", decoded=[decoded("name : The Mill | Type : pub", [text], text)]
    )
    assert not slots.read("e2e-small")
    assert "slot-errors" in {grid.key for grid in errors([folder]).grids}


def test_no_fact_that_the_rules_know(fabricate: Fabricate):
    said = fault(fabricate("method=lora", decoded=[decoded("colour : red", ["Red ."], "Red .")]))
    assert "slot" in said


def test_the_name_follows_from_texts_and_runs(mini: list[Path]):
    assert errors(mini).name == errors(mini).name != errors(mini[:1]).name
    assert errors(mini).name.startswith("errors_mini-gpt2-nano-lora-r4-lora-r2_")


# groups -----------------------------------------------------------------------------------------

TRIPLES = {
    "Pea_Soup : madeOf : Peas": ("Food", "Pea soup is made of peas ."),
    "Pea_Soup : madeOf : Peas | Peas : colour : Green": ("Food", "Pea soup is made of green peas ."),
    "Comet_X : orbits : Sun": ("CelestialBody", "Comet X orbits the sun ."),
    "Comet_Y : orbits : Sun | Sun : isA : Star": ("CelestialBody", "Comet Y orbits the sun , a star ."),
    "Tower : in : Oslo": ("Building", "The tower stands in Oslo ."),
}
SEEN = {"Food": "seen", "Building": "seen", "CelestialBody": "unseen"}
WRITTEN = [
    "Pea soup is made of peas .",
    "Pea soup is made of red beans .",
    "Comet X is near the sun .",
    "Comet Y orbits the sun , a star .",
    "The tower is tall .",
]


def webnlg_texts(written: Sequence[str] = WRITTEN) -> list[Decoded]:
    return [
        decoded(context, [text], hypothesis, SEEN[category])
        for (context, (category, text)), hypothesis in zip(TRIPLES.items(), written, strict=True)
    ]


@pytest.fixture
def webnlg(fabricate: Fabricate, tmp_path: Path) -> tuple[list[Path], Path]:
    """Runs that were tested on a file of ours, and the file."""
    from lodarepro.model.weights import sha256_of

    entries = []
    for number, (context, (category, text)) in enumerate(TRIPLES.items(), 1):
        triples = [
            dict(zip(("subject", "property", "object"), t.split(" : "), strict=True)) for t in context.split(" | ")
        ]
        entry = {
            "category": category,
            "modifiedtripleset": triples,
            "lexicalisations": [{"lex": text, "comment": "good"}],
        }
        entries.append({str(number): entry})
    path = tmp_path / "triples.json"
    path.write_text(json.dumps({"entries": entries}))
    given = ["dataset=webnlg", f"dataset.files.test={path}"]
    checksums = {"test": sha256_of(path)}
    folders = [
        fabricate(*given, "method=lora", decoded=webnlg_texts(), checksums=checksums),
        fabricate(*given, "method=lora", "seed=2", decoded=webnlg_texts(WRITTEN[::-1]), checksums=checksums),
    ]
    return folders, path


GROUPS = {
    "all": [0, 1, 2, 3, 4],
    "subset: seen": [0, 1, 4],
    "subset: unseen": [2, 3],
    "category: Building (seen)": [4],
    "category: CelestialBody (unseen)": [2, 3],
    "category: Food (seen)": [0, 1],
    "triples: 1": [0, 2, 4],
    "triples: 2": [1, 3],
}


def test_groups_are_scored_together(webnlg: tuple[list[Path], Path], log: pytest.LogCaptureFixture):
    folders, path = webnlg
    found = errors(folders)
    shown = rows(found, "groups")
    assert {row["group"]: row["segments"] for row in shown} == {group: len(of) for group, of in GROUPS.items()}
    assert [row["group"] for row in shown] == list(GROUPS)
    for row in shown:
        of = GROUPS[row["group"]]
        for run, written in (("lora r=4 s1", WRITTEN), ("lora r=4 s2", WRITTEN[::-1])):
            references = [[text] for _, text in TRIPLES.values()]
            alone = score([written[i] for i in of], [references[i] for i in of], suite="webnlg")
            assert row[run] == pytest.approx(alone.scores["bleu"].value)
            (whole,) = (one for one in rows(found, "groups-all") if (one["run"], one["group"]) == (run, row["group"]))
            assert whole["segments"] == len(of)
            assert [whole[key] for key in ("bleu", "meteor", "ter", "chrf_pp")] == pytest.approx(
                [alone.scores[key].value for key in ("bleu", "meteor", "ter", "chrf_pp")]
            )
    (heat,) = (plot for plot in found.plots if isinstance(plot, HeatMap))
    assert [(panel.title, panel.y) for panel in heat.panels[0]] == [
        ("subset", ("seen", "unseen")),
        ("category", ("Building (seen)", "CelestialBody (unseen)", "Food (seen)")),
        ("triples", ("1", "2")),
    ]
    assert not [record for record in log.records if record.levelname == "WARNING"]

    # The file that is there now is another.
    path.write_text(path.read_text().replace("Food", "City"))
    assert [row["group"] for row in rows(errors(folders[:1]), "groups")] == [
        group for group in GROUPS if not group.startswith("category")
    ]

    path.unlink()
    without = errors(folders[:1])
    assert [row["group"] for row in rows(without, "groups")] == [g for g in GROUPS if not g.startswith("category")]
    assert [note for note in without.notes if "categories" in note] == [
        "categories are in the test file, which is not here (data.root=FOLDER): left out"
    ]
    (warning,) = (record.getMessage() for record in log.records if record.levelname == "WARNING")
    assert warning.startswith("dataset 'webnlg': no file 'triples.json' for its test split")


def test_more_triples_come_after_fewer(fabricate: Fabricate, monkeypatch: pytest.MonkeyPatch):
    """Numbers in their own order, not that of letters."""
    counts = (1, 2, 10, 11)
    of = [decoded(" | ".join(f"a : b : {i}" for i in range(n)), ["A ."], "A .") for n in counts]
    some = {key: Score(key, 0.5, metric.unit, True, key) for metric in SUITES["dart"].metrics for key in [metric.key]}

    class Measured:
        def __init__(self, *_: Any, groups: dict[str, list[int]], **__: Any) -> None:
            self.groups = groups

        def scores(self) -> SuiteScores:
            sizes = {group: len(places) for group, places in self.groups.items()}
            return SuiteScores("dart", len(of), some, dict.fromkeys(self.groups, some), sizes)

    monkeypatch.setattr("lodarepro.analysis.errors.measure", Measured)
    run = fabricate("dataset=dart", "method=lora", decoded=of)
    found = errors([run])
    assert [row["group"] for row in rows(found, "groups") if row["group"].startswith("triples")] == [
        f"triples: {n}" for n in counts
    ]


# refusals ---------------------------------------------------------------------------------------


def test_another_test_set(mini: list[Path], fabricate: Fabricate):
    other = fabricate("method=lora", decoded=texts(PLANTED), checksums={"test": "8" * 64})
    assert fault(mini[0], other) == (
        f"{mini[0].name} was tested on mini, {other.name} on other texts (mini); give runs of one test set"
    )


def test_other_contexts(mini: list[Path], fabricate: Fabricate):
    fewer = fabricate("method=lora", "dataset.limit.test=3", decoded=texts(PLANTED)[:3])
    assert fault(mini[0], fewer) == (
        f"{fewer.name} has texts for other contexts than {mini[0].name}; give runs with one dataset.limit.test"
    )


def test_a_checkpoint_that_was_not_kept(mini: list[Path]):
    assert (
        fault(mini[0], checkpoint="best")
        == f"{mini[0].name} has no checkpoint 'best'; did you mean 'last'? (valid: last)"
    )


def test_texts_of_the_checkpoint_that_is_asked_for(mini: list[Path]):
    from dataclasses import replace

    record = records.finished(mini[1])
    (last,) = record.evaluations
    best = replace(last, checkpoint="best", hypotheses="evaluations/best-test.jsonl")
    records.write(mini[1], replace(record, evaluations=(last, best)))
    records.write_decoded(mini[1] / best.hypotheses, texts(list(TRAILS.values())))
    counted = {
        name: rows(errors([mini[1]], checkpoint=name), "slot-errors")[0]["missing"] for name in (None, "last", "best")
    }
    assert counted == {None: 2, "last": 2, "best": 0}
    assert errors([mini[1]], checkpoint="best").name != errors([mini[1]]).name


def test_texts_that_are_gone(mini: list[Path]):
    (mini[0] / "evaluations" / "last-test.jsonl").unlink()
    assert fault(mini[0]).endswith("last-test.jsonl can't be read (No such file or directory); decode the run again")


def test_a_folder_that_is_no_run(tmp_path: Path):
    assert fault(tmp_path) == f"{tmp_path} holds no record.json: not the folder of a finished run"


@pytest.mark.parametrize("override", ["data.rot=x", "nothing.at=all"])
def test_unknown_settings_are_not_passed_over(override: str, mini: list[Path]):
    """Whichever data the run was tested on."""
    assert fault(mini[0], overrides=[override]).startswith(f"{override}: ")


def test_rules_are_there_for_the_embedded_data():
    assert slots.read("mini") is not None
    assert slots.read("webnlg") is None
