"""`lodarepro score` on small files: every form and option, its errors, and other locales, Javas and pipes."""

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lodarepro import metrics, records
from lodarepro.cli import main
from lodarepro.metrics import SUITES
from lodarepro.metrics.suites import padded, split_words
from lodarepro.records import Decoded, Evaluation, Record
from lodarepro.scores import SuiteScores

HYPOTHESES = ["The kettle whistles at noon.", "A cat sleeps on the café roof.", "", "Rain falls, it seems."]
OTHERS = ["A kettle stands there.", "A cat sleeps on the café roof.", "The tram leaves.", "It rains."]
REFERENCES = [
    ["The kettle on the stove whistles at noon.", "At noon the kettle whistles."],
    ["A cat sleeps on the roof of the café."],
    ["The tram leaves at 9.30."],
    ["It rains, it seems.", "Rain is falling."],
]
LABELS = ["größer", None, "größer", "other"]
SOURCES = ["kettle(noon)", "cat, roof", "tram", "rain"]


def lines(texts: Sequence[str | None]) -> str:
    return "".join(f"{text or ''}\n" for text in texts)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The texts above in every form that is read; tests may add files of their own."""
    processed = padded(metrics.segments.Segments(tuple(HYPOTHESES), tuple(map(tuple, REFERENCES)))).map(split_words)
    rows = [(source, text) for source, texts in zip(SOURCES, REFERENCES, strict=True) for text in texts]
    # Rows of other segments too, and segments in another order: the sources say which is which.
    shuffled = [("nobody's", "Nothing is left."), *rows[3:], *rows[:3]]
    files = {
        "hyp.txt": lines(HYPOTHESES),
        "other.txt": lines(OTHERS),
        "ref.txt": "\n".join(lines(texts) for texts in REFERENCES),
        "labels.txt": lines(LABELS),
        "hyp.tsv": "MR\toutput\n" + lines([f'{s}\t"{h}"' for s, h in zip(SOURCES, HYPOTHESES, strict=True)]),
        "ref.tsv": "reference\tsource\n" + lines([f"{text}\t{source}" for source, text in shuffled]),
        "hyp.csv": lines([f'"{s}","{h}"' for s, h in zip(SOURCES, HYPOTHESES, strict=True)]),
        "ref.csv": lines([f'"{source}","{text}"' for source, text in shuffled]),
        "blocks.csv": "mr,ref\n" + lines([f'"{source}","{text}"' for source, text in rows]),
        "raw0": lines([texts[0] for texts in REFERENCES]),
        "raw1": lines([texts[1] if len(texts) > 1 else "" for texts in REFERENCES]),
        "single": lines([texts[0] for texts in REFERENCES]),
        "processed.txt": lines(processed.hypotheses),
        **{f"processed{i}": lines([texts[i] for texts in processed.references]) for i in range(6)},
    }
    made = tmp_path_factory.mktemp("texts")
    for name, text in files.items():
        (made / name).write_text(text, encoding="utf-8")
    return made


@pytest.fixture(autouse=True)
def there(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)


def shown(capsys: pytest.CaptureFixture[str], *arguments: str) -> Any:
    """The object that a command prints."""
    capsys.readouterr()
    assert main(["score", *arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def values(tree: dict[str, Any]) -> dict[str, float]:
    return {key: score["value"] for key, score in tree.items()}


def expected(scores: SuiteScores) -> dict[str, float]:
    return {key: score.value for key, score in scores.scores.items()}


# forms ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("hypotheses", "references"),
    [
        ("hyp.txt", "ref.txt"),
        ("hyp.tsv", "ref.tsv"),
        ("hyp.csv", "ref.csv"),
        ("hyp.tsv", "ref.csv"),
        ("hyp.tsv", "ref.txt"),
        ("hyp.txt", "blocks.csv"),
    ],
)
def test_the_forms_of_the_official_e2e_scorer(hypotheses: str, references: str, capsys: pytest.CaptureFixture[str]):
    found = shown(capsys, "--hyp", hypotheses, "--ref", references)
    assert found["segments"] == 4
    assert values(found["scores"]) == expected(metrics.score(HYPOTHESES, REFERENCES))


@pytest.mark.parametrize(
    ("arguments", "references"),
    [
        (["--hyp", "hyp.txt", "--ref", "raw", "--num-refs", "2", "--raw"], REFERENCES),
        (["--hyp", "processed.txt", "--ref", "processed", "--num-refs", "6"], REFERENCES),
        (["--hyp", "processed.txt", "--ref", "processed", "--num-refs", "2"], REFERENCES),
        (["--hyp", "hyp.txt", "--ref", "single", "--num-refs", "1", "--raw"], [texts[:1] for texts in REFERENCES]),
        (["--hyp", "hyp.txt", "--ref", "ref.txt"], REFERENCES),
    ],
    ids=["raw", "processed", "two", "one", "e2e's"],
)
def test_the_forms_of_generation_eval(
    arguments: list[str], references: list[list[str]], capsys: pytest.CaptureFixture[str]
):
    found = shown(capsys, "--suite", "webnlg", *arguments)
    assert values(found["scores"]) == expected(metrics.score(HYPOTHESES, references, suite="webnlg"))
    assert {key: score["unit"] for key, score in found["scores"].items()} == {
        "bleu": "percent",
        "meteor": "fraction",
        "ter": "fraction",
        "chrf_pp": "fraction",
    }


def test_an_empty_reference_in_processed_files_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], folder: Path
):
    (tmp_path / "r0").write_bytes((folder / "processed0").read_bytes())
    (tmp_path / "r1").write_text("it whistles .\n\n\nit rains .\n", encoding="utf-8")
    arguments = ["score", "--suite", "dart", "--hyp", "processed.txt", "--ref", str(tmp_path / "r"), "--num-refs", "2"]
    assert main(arguments) == 0
    out, err = capsys.readouterr()
    assert "suite dart; segments: all 4" in out
    (line,) = err.splitlines()
    assert line.endswith("2 empty references count as such, as in GenerationEval; --raw leaves them out")


# what is shown ----------------------------------------------------------------------------------


def test_one_object(capsys: pytest.CaptureFixture[str]):
    found = shown(capsys, "--suite", "e2e", "--hyp", "hyp.txt", "--ref", "ref.txt", "--subsets", "labels.txt")
    assert list(found) == ["suite", "segments", "scores", "subsets", "subset_segments"]
    assert (found["suite"], found["segments"]) == ("e2e", 4)
    assert found["subset_segments"] == {"größer": 2, "other": 1}
    whole = metrics.score(HYPOTHESES, REFERENCES, subsets=LABELS)
    assert list(found["scores"]) == ["bleu", "nist", "meteor", "rouge_l", "cider"]
    for key, score in found["scores"].items():
        assert score == {
            "value": whole.scores[key].value,
            "unit": "points" if key in ("nist", "cider") else "fraction",
            "higher_is_better": True,
            "signature": whole.scores[key].signature,
        }
    assert {label: values(subset) for label, subset in found["subsets"].items()} == {
        label: {key: score.value for key, score in subset.items()} for label, subset in whole.subsets.items()
    }


@pytest.mark.parametrize(
    ("suite", "best"),
    [
        ("e2e", {"bleu": 1, "meteor": 1, "rouge_l": 1}),
        ("webnlg", {"bleu": 100, "meteor": 1, "ter": 0, "chrf_pp": 1}),
    ],
)
def test_references_are_their_own_best_hypotheses(
    suite: str, best: dict[str, float], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    (tmp_path / "best.txt").write_text(lines([texts[-1] for texts in REFERENCES]), encoding="utf-8")
    found = shown(capsys, "--suite", suite, "--hyp", str(tmp_path / "best.txt"), "--ref", "ref.txt")
    assert {key: found["scores"][key]["value"] for key in best} == pytest.approx(best, abs=1e-12)


def test_a_table(capsys: pytest.CaptureFixture[str]):
    assert main(["score", "--hyp", "hyp.txt", "--ref", "ref.txt", "--subsets", "labels.txt"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in out.splitlines()]
    assert rows[0] == ["metric", "subset", "score"]
    scores = metrics.score(HYPOTHESES, REFERENCES, subsets=LABELS)
    assert rows[4] == ["METEOR ↑", "all", f"{scores.scores['meteor'].value:.4f}"]
    assert rows[11] == ["CIDEr ↑", "größer", f"{scores.subsets['größer']['cider'].value:.4f}"]
    assert "suite e2e; segments: all 4, größer 2, other 1" in out
    assert out.splitlines()[-5:] == [score.signature for score in scores.scores.values()]


def test_intervals(capsys: pytest.CaptureFixture[str]):
    base = ["--hyp", "hyp.txt", "--ref", "ref.txt", "--subsets", "labels.txt", "--confidence"]
    measured = metrics.measure(HYPOTHESES, REFERENCES, subsets=LABELS)
    for options, drawing in (([], {}), (["--resamples", "30", "--seed", "0"], {"samples": 30, "seed": 0})):
        found = shown(capsys, *base, *options)
        groups = {"all": found["scores"], **found["subsets"]}
        assert {
            group: {key: tuple(score["interval"]) for key, score in scores.items()} for group, scores in groups.items()
        } == metrics.intervals(measured, **drawing)
    assert main(["score", *base, "--resamples", "10"]) == 0
    out = capsys.readouterr().out
    assert "95 % interval" in out
    assert len(re.findall(r"\| \d\.\d{4} to \d\.\d{4} +\|", out)) == 15


@pytest.mark.parametrize("suite", ["e2e", "webnlg"])
def test_the_values_of_segments_rebuild_the_figures(suite: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    file = tmp_path / "größer.tsv"
    arguments = ["--suite", suite, "--hyp", "hyp.txt", "--ref", "ref.txt", "--segments", str(file)]
    found = values(shown(capsys, *arguments, "--subsets", "labels.txt")["scores"])
    head, *rows = (line.split("\t") for line in file.read_text(encoding="utf-8").splitlines())
    assert [row[:2] for row in rows] == [["1", "größer"], ["2", ""], ["3", "größer"], ["4", "other"]]
    columns = {name: np.array([float(row[i]) for row in rows]) for i, name in enumerate(head) if i > 1}
    figures = metrics.measure(HYPOTHESES, REFERENCES, suite=suite).figures["all"]
    assert found.keys() == figures.keys()
    for key, figure in figures.items():
        statistics = [values for name, values in columns.items() if name.startswith(f"{key}.")]
        if key in ("rouge_l", "cider", "ter"):
            assert statistics == []
            assert columns[key].mean() == pytest.approx(found[key], rel=1e-14)
        else:
            assert float(figure.of_sums(np.sum(statistics, axis=1))) == pytest.approx(found[key], rel=1e-14)
        assert (key in columns) == (key not in ("bleu", "nist"))


def test_segments_without_subsets(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    arguments = ["--suite", "webnlg", "--hyp", "hyp.txt", "--ref", "ref.txt", "--segments", str(tmp_path / "s.tsv")]
    shown(capsys, *arguments)
    assert (tmp_path / "s.tsv").read_text(encoding="utf-8").startswith("segment\tbleu.length\t")
    assert [path.name for path in tmp_path.iterdir()] == ["s.tsv"]


# comparisons ------------------------------------------------------------------------------------


def test_two_files(capsys: pytest.CaptureFixture[str]):
    base = ["--compare", "hyp.txt", "other.txt", "--ref", "ref.txt"]
    found = shown(capsys, *base, "--subsets", "labels.txt", "--resamples", "50", "--seed", "0")
    a, b = (metrics.measure(texts, REFERENCES, subsets=LABELS) for texts in (HYPOTHESES, OTHERS))
    wanted = metrics.compare(a, b, samples=50, seed=0)
    assert found["suite"] == "e2e"
    assert found["test"] == {"name": "paired bootstrap, two-sided", "n": 50, "seed": 0}
    for group, scores in {"all": found["scores"], **found["subsets"]}.items():
        for key, compared in wanted.pop(group).items():
            assert scores[key] == {
                "a": compared.a.value,
                "b": compared.b.value,
                "difference": compared.b.value - compared.a.value,
                "interval": list(compared.interval),
                "p": compared.p,
                "unit": compared.a.unit,
                "higher_is_better": True,
                "signature": compared.a.signature,
            }
    assert wanted == {}
    assert main(["score", *base]) == 0
    out = capsys.readouterr().out
    assert "paired bootstrap, two-sided: n=1000, seed=12345" in out
    assert out.count("metric:") == 5


def test_a_file_does_not_differ_from_itself(capsys: pytest.CaptureFixture[str]):
    arguments = ["--suite", "webnlg", "--ref", "raw", "--num-refs", "2", "--raw"]
    found = shown(capsys, *arguments, "--compare", "hyp.txt", "hyp.txt")
    assert [(score["difference"], score["p"]) for score in found["scores"].values()] == [(0, 1)] * 4


# runs -------------------------------------------------------------------------------------------


def run(folder: Path, hypotheses: Sequence[str], *, seed: int) -> Path:
    """The folder of a finished run whose scores are out of date."""
    folder.mkdir()
    config = {
        "dataset": {"name": "webnlg", "suite": "webnlg"},
        "model": {"name": "gpt2-nano"},
        "method": {"name": "ft"},
        "seed": seed,
    }
    segments = zip(SOURCES, REFERENCES, hypotheses, LABELS, strict=True)
    decoded = [Decoded(s, tuple(refs), text, label, -0.5, True) for s, refs, text, label in segments]
    sizes = {"all": 4, "größer": 2, "other": 1}
    evaluations = (
        Evaluation("last", {}, "test", label, "evaluations/a.jsonl", n, {}, 1.5) for label, n in sizes.items()
    )
    records.write(folder, Record(folder.name, config, config, {}, {"trainable": 1}, {}, tuple(evaluations)))
    records.write_decoded(folder / "evaluations" / "a.jsonl", decoded)
    return folder


@pytest.fixture
def runs(tmp_path: Path) -> tuple[Path, Path]:
    return run(tmp_path / "a", HYPOTHESES, seed=1), run(tmp_path / "b", OTHERS, seed=2)


def test_runs_are_scored_anew(runs: tuple[Path, Path], capsys: pytest.CaptureFixture[str]):
    found = shown(capsys, *map(str, runs))["runs"]
    assert [one["id"] for one in found] == ["a", "b"]
    for one, texts, folder in zip(found, (HYPOTHESES, OTHERS), runs, strict=True):
        scores = metrics.score(texts, REFERENCES, suite="webnlg", subsets=LABELS)
        groups = {"all": scores.scores, **scores.subsets}
        assert {e["subset"]: values(e["scores"]) for e in one["evaluations"]} == {
            group: {key: score.value for key, score in found.items()} for group, found in groups.items()
        }
        kept = records.finished(folder).evaluations
        assert {e.subset: e.scores for e in kept} == groups
    assert main(["score", *map(str, runs)]) == 0
    out, err = capsys.readouterr()
    assert err == ""  # they are up to date now
    assert len(out.splitlines()) == 2 + 6


def test_runs_are_compared_as_their_texts_are(runs: tuple[Path, Path], capsys: pytest.CaptureFixture[str]):
    options = ["--resamples", "20", "--seed", "5"]
    found = shown(capsys, "--compare", *map(str, runs), *options)
    texts = ["--suite", "webnlg", "--ref", "ref.txt", "--subsets", "labels.txt", *options]
    assert found == shown(capsys, "--compare", "hyp.txt", "other.txt", *texts)
    assert found["test"]["n"] == 20
    assert main(["score", "--compare", *map(str, runs)]) == 0
    assert "n=1000, seed=12345" in capsys.readouterr().out


# errors -----------------------------------------------------------------------------------------


HELP = "leave it out (lodarepro score --help)"
LONG = "x" * 300


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """What a command that ends with status 2 says, in one line."""
    assert main(["score", *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    (line,) = [line for line in err.splitlines() if " are left out, as in the official scorer" not in line]
    return line.removeprefix("lodarepro: ")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("", "nothing to score: give --hyp FILE --ref FILE, or folders of finished runs (lodarepro score --help)"),
        ("--hyp hyp.txt", "nothing to score: give --hyp FILE --ref FILE, or folders of finished runs (lodarepro score"),
        ("--ref ref.txt", "nothing to score: give --hyp FILE --ref FILE, or folders of finished runs (lodarepro score"),
        (
            "--hyp hyp.txt --ref ref.txt --suite e3e",
            "--suite e3e: no such suite; did you mean 'e2e'? (valid: dart, e2e",
        ),
        ("--hyp hyp.txt --ref ref.txt --suite=", "--suite : no such suite (valid: dart, e2e, webnlg)"),
        ("--hyp hyp.txt --ref ref.txt --raw", "--raw says what the files of --num-refs hold; other references are raw"),
        ("--hyp hyp.txt --ref ref.txt --seed 0", f"--seed: means nothing for scores without --confidence; {HELP}"),
        (
            "--hyp hyp.txt --ref ref.txt --seed 1 --resamples 5",
            f"--resamples, --seed: means nothing for scores without --confidence; {HELP}",
        ),
        (
            "--compare hyp.txt other.txt --ref ref.txt --hyp hyp.txt --segments s.tsv --confidence",
            f"--hyp, --segments, --confidence: means nothing for two files to compare; {HELP}",
        ),
        (
            "somewhere --suite e2e --hyp a --ref b --num-refs 0 --raw --subsets c --segments d --confidence",
            "--suite, --hyp, --ref, --num-refs, --raw, --subsets, --segments, --confidence: means nothing for runs; "
            + HELP,
        ),
        ("somewhere --resamples 0 --seed 0", f"--resamples, --seed: means nothing for runs; {HELP}"),
        ("somewhere --compare . .", f"RUN: means nothing for two runs to compare; {HELP}"),
        ("--compare . . --ref b", f"--ref: means nothing for two runs to compare; {HELP}"),
        ("--compare . .", "record.json: not the folder of a finished run"),
        ("somewhere", "somewhere holds no record.json: not the folder of a finished run"),
        ("hyp.txt", "hyp.txt holds no record.json: not the folder of a finished run"),
        (LONG, f"{LONG}/record.json: can't be used (File name too long); check the path"),
        (
            "--compare . nowhere",
            ". and nowhere aren't two folders of runs; to compare two files of hypotheses, give --ref FILE",
        ),
        (f"--compare {LONG} {LONG} --ref ref.txt", f"{LONG}: can't be read (File name too long): make it readable"),
        ("--compare . hyp.txt --ref ref.txt", ".: a folder: name a file in it"),
        ("--hyp nowhere --ref ref.txt", "nowhere: no such file: check the path"),
        ("--hyp . --ref ref.txt", ".: a folder: name a file in it"),
        ("--hyp hyp.txt --ref raw --num-refs 0", "0 files of references: give 1 or more"),
        ("--hyp hyp.txt --ref raw --num-refs 3 --raw", "raw2: no such file: check the path"),
        ("--hyp hyp.txt --ref ref.txt --segments .", ".: a folder: name a file in it"),
        ("--hyp hyp.txt --ref ref.txt --segments=", ".: a folder: name a file in it"),
        ("--hyp hyp.txt --ref ref.txt --subsets nowhere", "nowhere: no such file: check the path"),
        (
            "--hyp processed.txt --ref raw --num-refs 1",
            "raw0: lines 1, 2, 3 and 1 more: not lower-cased and split at every",
        ),
    ],
)
def test_an_error_is_one_line(arguments: str, message: str, capsys: pytest.CaptureFixture[str]):
    # All of them before anything is scored.
    assert message in refused(capsys, *arguments.split())


@pytest.mark.parametrize(
    ("options", "content", "message"),
    [
        ("--ref ref.txt --hyp", b"", "an empty file: give one text a line"),
        ("--ref ref.txt --hyp", b"a\nb\0c\n", "line 2: not UTF-8 text: 0x00 at byte 3: convert it to UTF-8"),
        ("--ref ref.txt --hyp", "a\ncafé\n".encode("latin-1"), "line 2: not UTF-8 text: 0xe9 at byte 5: convert it"),
        ("--ref ref.txt --hyp", b"a\n\xed\xa0\x80\n", "line 2: not UTF-8 text: 0xed at byte 2: convert it"),
        ("--ref ref.txt --hyp", b"a\nb\nc\n", "has 3 hypotheses but ref.txt references for 4 segments (blank lines"),
        ("--ref ref.txt --hyp", b"a\nb\nc\nd\n\n", "has 5 hypotheses (1 of them blank at its end) but ref.txt"),
        ("--hyp hyp.txt --ref", b"a\n\n\nb\n\nc\n\nd\n", "line 3: a blank line with no reference before it makes a"),
        ("--hyp hyp.txt --ref", b"\n \n\n\n", "only blank lines: give one reference a line"),
        ("--suite dart --raw --num-refs 1 --hyp hyp.txt --ref", b"a\n\nc\nd\n", "line 2: blank, but this file has the"),
        (
            "--suite dart --raw --num-refs 1 --hyp hyp.txt --ref",
            b"a\nb\nc\n",
            "different numbers of lines: hyp.txt has 4",
        ),
        (
            "--hyp hyp.txt --ref ref.txt --subsets",
            b"seen\nseen\n",
            "has 2 labels for 4 segments: give one a line, a blank line",
        ),
        ("--hyp hyp.txt --ref ref.txt --subsets", b"a\nall\n\nb\n", "line 2: 'all' stands for all segments: give the"),
        ("--ref ref.txt --compare hyp.txt", b"a\nb\n", "has 2 hypotheses but ref.txt references for 4 segments"),
    ],
)
def test_a_bad_file_is_one_line(
    options: str, content: bytes, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    (tmp_path / "bad").write_bytes(content)
    said = refused(capsys, *options.split(), str(tmp_path / "bad"))
    assert message in said
    assert f"{tmp_path / 'bad'}" in said or "--subsets" in options or "--num-refs" in options


def test_both_files_faults_are_told_at_once(capsys: pytest.CaptureFixture[str]):
    assert main(["score", "--hyp", "neither", "--ref", "nor"]) == 2
    assert capsys.readouterr().err.splitlines() == [
        "lodarepro: neither: no such file: check the path",
        "lodarepro: nor: no such file: check the path",
    ]


def test_a_name_that_is_no_unicode(capsys: pytest.CaptureFixture[str]):
    assert "caf\\udce9.txt: no such file" in refused(capsys, "--hyp", "caf\udce9.txt", "--ref", "ref.txt")


def test_references_without_a_hypothesis_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    rows = [f'{source}\t"{text}"' for source, text in zip(SOURCES, HYPOTHESES, strict=True)]
    (tmp_path / "short.tsv").write_text(lines(rows[:3]), encoding="utf-8")
    assert main(["score", "--suite", "webnlg", "--hyp", str(tmp_path / "short.tsv"), "--ref", "ref.tsv"]) == 0
    said = f"{tmp_path / 'short.tsv'} has no hypothesis for 2 of the 5 sources in ref.tsv"
    assert said in capsys.readouterr().err


def test_two_tables_with_other_segments(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    rows = [f'{source}\t"{text}"' for source, text in zip(SOURCES, HYPOTHESES, strict=True)]
    (tmp_path / "turned.tsv").write_text(lines(rows[::-1]), encoding="utf-8")
    (tmp_path / "short.tsv").write_text(lines(rows[:3]), encoding="utf-8")
    turned, short = str(tmp_path / "turned.tsv"), str(tmp_path / "short.tsv")
    assert (
        refused(capsys, "--compare", "hyp.tsv", turned, "--ref", "ref.tsv")
        == f"hyp.tsv and {turned} are not in the same order: sort one as the other"
    )
    assert (
        refused(capsys, "--compare", "hyp.tsv", short, "--ref", "ref.tsv")
        == f"hyp.tsv has 4 hypotheses, {short} has 3: give both for the same segments"
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--segments", "nowhere/s.tsv"], "nowhere/s.tsv: can't be written (No such file or directory); give another"),
        (["--segments", LONG], f"{LONG}: can't be written (File name too long); give another file"),
        (["--confidence", "--resamples", "0"], "0 resamples: give at least 1, and 1000 or more for figures to rely on"),
        (["--confidence", "--seed", "-1"], "seed -1: give 0 or more"),
    ],
)
def test_an_error_after_scoring_is_one_line(options: list[str], message: str, capsys: pytest.CaptureFixture[str]):
    assert message in refused(capsys, "--suite", "webnlg", "--hyp", "hyp.txt", "--ref", "ref.txt", *options)


def test_an_option_that_is_no_number(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as e:
        main(["score", "--hyp", "hyp.txt", "--ref", "raw", "--num-refs", "two"])
    assert e.value.code == 2
    assert "argument --num-refs: invalid int value: 'two'" in capsys.readouterr().err


# other processes --------------------------------------------------------------------------------


COMMANDS = """
import json, sys
from lodarepro.cli import main
status = max(main(arguments) for arguments in json.loads(sys.argv[1]))
heavy = {"torch", "transformers", "datasets", "hydra"} & set(sys.modules)
sys.exit(f"imported {heavy}" if heavy else status)
"""


def environment(**changes: str) -> dict[str, str]:
    """This process's, without what changes how Python writes."""
    writing = ("PYTHONUNBUFFERED", "PYTHONIOENCODING", "PYTHONUTF8", "PYTHONCOERCECLOCALE")
    return {key: value for key, value in os.environ.items() if key not in writing} | changes


def together(*commands: list[str], **changes: str) -> subprocess.CompletedProcess[bytes]:
    """Commands in one process, which may not import what is heavy."""
    call = [sys.executable, "-c", COMMANDS, json.dumps([["score", *arguments] for arguments in commands])]
    return subprocess.run(call, capture_output=True, check=False, env=environment(**changes), timeout=120)


def test_utf_8_whatever_the_locale_and_the_java_of_the_wheel(
    tmp_path: Path, runs: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
):
    """Texts, then a run, without torch, without `java` on PATH and in a locale of ASCII alone."""
    texts = ["--hyp", "hyp.tsv", "--ref", "ref.tsv", "--subsets", "labels.txt", "--json"]
    plain = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    done = together(texts, [str(runs[0])], PATH=str(tmp_path), **plain)
    said = done.stderr.decode("utf-8")
    assert done.returncode == 0, said
    (warning,) = [line for line in said.splitlines() if " are left out, as in the official scorer" not in line]
    assert "a: the scores differ from the record's, which is brought up to date" in warning
    assert main(["score", *texts]) == main(["score", str(runs[0])]) == 0
    out = done.stdout.decode("utf-8")
    assert out == capsys.readouterr().out
    assert "größer" in out
    assert "TER ↓" in out


def test_an_error_in_latin_1(folder: Path):
    done = together(["--hyp", "größer ↓.txt", "--ref", "ref.txt"], PYTHONIOENCODING="latin-1")
    assert done.returncode == 2
    assert done.stderr.decode("utf-8") == "lodarepro: größer ↓.txt: no such file: check the path\n"


def test_a_java_that_fails_is_one_line(tmp_path: Path):
    java = tmp_path / "java"
    java.write_text('#!/bin/sh\n[ "$1" = -version ] && exit 0\necho no memory is left >&2\nexit 3\n')
    java.chmod(0o755)
    done = together(["--hyp", "hyp.txt", "--ref", "ref.txt"], PATH=f"{tmp_path}:/usr/bin:/bin")
    assert (done.returncode, done.stdout) == (1, b"")
    again, fault = done.stderr.decode().splitlines()
    assert "ended (exit status 3); it said last: no memory is left; starting it again" in again
    assert fault.startswith(
        "lodarepro: the PTB tokenizer ended (exit status 3); it said last: no memory is left, twice"
    )


def test_help_is_quick_and_imports_nothing_heavy():
    seconds = []
    for _ in range(3):
        began = time.monotonic()
        done = subprocess.run(
            [sys.executable, "-m", "lodarepro.cli", "score", "--help"], capture_output=True, check=False
        )
        seconds.append(time.monotonic() - began)
        assert (done.returncode, done.stderr) == (0, b"")
    assert min(seconds) < 1
    code = "import sys, lodarepro.cli; sys.exit(','.join({'torch', 'numpy', 'hydra'} & set(sys.modules)) or 0)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).stderr == b""


@pytest.mark.parametrize("buffered", [True, False])
@pytest.mark.parametrize("arguments", [["--help"], ["score", "--help"]])
def test_a_pipe_that_no_one_reads(arguments: list[str], buffered: bool):
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [sys.executable, "-m", "lodarepro.cli", *arguments],
        stdout=writing,
        stderr=subprocess.PIPE,
        check=False,
        env=environment(**({} if buffered else {"PYTHONUNBUFFERED": "1"})),
    )
    os.close(writing)
    assert done.stderr == b""
    assert done.returncode in (0, 1)  # argparse passes over what it can't print


def test_every_suite_has_its_forms_and_the_usage_names_it(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit):
        main(["score", "--help"])
    out = capsys.readouterr().out
    assert all(suite in out for suite in SUITES)
