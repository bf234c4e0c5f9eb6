"""What a person sees while a stage runs: a live bar in a terminal, one line an epoch everywhere."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

# No markup: names of files may hold brackets.
console = Console(markup=False, emoji=False, highlight=False, soft_wrap=True)
if not console.is_terminal:
    console.width = 140  # a table cut to 80 columns would hide the names it is about


class Bar:
    """One stage's bar. ``update`` is cheap; the bar draws itself a few times a second."""

    def __init__(self, progress: Progress, task: object) -> None:
        self._progress, self._task = progress, task

    def update(self, completed: int, text: str) -> None:
        self._progress.update(self._task, completed=completed, text=text)  # type: ignore[arg-type]


@contextmanager
def stage_bar(title: str, total: int, *, enabled: bool = True) -> Iterator[Bar]:
    """A bar over ``total`` steps with elapsed and remaining time."""
    columns = (
        TextColumn("{task.description}", style="bold", markup=False),
        BarColumn(),
        TextColumn("{task.completed}/{task.total}"),
        TextColumn("{task.fields[text]}", markup=False),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    live = enabled and console.is_terminal
    with Progress(*columns, console=console, disable=not live, transient=True) as progress:
        yield Bar(progress, progress.add_task(title, total=total, text=""))


@contextmanager
def counting_bar(title: str, total: int) -> Iterator[Callable[[int], None]]:
    """A :func:`stage_bar` that is told how many more steps are done."""
    with stage_bar(title, total) as bar:
        done = 0

        def advance(more: int) -> None:
            nonlocal done
            done += more
            bar.update(done, "")

        yield advance
