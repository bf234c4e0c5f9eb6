"""What a person should know before training on a set: faults of its lists, its files and its conventions."""

from __future__ import annotations

from mae_dfer.data.prepare.layout import Finding, Layout
from mae_dfer.data.prepare.store import Store


def find_faults(layout: Layout, store: Store) -> list[Finding]:
    """All findings, those of the lists first."""
    return [*layout.findings]
