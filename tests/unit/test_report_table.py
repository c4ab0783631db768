"""A filled table as it is written: Markdown, LaTeX, CSV, JSON, and the marks of the test of significance."""

import csv
import io
import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from lodarepro import compose, records, tables
from lodarepro.archive import Archive
from lodarepro.config import Run
from lodarepro.errors import BadInput
from lodarepro.metrics import SUITES, suites
from lodarepro.metrics.segments import Figure, Group, Segments, mean_figures
from lodarepro.records import Decoded, Evaluation, Failure, Record
from lodarepro.report import aggregate
from lodarepro.report.aggregate import Counts, FilledTable, row_key
from lodarepro.report.table import CSV_COLUMNS, as_csv, as_json, latex, markdown, verdicts
from lodarepro.scores import Score
from lodarepro.tables import Rerun, Reruns, Table

LAST = "evaluations/last-test.jsonl"
CHECKSUMS = {"test": "3" * 64, "model": "4" * 64}
OWN = """\
title: Ours_1 & 50 %
source: Nobody 2020, Table 1
cell: [protocol=lora, model=gpt2-nano, dataset=mini]
columns: {bleu: percent, cider: points, val_loss: nats}
footnotes: [about]
notes: {about: "All of it, ± 5 %.", odd: "An odd_row {#1}."}
groups:
  - title: First_group
    rows:
      - label: FT W_q
        cell: [method=ft]
        params: 0.38M
        macs: 1.5M / 2.0M
        print: [70.0 ± 0.5, 2.40, 1.50]
        notes: [odd]
      - {label: B, cell: [method=bitfit], params: 0.35M, print: ["?", 2.41, 1.5]}
      - {label: Not run, cell: [method=adapter-l], print: [1.0, 1.00, 1.0], notes: [odd]}
  - title: Second
    rows:
      - {label: One, cell: [method=lora, method.rank=2]}
      - {label: Failed, cell: [method=lora, method.rank=4], print: [1.0, 1.00, 1.0]}
"""
FIGURES = {
    "FT W_q": [(70.4, 2.395, 1.4), (70.5, 2.4, 1.5), (70.6, 2.405, 1.6)],
    "B": [(70.1, 2.5, 1.5), (70.2, 2.6, 1.5), (70.3, 2.7, 1.5)],
    "One": [(69.0, 2.3, 1.234)],
}
"""BLEU in per cent, CIDEr and the validation loss of each seed"""
RERUNS = Reruns(
    "As they were published.",
    (
        Rerun(("method=ft",), "Alice_1", "V100", None, {"bleu": (tables.Figure("70.9", 70.9, None, 1), "percent")}),
        Rerun(("method=ft",), "Bob", None, None, {"bleu": (tables.Figure("71.25", 71.25, None, 2), "percent")}),
    ),
)


def record(run: Run, figures: Sequence[float], *, name: str, device: str = "cpu", decoded: int = 9) -> Record:
    bleu, cider, val_loss = figures
    scores = {
        "bleu": Score("bleu", bleu / 100, "fraction", True, "metric:bleu|version:1"),
        "cider": Score("cider", cider, "points", True, "metric:cider|version:1"),
    }
    decode = compose.plain(run)["decode"]
    return Record(
        id=name,
        config=compose.plain(run),
        identity=compose.identity(run, CHECKSUMS),
        provenance={
            "code": {"version": "0.1", "commit": "abcdef0123456789", "dirty": False},
            "packages": {"torch": "2.13.0"},
            "machine": {"processor": "Some CPU"},
            "device": device,
            "data": {"test": {"file": "test.txt", "pinned": False}},
            "base_model": {"origin": "embedded"},
        },
        parameters={"trainable": 1, "total": 2},
        training={},
        evaluations=(Evaluation("last", decode, "test", "all", LAST, decoded, scores, val_loss),),
    )


def put(root: Path, one: Record) -> Path:
    folder = root / records.RUNS / one.id
    folder.mkdir(parents=True)
    records.write(folder, one)
    return folder


def table_of(folder: Path, text: str) -> Table:
    path = folder / "own_1.yaml"
    path.write_text(text, encoding="utf-8")
    return tables.read(str(path))


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> FilledTable:
    root = tmp_path_factory.mktemp("report")
    table = table_of(root, OWN)
    for row in table.rows:
        for run, figures in zip(row.cells(table.seeds), FIGURES.get(row.label, []), strict=False):
            device = "A GPU" if row.label == "One" else "cpu"
            put(root, record(run, figures, name=f"{run.method.name}_s{run.seed}", device=device))
        if row.label == "Failed":
            for run in row.cells((1, 2)):
                folder = root / records.RUNS / f"failed-{run.seed}"
                folder.mkdir()
                records.write_failure(
                    folder,
                    Failure(folder.name, compose.plain(run), compose.identity(run, {}), ("out of memory", "x"), {}),
                )
    counts = {row_key(g.title, row): Counts(400_000, ()) for g in table.groups for row in g.rows}
    counts["First_group: FT W_q"] = Counts(380_000, (1_500_000, 2_000_000))
    return aggregate.fill(table, Archive(root), counts, RERUNS)


# Markdown ---------------------------------------------------------------------------------------

MARKDOWN = """\
## Ours_1 & 50 %: Nobody 2020, Table 1

| method          |            | trainable |            q/k/v MACs | n |           BLEU ↑ |           CIDEr ↑ |        val loss ↓ |
|-----------------|------------|----------:|----------------------:|--:|-----------------:|------------------:|------------------:|
| **First_group** |            |           |                       |   |                  |                   |                   |
| FT W_q [a]      | ours       |   380,000 | 1,500,000 / 2,000,000 | 3 | **70.50 ± 0.10** |     2.400 ± 0.005 | **1.500 ± 0.100** |
|                 | print      |     0.38M |           1.5M / 2.0M |   |       70.0 ± 0.5 |              2.40 |              1.50 |
|                 | difference |           |                       |   |            +0.50 |            +0.000 |            +0.000 |
|                 | reruns     |           |                       | 2 |   70.90 to 71.25 |                   |                   |
|                 | verdict    |           |                       |   |     within print |      within print |      within print |
| B [b]           | ours       |   400,000 |                       | 3 |     70.20 ± 0.10 | **2.600 ± 0.100** | **1.500 ± 0.000** |
|                 | print      |     0.35M |                       |   |        illegible |              2.41 |               1.5 |
|                 | difference |           |                       |   |                  |            +0.190 |            +0.000 |
|                 | verdict    |           |                       |   |                  |           outside |      within print |
| Not run [a]     | ours       |   400,000 |                       | 0 |          not run |           not run |           not run |
|                 | print      |           |                       |   |              1.0 |              1.00 |               1.0 |
| **Second**      |            |           |                       |   |                  |                   |                   |
| One             |            |   400,000 |                       | 1 |            69.00 |             2.300 |             1.234 |
| Failed [c]      | ours       |   400,000 |                       | 0 |           failed |            failed |            failed |
|                 | print      |           |                       |   |              1.0 |              1.00 |               1.0 |

- [a] An odd_row {#1}.
- [b] Print has 0.35M trainable parameters; counting gives 400,000 (0.40 x 10^6).
- [c] Seed 1 failed: out of memory; Seed 2 failed: out of memory.

- All of it, ± 5 %.
- ±: sample standard deviation over n seeds.
- Bold: the best mean of a group of rows, of at least 3 seeds each.
- Fewer than 3 seeds (n): the bare mean, without spread, best and significance.
- Verdict: within print if |ours - print| <= 2 sqrt(s_ours^2 / n + s_print^2) + half the last printed digit, with a spread of 0 where there is none; else within reruns if inside the range of what others published; else outside.
- Reruns of First_group: FT W_q: Alice_1 (V100); Bob.
- As they were published.
- From 7 runs by lodarepro 0.1 (abcdef012345), torch 2.13.0, on A GPU, Some CPU; test data sha256 333333333333, weights 444444444444. Their ids are in the JSON and CSV files.
- metric:bleu|version:1
- metric:cider|version:1
"""  # noqa: E501


def test_markdown_with_verdicts(filled: FilledTable):
    assert markdown(filled, check=True) == MARKDOWN


def test_markdown_without_verdicts_lacks_their_lines_alone(filled: FilledTable):
    kept = [line for line in MARKDOWN.splitlines() if "| verdict " not in line and not line.startswith("- Verdict: ")]
    assert markdown(filled) == "\n".join(kept) + "\n"


PLAIN = """\
title: Plain
cell: [protocol=lora, model=gpt2-nano, dataset=mini]
columns: {val_loss: nats, bleu: fraction, nist: points, meteor: percent}
groups: [{rows: [{label: FT, cell: [method=ft]}]}]
"""


def test_a_table_that_no_paper_printed_has_a_line_a_row(tmp_path: Path):
    table = table_of(tmp_path, PLAIN)
    found = aggregate.fill(table, Archive(tmp_path), {"FT": Counts(1_234_567, (1,))}, RERUNS)
    assert markdown(found, check=False) == (
        "## Plain\n\n"
        "| method | trainable | n | val loss ↓ |  BLEU ↑ |  NIST ↑ | METEOR ↑ |\n"
        "|--------|----------:|--:|-----------:|--------:|--------:|---------:|\n"
        "| FT     | 1,234,567 | 0 |    not run | not run | not run |  not run |\n"
    )
    assert [column.decimals for column in found.columns] == [3, 4, 3, 2]
    # More than three columns of figures are made to fit the page.
    assert r"\resizebox{\textwidth}{!}{%" in latex(found)
    assert r"\begin{tabular}{lrrrrrr}" in latex(found)


def test_a_bar_in_a_label_begins_no_column(filled: FilledTable):
    first, *rest = filled.groups
    row = replace(first.rows[0], row=replace(first.rows[0].row, label="p(x|y)"))
    text = markdown(replace(filled, groups=(replace(first, rows=(row,)), *rest)))
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in lines} == {9}


def test_a_row_of_two_notes_has_two_marks_and_equal_notes_share_one(filled: FilledTable):
    first, second = filled.groups
    rows = [replace(row, notes=("x", f"{i}", "x")) for i, row in enumerate(first.rows * 10)]
    text = markdown(replace(filled, groups=(replace(first, rows=tuple(rows)), second)))
    marks = re.findall(r"^\| \S.*? ((?:\[[a-z]+\])+) +\| ours", text, flags=re.MULTILINE)
    assert marks[:3] == ["[a][b]", "[a][c]", "[a][d]"]
    assert marks[24:27] == ["[a][z]", "[a][aa]", "[a][ab]"]
    assert "- [a] x\n- [b] 0\n- [c] 1\n" in text and "\n- [aa] 25\n" in text


# LaTeX ------------------------------------------------------------------------------------------


def body(text: str) -> list[str]:
    return text[text.index(r"\toprule") : text.index(r"\bottomrule")].splitlines()[1:]


def test_latex_rows(filled: FilledTable):
    assert body(latex(filled, check=True))[:10] == [
        r"method &  & trainable & q/k/v MACs & n & BLEU $\uparrow$ & CIDEr $\uparrow$ & val loss $\downarrow$ \\",
        r"\midrule",
        r"\multicolumn{8}{l}{\textit{First\_group}} \\",
        r"FT W\_q [a] & ours & 380,000 & 1,500,000 / 2,000,000 & 3 & \textbf{70.50 $\pm$ 0.10} & 2.400 $\pm$ 0.005 & "
        r"\textbf{1.500 $\pm$ 0.100} \\",
        r" & print & 0.38M & 1.5M / 2.0M &  & 70.0 $\pm$ 0.5 & 2.40 & 1.50 \\",
        r" & difference &  &  &  & +0.50 & +0.000 & +0.000 \\",
        r" & reruns &  &  & 2 & 70.90 to 71.25 &  &  \\",
        r" & verdict &  &  &  & within print & within print & within print \\",
        r"\addlinespace",
        r"B [b] & ours & 400,000 &  & 3 & 70.20 $\pm$ 0.10 & \textbf{2.600 $\pm$ 0.100} & "
        r"\textbf{1.500 $\pm$ 0.000} \\",
    ]


@pytest.mark.parametrize("check", [False, True])
def test_every_latex_row_has_as_many_columns_and_one_end(filled: FilledTable, check: bool):
    text = latex(filled, check=check)
    rows = [line for line in body(text) if line.endswith(r"\\")]
    assert all(line.count(r"\\") == 1 for line in rows)
    titles = [line for line in rows if line.startswith(r"\multicolumn{8}{l}")]
    assert len(titles) == 2
    assert {len(re.findall(r"(?<!\\)&", line)) for line in rows if line not in titles} == {7}
    assert r"\begin{tabular}{llrrrrrr}" in text
    rest = [line for line in body(text) if line not in rows]
    assert Counter(rest) == {r"\midrule": 2, r"\addlinespace": 3}
    assert r"\\" not in text[text.index(r"\bottomrule") :]


@pytest.mark.parametrize("check", [False, True])
def test_latex_environments_and_braces_are_balanced(filled: FilledTable, check: bool):
    text = latex(filled, check=check)
    opened: list[str] = []
    for kind, name in re.findall(r"\\(begin|end)\{(\w+)\}", text):
        if kind == "begin":
            opened.append(name)
        else:
            assert opened.pop() == name
    assert opened == []
    depth = 0
    for brace in re.findall(r"(?<!\\)[{}]", text):
        depth += 1 if brace == "{" else -1
        assert depth >= 0
    assert depth == 0
    assert len(re.findall(r"(?<!\\)\$", text)) % 2 == 0


def test_latex_escapes_what_it_would_read_as_its_own(filled: FilledTable):
    text = latex(filled, check=True)
    assert r"\caption{Ours\_1 \& 50 \%: Nobody 2020, Table 1}" in text
    assert r"\label{tab:own_1}" in text
    assert r"[a] An odd\_row \{\#1\}." in text
    assert r"All of it, $\pm$ 5 \%." in text
    assert r"(0.40 x 10\textasciicircum{}6)." in text
    assert r"if $|$ours - print$|$ $<$= 2 sqrt(s\_ours\textasciicircum{}2 / n + " in text
    assert not re.search("[±≈↑↓]", text)
    head, _, rest = text.partition("\n")
    assert head == r"% needs \usepackage{booktabs,graphicx}"
    assert re.findall(r"(?<!\\)%", rest) == ["%"]  # that of `{%`, which keeps a space out
    odd = replace(filled, notes=("a\\b ~ ^ $5 # {x} <y> | a_b ≈ c & 7 \u2212 2",))
    assert (
        r"a\textbackslash{}b \textasciitilde{} \textasciicircum{} \$5 \# \{x\} $<$y$>$ $|$ a\_b $\approx$ c \& 7 $-$ 2"
    ) in latex(odd)


# CSV and JSON -----------------------------------------------------------------------------------


def lines_of(filled: FilledTable) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(as_csv(filled))))


def test_csv_has_a_line_for_each_figure(filled: FilledTable):
    found = lines_of(filled)
    labels = ["FT W_q", "B", "Not run", "One", "Failed"]
    keys = ["bleu", "cider", "val_loss"]
    assert [(line["method"], line["metric"]) for line in found] == [(label, key) for label in labels for key in keys]
    assert all(tuple(line) == CSV_COLUMNS and None not in line.values() for line in found)
    bleu = found[0]
    numbers = {key: float(bleu.pop(key)) for key in ("mean", "std", "difference", "reruns_low", "reruns_high")}
    expected = {"mean": 70.5, "std": 0.1, "difference": 0.5, "reruns_low": 70.9, "reruns_high": 71.25}
    assert numbers == pytest.approx(expected)
    assert bleu == {
        "table": "own_1",
        "group": "First_group",
        "method": "FT W_q",
        "overrides": "protocol=lora model=gpt2-nano dataset=mini method=ft",
        "trainable": "380000",
        "printed_trainable": "0.38M",
        "macs": "1500000 / 2000000",
        "printed_macs": "1.5M / 2.0M",
        "metric": "bleu",
        "subset": "all",
        "unit": "percent",
        "n": "3",
        "print": "70.0",
        "print_std": "0.5",
        "verdict": "within print",
        "best": "yes",
        "tied_with_best": "",
        "signature": "metric:bleu|version:1",
        "runs": "ft_s1 ft_s2 ft_s3",
    }
    illegible = found[3]
    assert [illegible[key] for key in ("print", "print_std", "difference", "verdict")] == [""] * 4
    assert [found[4][key] for key in ("print", "print_std", "verdict")] == ["2.41", "", "outside"]
    assert [found[6][key] for key in ("n", "mean", "std", "verdict", "runs")] == ["0", "", "", "not run", ""]
    assert [found[9][key] for key in ("n", "std", "print", "best", "runs")] == ["1", "", "", "", "lora_s1"]


def test_json_says_all_with_the_ids_of_the_runs(filled: FilledTable):
    text = as_json(filled)
    tree = json.loads(text)
    assert json.dumps(tree, indent=1, ensure_ascii=False) + "\n" == text
    assert {key: tree[key] for key in ("table", "title", "source", "seeds")} == {
        "table": "own_1",
        "title": "Ours_1 & 50 %",
        "source": "Nobody 2020, Table 1",
        "seeds": [1, 2, 3],
    }
    assert tree["columns"] == [
        {"key": "bleu", "unit": "percent"},
        {"key": "cider", "unit": "points"},
        {"key": "val_loss", "unit": "nats"},
    ]
    assert [group["title"] for group in tree["groups"]] == ["First_group", "Second"]
    ft, b, missing = tree["groups"][0]["rows"]
    one, broken = tree["groups"][1]["rows"]
    runs = [row["runs"] for row in (ft, b, missing, one, broken)]
    assert runs == [
        ["ft_s1", "ft_s2", "ft_s3"],
        ["bitfit_s1", "bitfit_s2", "bitfit_s3"],
        [],
        ["lora_s1"],
        [],
    ]
    assert ft["reruns"] == [
        {"source": "Alice_1", "note": "V100", "bleu": "70.9"},
        {"source": "Bob", "note": None, "bleu": "71.25"},
    ]
    assert (ft["qkv_macs_per_token"], ft["printed_qkv_macs_per_token"]) == ([1_500_000, 2_000_000], "1.5M / 2.0M")
    assert "qkv_macs_per_token" not in b
    assert (ft["trainable"], ft["printed_trainable"], ft["million"]) == (380_000, "0.38M", 10**6)
    assert broken["failures"] == {"1": "out of memory", "2": "out of memory"}
    bleu = ft["cells"]["bleu"]
    assert bleu["values"] == pytest.approx([70.4, 70.5, 70.6])
    assert (bleu["print"], bleu["best"], bleu["tied_with_best"]) == ("70.0 ± 0.5", True, None)
    assert (bleu["verdict"], bleu["reruns"], bleu["signature"]) == (
        "within print",
        [70.9, 71.25],
        "metric:bleu|version:1",
    )
    verdicts = {row["label"]: [cell["verdict"] for cell in row["cells"].values()] for row in (b, missing, one, broken)}
    assert verdicts == {
        "B": [None, "outside", "within print"],
        "Not run": ["not run"] * 3,
        "One": [None] * 3,
        "Failed": ["failed"] * 3,
    }
    assert tree["notes"] == ["All of it, ± 5 %."]
    assert tree["signatures"] == {"bleu": ["metric:bleu|version:1"], "cider": ["metric:cider|version:1"]}


def test_all_four_hold_the_same_means(filled: FilledTable):
    decimals = {"bleu": 2, "cider": 3, "val_loss": 3}
    trees = {row["label"]: row for group in json.loads(as_json(filled))["groups"] for row in group["rows"]}
    shown = [text.splitlines() for text in (markdown(filled), latex(filled))]
    seen = 0
    for line in lines_of(filled):
        label, key = line["method"], line["metric"]
        mean = trees[label]["cells"][key]["mean"]
        assert (str(mean) if mean is not None else "") == line["mean"]
        if label in FIGURES:
            place = list(decimals).index(key)
            figures = [figures[place] for figures in FIGURES[label]]
            assert mean == pytest.approx(sum(figures) / len(figures))
            for lines, divider in zip(shown, ("|", "&"), strict=True):
                starts = (f"| {label} ", f"{label} ".replace("_", r"\_"))
                (row,) = [one for one in lines if one.startswith(starts)]
                cells = row.strip("| \\").split(divider)
                assert re.sub(r"\\textbf|[{}*]", "", cells[-3 + place]).split()[0] == f"{mean:.{decimals[key]}f}"
                seen += 1
    assert seen == 2 * 3 * len(FIGURES)


def test_verdicts_are_counted_where_something_is_printed(filled: FilledTable):
    assert verdicts(filled) == {"within print": 4, "within reruns": 0, "outside": 1, "not run": 3, "failed": 3}


# significance -----------------------------------------------------------------------------------

TESTED = """\
title: Tested
cell: [protocol=lora, model=gpt2-nano, dataset=mini]
columns: {val_loss: nats, bleu: percent, cider: points}
groups:
  - title: G
    rows:
      - {label: best, cell: [method=ft]}
      - {label: worse, cell: [method=bitfit]}
      - {label: near, cell: [method=adapter-l]}
      - {label: equal, cell: [method=prefix-layer]}
      - {label: two, cell: [method=loda, method.rank=4]}
  - title: H
    rows:
      - {label: wide, cell: [method=lora, method.rank=4, decode.beam=10]}
      - {label: narrow, cell: [method=lora, method.rank=4, decode.beam=1]}
"""
SEGMENTS = 40
RIGHT = {"best": 30, "worse": 5, "near": 29, "equal": 30, "two": 20, "wide": 30, "narrow": 5}
"""how many of the segments are as their reference; all have one of the two lengths that are as good"""


@pytest.fixture
def no_java(monkeypatch: pytest.MonkeyPatch) -> None:
    """The suite e2e with two metrics that need no Java: texts that are right, and the length of all."""

    def right(segments: Segments, groups: Sequence[Group]) -> list[Figure]:
        hits = [float(h in r) for h, r in zip(segments.hypotheses, segments.references, strict=True)]
        return mean_figures(hits, groups)

    def length(segments: Segments, groups: Sequence[Group]) -> list[Figure]:
        return mean_figures([len(text) for text in segments.hypotheses], groups)

    metrics = (
        suites.Metric("bleu", "fraction", "raw", right, lambda: "version:1"),
        suites.Metric("cider", "points", "raw", length, lambda: "version:1"),
    )
    monkeypatch.setitem(SUITES, "e2e", suites.Suite(lambda raw: {"raw": raw}, metrics))


def texts(right: int, seed: int = 1, reference: str = "right") -> list[Decoded]:
    """The first segments are right, a place further for each seed, so that seeds differ and their means don't."""
    hits = {(i + seed) % SEGMENTS for i in range(right)}
    return [
        Decoded(
            f"context {i}", (f"{reference} {i:02}",), f"{'right' if i in hits else 'wrong'} {i:02}", None, -1.0, True
        )
        for i in range(SEGMENTS)
    ]


def runs_of(table: Table, root: Path) -> None:
    """Three seeds of each row, `two` has two; the runs of `narrow` are those of `wide`, decoded once more."""
    rows = {row.label: row for row in table.rows}
    for label, row in rows.items():
        for run in row.cells((1, 2) if label == "two" else (1, 2, 3)):
            if label == "narrow":
                continue
            right = RIGHT[label] / SEGMENTS
            one = record(run, (100 * right, 8.0, 1.5), name=f"{label}-{run.seed}", decoded=SEGMENTS)
            files = {LAST: texts(RIGHT[label], run.seed)}
            if label == "wide":
                again = LAST.replace("test", "test-2")
                (first,) = one.evaluations
                bleu = replace(first.scores["bleu"], value=RIGHT["narrow"] / SEGMENTS)
                decode = compose.plain(rows["narrow"].run)["decode"]
                second = replace(first, decode=decode, hypotheses=again, scores={**first.scores, "bleu": bleu})
                one = replace(one, evaluations=(first, second))
                files[again] = texts(RIGHT["narrow"], run.seed)
            folder = put(root, one)
            for file, decoded in files.items():
                records.write_decoded(folder / file, decoded)


@pytest.fixture(scope="module")
def tested_table(tmp_path_factory: pytest.TempPathFactory) -> Table:
    return table_of(tmp_path_factory.mktemp("tested"), TESTED)


def filled_of(table: Table, root: Path) -> FilledTable:
    counts = {row_key(g.title, row): Counts(1, ()) for g in table.groups for row in g.rows}
    return aggregate.fill(table, Archive(root), counts, Reruns("", ()))


@pytest.mark.usefixtures("no_java")
def test_means_that_the_test_does_not_tell_from_the_best_are_marked(tested_table: Table, tmp_path: Path):
    runs_of(tested_table, tmp_path)
    before = filled_of(tested_table, tmp_path)
    assert {cell.tied for row in before.rows for cell in row.cells} == {None}
    after = aggregate.with_significance(before, tmp_path)
    rows = {row.row.label: row.cells for row in after.rows}
    shown = {label: (cells[1].best, cells[1].tied) for label, cells in rows.items() if label != "narrow"}
    assert shown == {
        "best": (True, None),
        "worse": (False, False),
        "near": (False, True),
        "equal": (True, None),  # as good to the last digit: bold itself
        "two": (False, None),  # of too few seeds
        "wide": (True, None),
    }
    # All lengths are equal, so all are best; a validation loss has no segments to draw from.
    assert {
        (cell.best, cell.tied) for label in RIGHT if label != "two" for cell in (rows[label][0], rows[label][2])
    } == {(True, None)}
    text = markdown(after)
    (near,) = [line for line in text.splitlines() if line.startswith("| near ")]
    assert " 72.50 ± 0.00 ≈ " in near and text.count("≈") == 2 + (rows["narrow"][1].tied is True)
    assert "- ≈: the paired bootstrap over segments does not tell it from the best (two-sided p >= 0.05).\n" in text
    assert r"72.50 $\pm$ 0.00 $\approx$" in latex(after)
    trees = [row for group in json.loads(as_json(after))["groups"] for row in group["rows"]]
    tied = {row["label"]: row["cells"]["bleu"]["tied_with_best"] for row in trees if row["label"] != "narrow"}
    assert tied == {"best": None, "worse": False, "near": True, "equal": None, "two": None, "wide": None}
    unmarked = [replace(row, cells=tuple(replace(cell, tied=None) for cell in row.cells)) for row in after.rows]
    assert unmarked == before.rows


@pytest.mark.usefixtures("no_java")
def test_two_decodings_of_one_run_are_told_apart_by_their_own_texts(tested_table: Table, tmp_path: Path):
    runs_of(tested_table, tmp_path)
    after = aggregate.with_significance(filled_of(tested_table, tmp_path), tmp_path)
    narrow = next(row for row in after.rows if row.row.label == "narrow")
    assert (narrow.cells[1].mean, narrow.cells[1].tied) == (12.5, False)
    assert [one.id for one in narrow.records] == ["wide-1", "wide-2", "wide-3"]


@pytest.mark.usefixtures("no_java")
def test_without_texts_nothing_is_tested(tested_table: Table, tmp_path: Path):
    runs_of(tested_table, tmp_path)
    found = filled_of(tested_table, tmp_path)
    path = tmp_path / records.RUNS / "near-2" / LAST
    path.unlink()
    with pytest.raises(BadInput, match=f"^{re.escape(str(path))} can't be read .*; decode the run again$"):
        aggregate.with_significance(found, tmp_path)


@pytest.mark.usefixtures("no_java")
def test_texts_of_other_segments_are_not_compared(tested_table: Table, tmp_path: Path):
    runs_of(tested_table, tmp_path)
    path = tmp_path / records.RUNS / "near-2" / LAST
    records.write_decoded(path, texts(29, 2, reference="other"))
    with pytest.raises(BadInput, match="the two sets of hypotheses were not measured alike"):
        aggregate.with_significance(filled_of(tested_table, tmp_path), tmp_path)


def test_a_table_that_is_too_long_for_a_page_goes_over_several(filled: FilledTable):
    first, *rest = filled.groups
    rows = tuple(first.rows[0] for _ in range(40))
    text = latex(replace(filled, groups=(replace(first, rows=rows), *rest)))
    assert r"\begin{longtable}" in text and r"\endhead" in text and r"\begin{table}" not in text
    assert text.count("{") == text.count("}")
    head, _, body = text.partition(r"\endhead")
    assert "method" in head and "method" not in body
