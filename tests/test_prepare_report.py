"""The report on a prepared set: the page stands alone, and both it and the terminal tell the counts and the verdict."""

import html.parser
import re

import numpy as np
import pytest
from made_sets import Made, stay_in_one_process, write_frames
from PIL import Image
from videos import write_moving

from mae_dfer.data.prepare import __main__ as command
from mae_dfer.data.prepare import findings, inspection, report, strips
from mae_dfer.data.prepare.layout import Entry, Finding, Layout
from mae_dfer.data.prepare.store import Store


class Page(html.parser.HTMLParser):
    """Text, links and rows of a page; raises for tags that are not closed in order."""

    def __init__(self, text):
        super().__init__()
        self.links, self.tags, self.open, self.rows, self.texts = [], set(), [], [], []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        self.links += [value for name, value in attributes if name in ("src", "href", "srcset", "xlink:href", "data")]
        if tag not in ("meta", "img", "br", "link", "rect"):
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag):
        if tag != "rect":
            assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)
        if self.open and {"td", "th"} & set(self.open):
            self.rows[-1][-1] += data


HOSTILE = 'a <script>alert(1)</script> & "b" {{ 7 * 7 }} \x1b[31m'


@pytest.fixture
def one_process(monkeypatch):
    stay_in_one_process(monkeypatch)


@pytest.fixture
def small(tmp_path, one_process):
    """(layout, store) of five clips: one is a copy of another, one is empty, and one has a hostile name."""
    root = tmp_path / "set"
    entries = []
    for label, name in enumerate(["plain", HOSTILE, "wide", "copy"]):
        write_frames(root / name, size=(160, 90) if name == "wide" else (96, 96), brightness=200 + label)
        splits = tuple("test" if fold == label else "train" for fold in range(6))
        entries.append(Entry(name, label, splits, f"actor {label}"))
    for file in (root / "copy").iterdir():
        file.write_bytes((root / "plain" / file.name).read_bytes())
    (root / "hollow").mkdir()
    entries.append(Entry("hollow", 4, ("test", *("train",) * 5), "actor 0"))
    layout = Layout("ravdess", root, entries, folds=6)
    with Store(tmp_path / "s") as store:
        store.list_clips(entries)
        inspection.inspect_clips(root, store, 1, lambda more: None)
        inspection.find_duplicates(root, store, 1)
        yield layout, store


def test_the_page_stands_alone_and_has_the_counts(small, tmp_path):
    layout, store = small
    found = findings.find_faults(layout, store)
    report.write_page(layout, store, found, tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    page = Page(text)
    assert len(page.links) == 4  # pictures
    assert all(link.startswith("data:image/jpeg;base64,/9j/") for link in page.links)
    assert not page.tags & {"script", "link", "iframe", "object", "embed"}
    assert not re.search(r"@import|url\(|https?://", text)
    shown = "".join(page.texts)
    assert "<script>alert(1)</script> & \"b\" {{ 7 * 7 }}" in shown
    assert report.verdict(found) in shown
    assert all(finding.text in shown for finding in found)
    rows = {row[0]: row for row in page.rows}
    assert rows["neutral"][:4] == ["neutral", "1\n≠ 96", "0\n≠ 80", "1\n≠ 16"]
    assert rows["all classes"][:4] == ["all classes", "5\n≠ 1,440", "3\n≠ 1,200", "2\n≠ 240"]
    assert rows["not readable"][:4] == ["not readable", "1", "0", "1"]
    assert rows["2 – 7"][:2] == ["2 – 7", "4"]
    assert rows["96 × 96"][:2] == ["96 × 96", "3"]
    assert rows["hollow"][1].startswith("the folder holds no frames")
    assert rows["fold 1"] == ["fold 1", "3", "1", "0"]
    assert "4 subjects, of whom each has from 1 to 2 clips." in shown


def test_counts_that_are_the_published_ones_are_marked_so(tmp_path):
    with Made().open(tmp_path) as store:
        columns, rows = report.count_table(Made().layout, store)
    assert columns[:3] == ["all", "fold 1 train", "fold 1 test"]
    assert [str(cell) for cell in dict(rows)["neutral"][:3]] == ["96 =", "80 =", "16 ="]
    assert all(str(cell).endswith(" =") for name, cells in rows[:-1] for cell in cells)
    assert str(report.Cell(3)) == "3"


@pytest.mark.parametrize("width", [80, 140])
def test_no_count_is_cut_in_a_terminal(tmp_path, monkeypatch, capsys, width):
    monkeypatch.setattr(report.console, "width", width)
    made = Made()
    with made.open(tmp_path) as store:
        report.print_report(made.layout, store, [], tmp_path)
    out = capsys.readouterr().out
    assert "…" not in out
    assert max(map(len, out.splitlines())) <= max(width, len(f"report: {tmp_path}/report.html"), len(report.LEGEND))
    assert out.count("1,200 =") == out.count(" 240 =") == 6


def test_the_terminal_report_ends_in_the_verdict_and_no_name_colours_it(small, tmp_path, capsys):
    layout, store = small
    found = [Finding(f"{HOSTILE} is wrong; mend it", examples=(HOSTILE,)), Finding("a note", is_fault=False)]
    report.print_report(layout, store, found, tmp_path)
    out = capsys.readouterr().out
    assert "\x1b" not in out
    assert "note: a note" in out
    assert out.splitlines()[-1] == f"not fit for training: 1 fault: {HOSTILE[:-5]}[31m is wrong"


def test_a_set_without_classes_has_one_sheet(tmp_path, one_process):
    for index in range(14):
        write_frames(tmp_path / f"id/{index:02}", frames=1)
    entries = [Entry(f"id/{index:02}", splits=("pretrain",)) for index in range(14)]
    layout = Layout("voxceleb2", tmp_path, ())
    with Store(tmp_path / "s") as store:
        store.list_clips(entries)
        inspection.inspect_clips(tmp_path, store, 1, lambda more: None)
        report.write_page(layout, store, [], tmp_path / "report.html")
    page = Page((tmp_path / "report.html").read_text(encoding="utf-8"))
    assert len(page.links) == 12
    assert ["clips", "14\n≠ 1,092,009", "14"] in page.rows


def test_strips_of_noise_are_small_enough_for_a_page(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (360, 640, 3), np.uint8)
    Image.fromarray(noise).resize((172, 96)).save(tmp_path / "noise.png")
    picture = strips._draw((str(tmp_path / "noise.png"), "", ""))
    assert 0 < len(picture) <= 25_000  # of 72, in base64: 2.4 MB


def test_prepare_exits_with_1_for_an_unfit_set_and_with_0_for_a_fit_one(tmp_path, one_process, monkeypatch, capsys):
    root = tmp_path / "VideoFlash"
    root.mkdir()
    for actor in (1001, 1019, 1037, 1055, 1073):
        for index, emotion in enumerate(("ANG", "DIS", "FEA", "HAP", "NEU", "SAD")):
            path = root / f"{actor}_DFA_{emotion}_XX.mp4"
            write_moving(path, frames=3, start=index, rate=1 + actor % 50, size=(96, 96))
    arguments = ["crema-d", "--root", str(root), "--output", str(tmp_path / "out"), "--workers", "1"]
    assert command.main(arguments) == 1
    assert capsys.readouterr().out.splitlines()[-1].startswith("not fit for training: ")
    monkeypatch.setattr(findings, "compare", lambda *_: ())
    assert command.main(arguments) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "fit for training"
    assert (tmp_path / "out/report.html").is_file()
