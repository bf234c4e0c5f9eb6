"""The report on a prepared set: a summary in the terminal, and a page with pictures."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from rich import box
from rich.table import Table
from rich.text import Text

from mae_dfer import __version__
from mae_dfer.data.prepare.counts import ALL, Counts, count_clips, part_name, splits_of
from mae_dfer.data.prepare.findings import duplicate_groups
from mae_dfer.data.prepare.layout import TEST, TRAIN, Finding, Layout
from mae_dfer.data.prepare.published import PUBLISHED, published_count
from mae_dfer.data.prepare.store import Store
from mae_dfer.data.prepare.strips import Strip, choose_examples, draw_strips
from mae_dfer.data.sets import CLASSES
from mae_dfer.files import encodable, printable, write_atomically
from mae_dfer.training.progress import console, counting_bar

FIT, UNFIT = "fit for training", "not fit for training"
LEGEND = "= as published; ≠ N where N are published; unmarked where no published number is known"
_IN_TERMINAL, _ON_PAGE, _IN_VERDICT = 30, 200, 8  # findings
_COLUMN, _MARGIN = 10, 4  # characters of a column, and of the borders, in the terminal
_ROWS = 100  # of a table of files
_LENGTH = 300  # characters of a line that comes from the set
_EDGES = (1, 2, 8, 16, 17, 32, 64, 128, 256, 512, 1024)  # of the ranges in which numbers of frames are counted
_KINDS = 8  # of sizes and of rates that are shown


@dataclass(frozen=True)
class Cell:
    """A count, and the published one where it is known."""

    count: int
    published: int | None = None

    @property
    def differs(self) -> bool:
        return self.published not in (None, self.count)

    def __str__(self) -> str:
        """One line, or two where the published count is another."""
        if self.published is None:
            return f"{self.count:,}"
        return f"{self.count:,}\n≠ {self.published:,}" if self.differs else f"{self.count:,} ="


@dataclass(frozen=True)
class Bar:
    """One bar of a distribution; ``share`` is of the longest one, from 0 to 1."""

    name: str
    count: int
    share: float


def verdict(findings: Sequence[Finding]) -> str:
    """The last line: whether a set is fit for training, or what is wrong with it."""
    faults = [printable(finding.text.partition(";")[0], _LENGTH) for finding in findings if finding.is_fault]
    if not faults:
        return FIT
    number = "1 fault" if len(faults) == 1 else f"{len(faults):,} faults"
    more = f"; and {len(faults) - _IN_VERDICT:,} more" if len(faults) > _IN_VERDICT else ""
    return f"{UNFIT}: {number}: {'; '.join(faults[:_IN_VERDICT])}{more}"


def count_table(layout: Layout, store: Store) -> tuple[list[str], list[tuple[str, list[Cell]]]]:
    """The names of the columns, and the rows: each class, all classes, and those clips that cannot be read."""
    columns = [ALL, *splits_of(layout)]
    listed, readable = count_clips(layout, store), count_clips(layout, store, readable=True)
    rows = [
        (name, [_cell(layout, listed, fold, split, label) for fold, split in columns])
        for label, name in enumerate(CLASSES.get(layout.set, ()))
    ]
    rows.append(("all classes" if rows else "clips", [_cell(layout, listed, *column, None) for column in columns]))
    rows.append(("not readable", [Cell(listed[column].total() - readable[column].total()) for column in columns]))
    return [part_name(layout, *column) for column in columns], rows


def _cell(layout: Layout, counts: Counts, fold: int, split: str, label: int | None) -> Cell:
    found = counts[fold, split]
    published = published_count(layout.set, fold + 1, split, label)
    return Cell(found.total() if label is None else found[label], published)


def print_report(layout: Layout, store: Store, findings: list[Finding], output: Path) -> None:
    """Counts, findings, and in the last line whether the set is fit for training."""
    console.print(Text(f"\n{printable(_title(layout))}", "bold"))
    for table in _tables(*count_table(layout, store)):
        console.print(table)
    console.print(LEGEND)
    for finding in findings[:_IN_TERMINAL]:
        kind, style = ("fault", "bold red") if finding.is_fault else ("note", "bold")
        console.print(Text.assemble((f"{kind}: ", style), printable(finding.text, _LENGTH)))
        for example in finding.examples:
            console.print(Text(f"    {printable(example, _LENGTH)}", "dim"))
    if len(findings) > _IN_TERMINAL:
        console.print(f"… and {len(findings) - _IN_TERMINAL:,} more findings")
    console.print(f"report: {output / 'report.html'}")
    line = verdict(findings)
    console.print(Text(line, "bold green" if line == FIT else "bold red"))


def _tables(columns: list[str], rows: list[tuple[str, list[Cell]]]) -> Iterator[Table]:
    """The table of counts, in as many parts as it takes to cut no number."""
    fit = max((console.width - max(len(name) for name, _ in rows) - _MARGIN) // _COLUMN, 1)
    for start in range(0, len(columns), fit):
        part = range(len(columns))[start : start + fit]
        table = Table(box=box.SIMPLE)
        table.add_column("", no_wrap=True)
        for place in part:
            table.add_column(Text("\n".join(columns[place].rsplit(" ", 1))), justify="right", no_wrap=True)
        for name, cells in rows:
            shown = [cells[place] for place in part]
            table.add_row(name, *(Text(str(cell), "bold red" if cell.differs else "") for cell in shown))
        yield table


def _title(layout: Layout) -> str:
    return f"{layout.set}, clips {layout.convention}" if layout.convention else layout.set


def write_page(layout: Layout, store: Store, findings: list[Finding], path: Path, workers: int = 1) -> None:
    """A self-contained page: findings, counts, distributions, example clips, files.

    Args:
        workers: processes that draw the example clips.
    """
    columns, rows = count_table(layout, store)
    facts = PUBLISHED.get(layout.set)
    environment = Environment(
        loader=PackageLoader(__package__, "."), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    environment.filters["number"] = lambda number: f"{number:,}"
    text = environment.get_template("page.html.jinja").render(
        title=_title(layout),
        version=__version__,
        verdict=verdict(findings),
        fit=FIT,
        facts=_facts(layout, store),
        findings=findings[:_ON_PAGE],
        more_findings=max(len(findings) - _ON_PAGE, 0),
        columns=columns,
        rows=rows,
        legend=LEGEND,
        source=facts.source if facts else "",
        distributions=_distributions(layout, store),
        strips=_strips(layout, store, workers),
        unreadable=_unreadable(store),
        duplicates=_duplicates(layout, store),
        subjects=_subjects(layout, store),
    )
    write_atomically(path, lambda temporary: temporary.write_text(encodable(text), encoding="utf-8"))


def _facts(layout: Layout, store: Store) -> list[tuple[str, str]]:
    query = "SELECT count(*), total(fault != ''), total(bytes) FROM clips LEFT JOIN inspections USING (path)"
    clips, broken, size = map(int, next(store.ask(query)))
    return [
        ("folder", str(layout.root)),
        ("clips", f"{clips:,}" + (f", of which {broken:,} cannot be read" if broken else "")),
        ("size", f"{size / 1e9:,.1f} GB" if size >= 1e8 else f"{size / 1e6:,.1f} MB"),
        ("folds", str(layout.folds or "none; the set has one split")),
        ("frames", f"faces, cut out by {layout.cropped_by}" if layout.is_cropped else "whole frames"),
        ("stride", f"every {layout.stride}th frame" if layout.stride > 1 else "every frame"),
    ]


def _distributions(layout: Layout, store: Store) -> list[tuple[str, list[Bar]]]:
    """(what is counted, bars) of frames, sizes and rates."""
    readable = "FROM clips JOIN inspections USING (path) WHERE fault = '' GROUP BY 1"
    frames: Counter[int] = Counter()
    for number, clips in store.ask(f"SELECT frames, count(*) {readable}"):
        frames[max(edge for edge in _EDGES if edge <= number)] += clips
    ranges = [(_range(start, end), frames[start]) for start, end in zip(_EDGES, (*_EDGES[1:], None), strict=True)]
    first = next((place for place, (_, clips) in enumerate(ranges) if clips), 0)
    last = max((place for place, (_, clips) in enumerate(ranges) if clips), default=-1)
    sizes = [(f"{size}", clips) for size, clips in store.ask(f"SELECT width || ' × ' || height, count(*) {readable}")]
    rates = [
        ("images, which have none" if rate is None else f"{rate:g}", clips)
        for rate, clips in store.ask(f"SELECT round(rate, 2), count(*) {readable}")
    ]
    return [
        ("Frames of a clip", _bars(ranges[first : last + 1])),
        ("Width × height", _bars(_most_common(sizes))),
        ("Frames a second", _bars(_most_common(rates))),
    ]


def _range(start: int, end: int | None) -> str:
    if end is None:
        return f"{start:,} and more"
    return f"{start:,}" if end == start + 1 else f"{start:,} – {end - 1:,}"


def _most_common(counts: list[tuple[str, int]]) -> list[tuple[str, int]]:
    ordered = sorted(counts, key=lambda count: -count[1])
    rest = ordered[_KINDS:]
    return ordered[:_KINDS] + ([(f"{len(rest):,} others", sum(clips for _, clips in rest))] if rest else [])


def _bars(counts: list[tuple[str, int]]) -> list[Bar]:
    longest = max((clips for _, clips in counts), default=0)
    return [Bar(name, clips, clips / longest) for name, clips in counts]


def _strips(layout: Layout, store: Store, workers: int) -> list[tuple[str, list[Strip]]]:
    """(name of a class, its examples) for each class."""
    examples = choose_examples(layout, store)
    with counting_bar("draw examples", len(examples)) as advance:
        strips = list(draw_strips(layout, examples, workers, advance))
    return [(name, list(group)) for name, group in itertools.groupby(strips, key=lambda strip: strip.name)]


def _unreadable(store: Store) -> tuple[int, list[tuple[str, str]]]:
    """How many clips cannot be read, and the first ones: (path, reason)."""
    unreadable = "FROM clips JOIN inspections USING (path) WHERE fault != ''"
    (number,) = next(store.ask(f"SELECT count(*) {unreadable}"))
    return number, list(store.ask(f"SELECT path, fault {unreadable} ORDER BY number LIMIT ?", _ROWS))


def _duplicates(layout: Layout, store: Store) -> tuple[int, list[list[tuple[str, str, str]]]]:
    """How many groups have the same content, and the first ones: (path, class, splits) of their first clips."""
    classes = CLASSES.get(layout.set, ())
    number, shown = 0, []
    for group in duplicate_groups(store):
        number += 1
        if number <= _ROWS:
            shown.append([(path, classes[label] if classes else "", splits.replace(",", ", "))
                          for path, label, splits in group[:_KINDS]])  # fmt: skip
    return number, shown


def _subjects(layout: Layout, store: Store) -> tuple[str, list[tuple[str, int, int, int]]]:
    """One line on them, and for each fold: (its name, subjects of training, of test, of both); empty without any."""
    clips: Counter[str] = Counter()
    folds: dict[int, dict[str, set[str]]] = {fold: {TRAIN: set(), TEST: set()} for fold, _ in splits_of(layout)}
    for splits, subject, number in store.ask(
        "SELECT splits, subject, count(*) FROM clips WHERE subject != '' GROUP BY 1, 2"
    ):
        clips[subject] += number
        for fold, split in enumerate(splits.split(",")):
            folds[fold].setdefault(split, set()).add(subject)
    if not clips:
        return "", []
    line = f"{len(clips):,} subjects, of whom each has from {min(clips.values()):,} to {max(clips.values()):,} clips."
    rows = [
        (part_name(layout, fold) or "the set", len(known[TRAIN]), len(known[TEST]), len(known[TRAIN] & known[TEST]))
        for fold, known in folds.items()
        if known[TRAIN] or known[TEST]
    ]
    return line, rows
