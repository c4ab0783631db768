"""`lodarepro report`: its messages, and the page that it writes, looked at without a browser."""

import base64
import gzip
import hashlib
import json
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]
from PIL import Image

from lodarepro import compose, records, report, tables
from lodarepro.archive import Archive
from lodarepro.cli import main
from lodarepro.errors import BadInput
from lodarepro.findings import Column, Curves, Findings, Grid, HeatMap, Line, Panel
from lodarepro.records import Failure
from lodarepro.report import analyses, drawing, figures, html
from lodarepro.report.table import FAILED, NOT_RUN
from tests.browser import invented

ROOT = Path(__file__).resolve().parents[2]
LABEL = """</script><b id=x onclick="window.hacked=1">FT & 'co'</b>"""
FAULT = 'out of <i>memory</i> & "time" </script><script>window.hacked=1</script>'
VALUE = "</script><script>window.hacked=1</script><!--"
OWN = f"""\
title: Ours <u>& theirs</u>
source: Nobody 2020, Table 1
cell: [protocol=lora, model=gpt2-nano, dataset=mini]
columns: {{bleu: percent, cider: points, val_loss: nats}}
notes: {{odd: 'A <s>note</s> & "more".'}}
groups:
  - title: First <em>group</em>
    rows:
      - label: '{LABEL.replace("'", "''")}'
        cell: [method=ft]
        params: 1.1M
        print: [70.0 ± 0.5, 2.40, 1.00]
        notes: [odd]
      - {{label: LoRA r=4, cell: [method=lora, method.rank=4], print: [65.0, "?", 1.20]}}
      - {{label: Not run, cell: [method=adapter-l], print: [1.0, 1.00, 1.0]}}
  - title: Second
    rows:
      - {{label: BitFit, cell: [method=bitfit], print: [60.1, 2.10, 1.30]}}
      - {{label: LoRA r=2, cell: [method=lora, method.rank=2], print: [64.9, 2.20, 1.25]}}
      - {{label: Failed, cell: [method=loda, method.rank=4], print: [1.0, 1.00, 1.0]}}
"""
PANELS = (Panel(LABEL, (LABEL, "b"), ("c",), ((0.5, None),)),)
ANALYSIS = Findings(
    analysis="subspace",
    name="subspace_own_0123456789ab",
    title=f"Subspaces {VALUE}",
    source=f"Nobody 2020 {VALUE}",
    settings={"model": {"path": "/home/someone/models/gpt2", "name": VALUE}, "rank": 8},
    provenance={"code": {"version": "0.1", "commit": "c" * 40}, "argv": ["data.root=/home/someone/data/e2e"]},
    grids=(
        Grid("first", f"First {VALUE}", (Column("at", LABEL), Column("n", "n")), ((LABEL, 1_000), ("b", None))),
        Grid("second", "Second", (Column("at", "at"), Column("x", "x", 3)), (("a", 0.12345), ("b", -2.0))),
        Grid("long", "Long", (Column("at", "at"),), (("only in its file",),), shown=False),
    ),
    plots=(
        HeatMap(
            "map", f"Map {VALUE}", VALUE, "x", VALUE, "φ", ((Panel(LABEL, (LABEL, "b"), ("c",), ((0.5, None),)),),)
        ),
        Curves("lines", "Lines", "How.", "x", VALUE, (Line(LABEL, (1, 2), (3, 4), notes=(VALUE, "two")),)),
    ),
    notes=(f"A note {VALUE}",),
    files={"settings.yaml": "rank: 4\n"},
)
EMPTY = ("Not run", "First <em>group</em>: Not run", "Failed", "LoRA r=2")


@dataclass
class Element:
    """An element of a page with its text."""

    tag: str
    attributes: dict[str, str]
    parents: tuple[str, ...]
    text: str = ""
    inside: list["Element"] = field(default_factory=list)


class Page(HTMLParser):
    """The elements of a page in order."""

    VOID = frozenset({"meta", "input", "br", "img", "link", "hr", "source", "embed", "base"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[Element] = []
        self._open: list[Element] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        element = Element(tag, {key: value or "" for key, value in attrs}, tuple(one.tag for one in self._open))
        self.elements.append(element)
        for one in self._open:
            one.inside.append(element)
        if tag not in self.VOID:
            self._open.append(element)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in self.VOID:
            self._open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self._open and self._open[-1].tag == tag, f"</{tag}> ends {self._open[-1:]}"
        self._open.pop()

    def handle_data(self, data: str) -> None:
        for one in self._open:
            one.text += data

    def all(self, tag: str, **attributes: str) -> list[Element]:
        wanted = {key.rstrip("_"): value for key, value in attributes.items()}
        return [e for e in self.elements if e.tag == tag and wanted.items() <= e.attributes.items()]

    def one(self, tag: str, **attributes: str) -> Element:
        (found,) = self.all(tag, **attributes)
        return found

    def data(self) -> dict[str, Any]:
        return json.loads(self.one("script", id="data").text)

    def texts(self) -> list[dict[str, Any]]:
        packed = [one.text for one in self.all("script", type="application/octet-stream")]
        return [json.loads(gzip.decompress(base64.b64decode(text))) for text in packed]


def links(page: Page) -> Iterator[tuple[int, int, int, Element]]:
    """Table, row and column of every link of a figure."""
    for element in page.all("a"):
        kind, _, rest = element.attributes["href"].removeprefix("#").partition(":")
        if kind == "cell":
            table, row, column = rest.rsplit(":", 2)
            yield int(table), int(row), int(column), element


def read(root: Path) -> Page:
    """The page in a results folder."""
    return Page((root / "report" / "index.html").read_text(encoding="utf-8"))


def rows_of(tree: dict[str, Any]) -> list[dict[str, Any]]:
    return [row for group in tree["groups"] for row in group["rows"]]


@dataclass(frozen=True)
class Made:
    """What the command left."""

    root: Path
    table: Path
    text: str
    page: Page
    status: int

    @property
    def arguments(self) -> list[str]:
        return [str(self.table), f'results.root="{self.root}"']


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """A report of a table with every kind of row, whose labels, texts and settings try to be more than text."""
    folder = tmp_path_factory.mktemp("page")
    path = folder / "own_1.yaml"
    path.write_text(OWN, encoding="utf-8")
    root = folder / "results & <more>"
    invented.results(root, str(path), segments=9, leave_out=EMPTY)
    invented.results(root, str(path), segments=9, seeds=(2,), leave_out=[*EMPTY[:-1], LABEL, "LoRA r=4", "BitFit"])
    for file in (root / records.RUNS).glob("*/record.json"):
        tree = json.loads(file.read_text(encoding="utf-8"))
        tree["config"]["data"]["root"] = tree["provenance"]["argv"][0] = VALUE
        tree["provenance"]["device"] = VALUE
        file.write_text(json.dumps(tree), encoding="utf-8")
    for row in tables.read(str(path)).rows:
        if row.label == "Failed":
            folder = root / records.RUNS / "failed-run"
            folder.mkdir()
            described = compose.plain(row.run)
            failure = Failure(folder.name, described, compose.identity(row.run, {}), (FAULT, "and more"), {})
            records.write_failure(folder, failure)
    analyses.write(ANALYSIS, root)
    status = main(["report", str(path), f'results.root="{root}"'])
    text = (root / "report" / "index.html").read_text(encoding="utf-8")
    return Made(root, path, text, Page(text), status)


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures take their time."""
    monkeypatch.setattr(figures, "of_table", lambda filled, root: [])


def fails(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", *arguments]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    (line,) = shown.err.splitlines()
    assert re.fullmatch(message, line), line


# the command ------------------------------------------------------------------------------------


def test_it_says_where_the_page_is(made: Made, undrawn: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert made.status == 0
    root = tmp_path / "copy"
    shutil.copytree(made.root, root)
    capsys.readouterr()
    assert main(["report", str(made.table), f"results.root={root}"]) == 0
    folder = root / "report"
    assert (
        capsys.readouterr().out == f"report: {folder / 'index.html'} (figures as PNG and SVG in {folder / 'figures'})\n"
    )


def test_without_runs_there_is_nothing_to_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    root = tmp_path / "none"
    message = re.escape(
        f"lodarepro: {root} holds no finished run and no analysis: make some (lodarepro run, or make demo), or say "
        "with results.root=FOLDER where they are"
    )
    fails([f"results.root={root}"], message, capsys)
    fails(["mini", f"results.root={root}"], message, capsys)
    assert not root.exists()


def test_an_unknown_table(made: Made, capsys: pytest.CaptureFixture[str]):
    place = made.arguments[1]
    fails(
        ["loda-11", place],
        r"lodarepro: loda-11: no such table; did you mean 'loda-1'\? \(.*\), nor a YAML file of one",
        capsys,
    )
    fails(["nowhere.yaml", place], r"lodarepro: nowhere.yaml: no such table.*, nor a YAML file of one", capsys)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["train.epochs=2"], r"lodarepro: train\.epochs=2: would make other cells than the table's; .*"),
        (["data.nowhere=x"], r"lodarepro: .*nowhere.*"),
        (["--seeds", "1,1"], r"lodarepro: --seeds 1,1: name at least one seed, each once"),
    ],
)
def test_a_bad_override(made: Made, words: list[str], message: str, capsys: pytest.CaptureFixture[str]):
    fails([*made.arguments, *words], message, capsys)


def test_a_bad_override_without_a_table(made: Made, capsys: pytest.CaptureFixture[str]):
    fails(
        [made.arguments[1], "train.epochs=2"],
        r"lodarepro: train\.epochs=2: would make other cells than the table's; .*",
        capsys,
    )


def test_a_place_that_can_not_be_written(
    made: Made, undrawn: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    root = tmp_path / "copy"
    shutil.copytree(made.root, root, ignore=shutil.ignore_patterns("report"))
    arguments = [str(made.table), f"results.root={root}"]
    (root / "report").write_text("a file")
    fails(arguments, rf"lodarepro: {re.escape(str(root))}/report(/figures)?: can't be \w+ \(.*\); .*", capsys)
    (root / "report").unlink()

    def denied(path: Path, content: bytes) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(report, "write_atomically", denied)
    message = rf"lodarepro: {re.escape(str(root))}/report/index.html: can't be written \(Permission denied\); .*"
    fails(arguments, message, capsys)


def test_a_corrupt_list_of_steps_costs_its_curve_alone(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    for draw in ("_against_print", "_ranks", "_sizes"):
        monkeypatch.setattr(figures, draw, lambda filled, rows, place: None)
    root = tmp_path / "copy"
    shutil.copytree(made.root, root, ignore=shutil.ignore_patterns("report"))
    file = next((root / records.RUNS).glob(f"*_ft_*/{records.STEPS}"))
    file.write_text("step,lr,loss\n0,1\n")
    assert main(["report", str(made.table), f"results.root={root}"]) == 0
    assert f"{file} is not a list of steps with their losses; delete it" in capsys.readouterr().err
    assert (root / "report" / "figures" / "own_1-training.svg").exists()


def test_without_names_a_table_of_the_dataset_without_runs_is_left_out(tmp_path: Path, undrawn: None):
    folder = next((ROOT / "results" / "mini" / "runs").glob("*_ft_*_s1_*"))
    one = records.finished(folder)
    other = replace(one, id="seed-9", config={**one.config, "seed": 9}, identity={**one.identity, "seed": 9})
    (tmp_path / "runs" / "seed-9").mkdir(parents=True)
    records.write(tmp_path / "runs" / "seed-9", other)
    assert main(["report", f"results.root={tmp_path}"]) == 0
    page = read(tmp_path)
    assert page.data()["tables"] == [] and list(page.data()["runs"]) == ["seed-9"]
    assert [a.attributes["href"] for a in page.one("nav").inside if a.tag == "a"] == ["#runs"]
    # One that is asked for is shown.
    assert main(["report", "mini", "--seeds", "9", f"results.root={tmp_path}"]) == 0
    assert len(list(links(read(tmp_path)))) == 6


def test_runs_in_no_table_are_shown_all_the_same(made: Made, undrawn: None, tmp_path: Path):
    # As of a dataset that no table is on.
    folder = next((made.root / records.RUNS).glob("*_ft_*_s1_*"))
    shutil.copytree(folder, tmp_path / "alone" / records.RUNS / folder.name)
    other = replace(records.finished(folder), id="other")
    tree = {**other.config, "dataset": {**other.config["dataset"], "name": "theirs"}}
    target = tmp_path / "alone" / records.RUNS / folder.name
    records.write(target, replace(other, id=folder.name, config=tree, identity={**other.identity, "dataset": {}}))
    assert main(["report", f"results.root={tmp_path / 'alone'}"]) == 0
    page = read(tmp_path / "alone")
    assert page.data()["tables"] == []
    assert [test["systems"][0]["label"] for test in page.texts()] == ["ft"]
    assert len([a for a in page.all("a") if a.attributes["href"].startswith("#run:")]) == 1


def test_runs_without_texts_make_a_page_without_their_section(tmp_path: Path, undrawn: None):
    shutil.copytree(ROOT / "results" / "mini" / "runs", tmp_path / "runs")
    assert main(["report", f"results.root={tmp_path}"]) == 0
    page = read(tmp_path)
    assert page.texts() == [] and page.all("section", id="texts") == []
    assert "#texts" not in [a.attributes["href"] for a in page.all("a")]
    assert len(page.data()["runs"]) == 21
    assert {cell["n"] for row in rows_of(page.data()["tables"][0]) for cell in row["cells"].values()} == {3}


def test_as_make_demo_calls_it(tmp_path: Path, undrawn: None):
    for folder in (ROOT / "results" / "mini" / "runs").glob("*_s1_*"):
        shutil.copytree(folder, tmp_path / "runs" / folder.name)
    assert main(["report", "mini", "--seeds", "1", f"results.root={tmp_path}"]) == 0
    page = read(tmp_path)
    (tree,) = page.data()["tables"]
    assert tree["seeds"] == [1]
    assert {cell["n"] for row in rows_of(tree) for cell in row["cells"].values()} == {1}
    shown = [element.text for *_, element in links(page)]
    assert len(shown) == 7 * 6 and all(re.fullmatch(r"\d+\.\d+", text) for text in shown)
    assert page.all("a", class_="best") == []


# the page ---------------------------------------------------------------------------------------

FETCHING = {"src", "srcset", "data", "poster", "background", "action", "formaction", "manifest", "ping", "longdesc"}


def test_it_is_one_file_that_asks_for_nothing(made: Made):
    assert not {"link", "img", "iframe", "object", "embed", "base", "image", "video", "audio"} & {
        element.tag for element in made.page.elements
    }
    for element in made.page.elements:
        assert not FETCHING & set(element.attributes), element
        for name in ("href", "xlink:href"):
            if name in element.attributes:
                assert element.attributes[name].startswith("#"), element
        for place in re.findall(r"url\(([^)]*)\)", "".join(element.attributes.values())):
            assert place.startswith("#")
        assert not [name for name in element.attributes if name.startswith("on")], element
    style = made.page.all("style")[0].text
    assert "@import" not in style and "url(" not in style and "http" not in style
    script = made.page.all("script")[-1].text
    assert not re.search(
        r"https?:|fetch\(|XMLHttpRequest|import\(|innerHTML|eval\(", script.replace("no innerHTML", "")
    )


def test_its_policy_lets_its_own_script_run_and_nothing_else(made: Made):
    policy = made.page.one("meta", **{"http-equiv": "Content-Security-Policy"}).attributes["content"]
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    (script,) = [one for one in made.page.all("script") if "type" not in one.attributes]
    digest = base64.b64encode(hashlib.sha256(script.text.encode()).digest()).decode()
    assert rules == {
        "default-src": "'none'",
        "base-uri": "'none'",
        "form-action": "'none'",
        "style-src": "'unsafe-inline'",
        "script-src": f"'sha256-{digest}'",
    }
    # What comes before it is not under the policy.
    head = [element.tag for element in made.page.elements if element.parents == ("html", "head")]
    assert head[:2] == ["meta", "meta"]


def test_no_id_is_given_twice_and_every_reference_has_its_target(made: Made):
    ids = [element.attributes["id"] for element in made.page.elements if "id" in element.attributes]
    assert len(ids) == len(set(ids))
    for element in made.page.elements:
        target = element.attributes.get("href", element.attributes.get("xlink:href", ""))
        if target.startswith("#") and not target.startswith(("#cell:", "#run:")):
            assert target[1:] in ids, target
        for name in ("aria-labelledby", "for", "aria-describedby"):
            if name in element.attributes:
                assert element.attributes[name] in ids


def test_what_is_hostile_stays_text(made: Made):
    scripts = made.page.all("script")
    assert [one.attributes.get("type") for one in scripts] == ["application/json", "application/octet-stream", None]
    assert {element.tag for element in made.page.elements} & {"b", "i", "u", "s", "em"} == set()
    titles = [element.text for element in made.page.elements if element.tag in ("th", "h2", "li", "title")]
    assert f"{LABEL} [a]" in titles
    assert "Ours <u>& theirs</u>: Nobody 2020, Table 1" in titles
    assert "First <em>group</em>" in titles
    assert '[a] A <s>note</s> & "more".' in titles
    assert f"failed-run: {FAULT}; and more" in titles
    assert f"lodarepro report: {made.root.name}" in titles
    data = made.page.data()
    (tree,) = data["tables"]
    assert rows_of(tree)[0]["label"] == LABEL
    assert {run["provenance"]["device"] for run in data["runs"].values()} == {VALUE}
    assert {run["provenance"]["argv"][0] for run in data["runs"].values()} == {VALUE}
    packed = re.search(r'<script type="application/json" id="data">(.*?)</script>', made.text, flags=re.DOTALL)
    assert packed and not set("<>&") & set(packed[1])
    assert [title.text for title in made.page.all("title") if LABEL in title.text]  # of points in figures


def test_texts_decode_to_what_was_written(made: Made):
    (test,) = made.page.texts()
    assert (test["name"], len(test["contexts"]), test["subsets"]) == ("mini", 9, None)
    labels = [system["label"] for system in test["systems"]]
    assert labels == [LABEL, "LoRA r=4", "BitFit", "LoRA r=2"]
    for system in test["systems"]:
        folder = made.root / records.RUNS / system["run"]
        assert "_s2_" in folder.name if system["label"] == "LoRA r=2" else "_s1_" in folder.name
        file = next(folder.glob("evaluations/*.jsonl"))
        decoded = records.read_decoded(file)
        assert system["hypotheses"] == [one.hypothesis for one in decoded]
        assert set(invented.ODD) <= set(system["hypotheses"])
        assert test["contexts"] == [one.context for one in decoded]
        assert test["references"] == [list(one.references) for one in decoded]
        assert system["unfinished"] == [i for i, one in enumerate(decoded) if not one.finished]
        kept = json.loads(file.with_suffix(".values.json").read_text())["values"]
        assert {m["key"]: (m["decimals"], m["higher"]) for m in test["metrics"]} == {
            "meteor": (2, True),
            "rouge_l": (2, True),
            "cider": (3, True),
        }
        assert system["values"]["cider"] == [round(value, 4) for value in kept["cider"]]
        assert system["values"]["meteor"] == pytest.approx([round(100 * value, 3) for value in kept["meteor"]])


def test_every_figure_is_a_link_to_where_it_is_from(made: Made):
    (tree,) = made.page.data()["tables"]
    rows = rows_of(tree)
    seen = []
    for table, row, column, element in links(made.page):
        assert (table, tree["table"]) == (0, "own_1")
        key = tree["columns"][column]["key"]
        cell = rows[row]["cells"][key]
        mean, _, spread = element.text.partition(" ± ")
        assert f"{cell['mean']:.{len(mean.partition('.')[2])}f}" == mean
        assert len(mean.partition(".")[2]) == {"bleu": 2, "cider": 3, "val_loss": 3}[key]
        assert (spread == "") == (cell["n"] < 3)
        assert not spread or f"{cell['std']:.{len(spread.partition('.')[2])}f}" == spread
        assert (element.attributes.get("class") == "best") == cell["best"]
        seen.append((row, key))
    expected = [(i, key) for i, row in enumerate(rows) for key, cell in row["cells"].items() if cell["n"]]
    assert seen == expected and len(expected) == 4 * 3
    assert set(rows[0]["runs"]) <= set(made.page.data()["runs"])
    states = [e.text for e in made.page.all("span", class_="none")]
    assert states == [NOT_RUN] * 3 + [FAILED] * 3


def test_links_stand_in_the_rows_that_they_name(made: Made):
    (tree,) = made.page.data()["tables"]
    labels = [row["label"] for row in rows_of(tree)]
    body = [element for element in made.page.all("tr") if element.parents[-1] == "tbody"]
    for line in body:
        head = [one.text for one in line.inside if one.tag == "th"]
        for one in line.inside:
            if one.tag == "a" and one.attributes["href"].startswith("#cell:"):
                row = int(one.attributes["href"].split(":")[2])
                assert re.sub(r"( \[\w+\]|\[\w+\])+$", "", head[0]) == labels[row]


def test_signs_are_those_of_the_verdicts(made: Made):
    (tree,) = made.page.data()["tables"]
    expected = [
        cell["verdict"]
        for row in rows_of(tree)
        for cell in row["cells"].values()
        if cell["verdict"] not in (None, NOT_RUN, FAILED)
    ]
    shown = [e for e in made.page.all("span") if e.attributes.get("title") and e.parents[-1] == "td"]
    assert [e.attributes["title"] for e in shown] == expected
    for element in shown:
        verdict = element.attributes["title"]
        assert element.attributes["class"] == verdict.replace(" ", "-")
        assert element.text == html.VERDICTS[verdict] + verdict
    assert len(set(expected)) > 1
    chips = [" ".join(e.text.split()[1:]) for e in made.page.all("span") if "chip" in e.attributes.get("class", "")]
    counts = {verdict: expected.count(verdict) for verdict in html.VERDICTS}
    assert chips[: len(set(expected))] == [f"{count} {verdict}" for verdict, count in counts.items() if count]
    assert chips[len(set(expected)) :] == ["3 not run", "3 failed"]


def test_print_and_differences_stand_below_ours(made: Made):
    (tree,) = made.page.data()["tables"]
    first = next(e for e in made.page.all("tr") if e.parents[-1] == "tbody" and LABEL in e.text)
    cells = [e.text for e in first.inside if e.tag == "td"]
    assert "print 1.1M" in cells[0] and cells[1] == "3"
    difference = rows_of(tree)[0]["cells"]["bleu"]["difference"]
    assert f"print 70.0 ± 0.5 ({difference:+.2f})" in cells[2]
    assert "print illegible" in next(e for e in made.page.all("tr") if "LoRA r=4" in e.text).text


def test_all_runs_are_listed_and_those_that_failed(made: Made):
    archive = Archive(made.root)
    hrefs = [a.attributes["href"] for a in made.page.all("a") if a.attributes["href"].startswith("#run:")]
    assert hrefs == [f"#run:{record.id}" for record in archive.finished] and len(hrefs) == 10
    assert list(made.page.data()["runs"]) == [record.id for record in archive.finished]
    assert "10 runs in " in made.page.one("header").text
    lines = [e for e in made.page.all("tr") if any(a.attributes.get("href") in hrefs for a in e.inside)]
    for line, record in zip(lines, archive.finished, strict=True):
        texts = [e.text for e in line.inside if e.tag == "td"]
        score = record.evaluations[0].scores["bleu"].value
        assert texts[0] == "mini" and texts[4] == str(record.config["seed"]) and texts[7] == f"{100 * score:.2f}"
    assert [e.text for e in made.page.all("code")].count("failed-run") == 1


def test_what_stands_behind_a_run_is_all_there(made: Made):
    runs = made.page.data()["runs"]
    for record in Archive(made.root).finished:
        run = runs[record.id]
        assert run["config"] == compose.without_places(record.config) and run["provenance"] == record.provenance
        assert run["checksums"] == record.identity["checksums"]
        (evaluation, *_) = record.evaluations
        assert run["evaluations"][0]["scores"]["bleu"] == [
            evaluation.scores["bleu"].value,
            "fraction",
            evaluation.scores["bleu"].signature,
        ]


def test_figures_are_files_too(made: Made):
    folder = made.root / "report" / "figures"
    named = [e.text for e in made.page.all("code") if e.parents[-1] == "figcaption" and e.text.startswith("figures/")]
    assert len(named) == 7 and len(set(named)) == len(named)
    assert sorted(path.name for path in folder.iterdir()) == sorted(
        Path(name).with_suffix(ending).name for name in named for ending in (".svg", ".png")
    )
    for path in folder.glob("*.png"):
        with Image.open(path) as image:
            image.verify()
    of_tables = [figure for figure in made.page.all("figure") if "data-metric" in figure.attributes]
    shown = [figure for figure in of_tables if "hidden" not in figure.attributes]
    assert {figure.attributes["data-metric"] for figure in shown} == {"bleu", ""}


def test_running_again_changes_the_time_alone(made: Made, monkeypatch: pytest.MonkeyPatch):
    before = {path.name: path.read_bytes() for path in (made.root / "report" / "figures").iterdir()}
    assert main(["report", *made.arguments]) == 0
    again = (made.root / "report" / "index.html").read_text(encoding="utf-8")
    time = re.compile(r"made \d{4}-\d\d-\d\d \d\d:\d\d UTC")
    assert len(time.findall(again)) == 1
    assert time.sub("", again) == time.sub("", made.text)
    assert {path.name: path.read_bytes() for path in (made.root / "report" / "figures").iterdir()} == before


def test_a_table_is_named_once(made: Made, capsys: pytest.CaptureFixture[str]):
    message = r"lodarepro: 2 tables would share the name own_1; name each once"
    fails([str(made.table), *made.arguments], message, capsys)


def test_a_table_may_have_any_file_name(made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for draw in ("_ranks", "_sizes"):
        monkeypatch.setattr(figures, draw, lambda filled, rows, place: None)
    root, path = tmp_path / "copy", tmp_path / 'a:b "c" & d.yaml'
    shutil.copytree(made.root, root)
    path.write_text(OWN.replace(", cider: points, val_loss: nats", "").replace(", 2.40, 1.00]", "]"), encoding="utf-8")
    text = re.sub(r"(print: \[[\d.]+), [^]]*\]", r"\1]", path.read_text(encoding="utf-8"))
    path.write_text(text, encoding="utf-8")
    assert main(["report", str(path), f"results.root={root}"]) == 0
    page = read(root)
    # As the page's script takes a link apart.
    parts = [a.attributes["href"].split(":") for a in page.all("a") if a.attributes["href"].startswith("#cell:")]
    assert parts and {len(one) for one in parts} == {4}
    ids = [element.attributes["id"] for element in page.elements if "id" in element.attributes]
    assert len(ids) == len(set(ids))
    odd = [
        element.attributes
        for element in page.elements
        if not all(re.fullmatch(r"[\w:-]+", k) for k in element.attributes)
    ]
    assert odd == []


# analyses ---------------------------------------------------------------------------------------


def section(page: Page) -> list[Element]:
    return page.one("section", id="analyses").inside


def test_an_analysis_is_shown_with_all_that_it_found(made: Made):
    found = section(made.page)
    assert [e.text for e in found if e.tag == "h3"] == [ANALYSIS.title]
    assert next(e.text for e in found if e.tag == "p") == ANALYSIS.source
    tables = [e for e in found if e.tag == "table"]
    cells = [[[c.text for c in r.inside] for r in t.inside if r.tag == "tr"] for t in tables]
    assert cells == [[[LABEL, "n"], [LABEL, "1,000"], ["b", "–"]], [["at", "x"], ["a", "0.123"], ["b", "-2.000"]]]
    assert ["details" in table.parents for table in tables] == [False, True]
    assert [e.text for e in found if e.tag == "h4"] == [f"First {VALUE}"]
    folded = [e.text for e in found if e.tag == "summary"]
    assert folded == ["Second", "Settings, provenance, files"]
    assert all("open" not in e.attributes for e in found if e.tag == "details")
    captions = [e.text for e in found if e.tag == "figcaption"]
    folder = f"analyses/{ANALYSIS.name}"
    assert captions == [f"{VALUE} {folder}/map.svg, .png", f"How. {folder}/lines.svg, .png"]
    assert [e.text for e in found if e.tag == "li"] == list(ANALYSIS.notes)
    named = [e.text for e in found if e.tag == "code" and e.parents[-1] == "p"]
    assert named == [f"{folder}/{name}" for name in ("first.csv", "second.csv", "long.csv", "settings.yaml")]
    assert all((made.root / name).exists() for name in named)
    numbers = [e.text for e in found if "number" in e.attributes.get("class", "")]
    assert numbers == ["n", "1,000", "–", "x", "0.123", "-2.000"]


def test_the_points_and_maps_of_an_analysis_are_drawn_in_the_page(made: Made):
    found = section(made.page)
    drawings = [e for e in found if e.tag == "svg"]
    assert len(drawings) == 2
    assert {f"{LABEL}: {VALUE}", f"{LABEL}: two"} <= {e.text for e in drawings[1].inside if e.tag == "title"}
    assert drawing.short(LABEL) in {e.text for e in drawings[0].inside if e.tag == "text"}
    figures_of_tables = made.root / "report" / "figures"
    assert not [path for path in figures_of_tables.iterdir() if "map" in path.name or "lines" in path.name]


def test_settings_and_provenance_of_an_analysis_are_shown_without_places(made: Made):
    (behind,) = [e.text for e in section(made.page) if e.tag == "pre"]
    assert json.loads(behind) == {
        "settings": {"model": {"path": "gpt2", "name": VALUE}, "rank": 8},
        "provenance": {"code": {"version": "0.1", "commit": "c" * 40}, "argv": ["data.root=e2e"]},
    }
    assert "/home/someone" not in made.text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("/home/someone/models/gpt2", "gpt2"),
        ("/home/some one/data/", ""),
        ("~/data/x.txt", "x.txt"),
        ("~someone/data/x.txt", "x.txt"),
        ('results.root="/tmp/some where/results"', 'results.root="results"'),
        ("[/a/b,/c/d/e.txt]", "[b,e.txt]"),
        ("file:///home/someone/x", "x"),
        ("https://example.org/a/b", "https://example.org/a/b"),
        ("tokens/s, a / b / c and d/e", "tokens/s, a / b / c and d/e"),
        ("LoRA r=4", "LoRA r=4"),
    ],
)
def test_places_are_left_out_and_nothing_else(text: str, expected: str):
    assert html._without_folders({"key": [text, 1, None]}) == {"key": [expected, 1, None]}


def test_analyses_come_after_tables_and_before_texts(made: Made):
    assert [e.attributes["id"] for e in made.page.all("section")] == ["table-0", "analyses", "texts", "runs"]
    anchors = [a.attributes["href"] for a in made.page.one("nav").inside if a.tag == "a"]
    assert anchors == ["#table-0", "#analyses", "#texts", "#runs"]


def test_without_analyses_there_is_no_section(grouped: Page):
    assert grouped.all("section", id="analyses") == []


def test_analyses_alone_make_a_page(tmp_path: Path):
    analyses.write(replace(ANALYSIS, plots=()), tmp_path)
    assert main(["report", f"results.root={tmp_path}"]) == 0
    page = read(tmp_path)
    assert [e.attributes["id"] for e in page.all("section")] == ["analyses"]
    assert [a.attributes["href"] for a in page.one("nav").inside if a.tag == "a"] == ["#analyses"]
    assert page.data() == {"tables": [], "runs": {}} and page.texts() == []


def test_a_damaged_analysis_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    folder = analyses.write(replace(ANALYSIS, plots=()), tmp_path)
    (folder / "analysis.json").write_text("{")
    message = rf"lodarepro: {re.escape(str(folder))}/analysis.json is not an analysis \(.*\); delete its folder"
    fails([f"results.root={tmp_path}"], message, capsys)


@pytest.fixture(scope="module")
def grouped(tmp_path_factory: pytest.TempPathFactory) -> Page:
    """Of a table with groups and columns of subsets, and of another dataset's, neither of which was named."""
    root = tmp_path_factory.mktemp("grouped")
    empty = ["Adapter-L m=6", "Adapter-L m=224", "Adapter-L m=8", "Adapter-L m=248", "FT-Top2", "PreLayer"]
    found = invented.results(root, "lora-14", seeds=(1,), texts=False, leave_out=[*empty, "GPT-2 Medium: FT"])
    assert len(found) == len(IN_GROUPS)
    shutil.copytree(ROOT / "results" / "mini" / "runs", root / "runs", dirs_exist_ok=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(figures, "of_table", lambda filled, root: [])
        assert main(["report", f"results.root={root}"]) == 0
    return read(root)


IN_GROUPS = {"GPT-2 Medium: LoRA r=4", "GPT-2 Large: FT", "GPT-2 Large: LoRA r=4"}


def test_without_names_the_tables_with_runs_are_taken(grouped: Page):
    assert [tree["table"] for tree in grouped.data()["tables"]] == ["lora-14", "mini"]
    anchors = [a.attributes["href"] for a in grouped.one("nav").inside if a.tag == "a"]
    assert anchors == ["#table-0", "#table-1", "#runs"]
    # Runs of two suites of metrics have a table each.
    assert [t.text for t in grouped.elements if t.tag == "th" and t.text == "seed"] == ["seed", "seed"]


def test_a_table_in_groups_has_their_rows_and_links_with_the_right_numbers(grouped: Page):
    assert [row.text.strip() for row in grouped.all("tr", class_="group")] == ["GPT-2 Medium", "GPT-2 Large"]
    tree = grouped.data()["tables"][0]
    keyed = [f"{group['title']}: {row['label']}" for group in tree["groups"] for row in group["rows"]]
    found = [(row, column, element) for table, row, column, element in links(grouped) if table == 0]
    assert {keyed[row] for row, _, _ in found} == IN_GROUPS and len(found) == 3 * 9
    for row, column, element in found:
        cell = rows_of(tree)[row]["cells"][tree["columns"][column]["key"]]
        assert f"{cell['mean']:.{len(element.text.partition('.')[2])}f}" == element.text


def test_all_lines_of_a_table_are_as_wide_as_its_head(grouped: Page, made: Made):
    for page in (grouped, made.page):
        for table in page.all("table"):
            lines = [element for element in table.inside if element.tag == "tr"]
            widths = [
                sum(int(one.attributes.get("colspan", 1)) for one in line.inside if one.tag in ("th", "td"))
                for line in lines
            ]
            assert set(widths) == {widths[0]}, [line.text for line in lines]


# what it reads ----------------------------------------------------------------------------------


def test_tables_of_a_dataset_are_those_whose_files_name_it():
    folder = compose.config_folder() / "table"
    of: dict[str, set[str]] = {}
    for path in folder.glob("*.yaml"):
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
        cells = [tree["cell"]]
        for group in tree["groups"]:
            cells += [group.get("cell", []), *(row["cell"] for row in group["rows"])]
        for text in (text for cell in cells for text in cell):
            if str(text).startswith("dataset="):
                of.setdefault(str(text).partition("=")[2], set()).add(path.stem)
    assert set(of) == {"e2e", "e2e-small", "dart", "webnlg", "mini"}
    assert set().union(*of.values()) == set(tables.names())
    for dataset, expected in of.items():
        assert tables.names_of({dataset}) == sorted(expected)
    assert tables.names_of({"mini", "webnlg"}) == ["lora-14", "mini"]
    assert tables.names_of(set(of)) == tables.names()
    assert tables.names_of(set()) == tables.names_of({"e2"}) == []


def test_steps_are_read_as_they_were_written(tmp_path: Path):
    path = tmp_path / "steps.csv"
    losses = [3.25, 1e-9, 0.123456789, 12345.678]
    records.write_steps(path, [0.1] * 4, losses)
    assert records.read_steps(path) == pytest.approx(losses, rel=1e-8)
    records.write_steps(path, [], [])
    assert records.read_steps(path) == []


def test_no_steps_where_there_is_no_file(tmp_path: Path):
    assert records.read_steps(tmp_path / "steps.csv") == []


DAMAGES: dict[str, bytes] = {
    "too few columns": b"step,lr,loss\n0,1\n",
    "no number": b"step,lr,loss\n0,1,x\n",
    "cut off": b"step,lr,loss\n0,1,2\n1,1,",
    "not finite": b"step,lr,loss\n0,1,2\n1,1,nan\n",
    "not ASCII": b"step,lr,loss\n0,1,\xff\n",
}


@pytest.mark.parametrize("content", DAMAGES.values(), ids=DAMAGES)
def test_damaged_steps_are_told(tmp_path: Path, content: bytes):
    path = tmp_path / "steps.csv"
    path.write_bytes(content)
    with pytest.raises(BadInput, match=f"^{re.escape(str(path))} is not a list of steps with their losses; delete it$"):
        records.read_steps(path)


def test_steps_that_can_not_be_read_are_told(tmp_path: Path):
    with pytest.raises(BadInput, match=f"^{re.escape(str(tmp_path))}: can't be read \\(Is a directory\\)$"):
        records.read_steps(tmp_path)
