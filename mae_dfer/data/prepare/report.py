"""The report on a prepared set: a summary in the terminal, and a page with pictures."""

from __future__ import annotations

from pathlib import Path

from mae_dfer.data.prepare.layout import Finding, Layout
from mae_dfer.data.prepare.store import Store


def print_report(layout: Layout, store: Store, findings: list[Finding], output: Path) -> None:
    """Counts, findings, and in the last line whether the set is fit for training."""


def write_page(layout: Layout, store: Store, findings: list[Finding], path: Path) -> None:
    """A self-contained page."""
