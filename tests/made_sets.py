"""Data sets for tests of their preparation: one of rows alone, and clips of a few small images."""

from pathlib import Path

import numpy as np
from PIL import Image

from mae_dfer.data.prepare import face_shares, findings, inspection, strips
from mae_dfer.data.prepare.layout import Entry, Layout
from mae_dfer.data.prepare.store import Inspection, Store

TOTAL = 1440  # clips


class Made:
    """RAVDESS, complete and sound by what its files say, without any file."""

    def __init__(self):
        self.layout = Layout("ravdess", Path("/ravdess"), (), folds=6)
        self.entries, self.inspections, self.shares, self.contents = {}, {}, {}, {}
        for actor in range(24):
            splits = tuple("test" if fold == actor // 4 else "train" for fold in range(6))
            for label in range(8):
                for take in range(8 if label else 4):
                    path = f"Actor_{actor + 1:02}/{label}-{take}.mp4"
                    self.entries[path] = Entry(path, label, splits, f"{actor + 1:02}")
                    self.inspections[path] = Inspection(path, "1 1", 100, 224, 224, 29.97, 1000, path)
                    self.shares[path] = 0.45
        self.paths = list(self.entries)

    def inspect(self, number, **changes):
        for path in self.paths[:number]:
            facts = {name: getattr(self.inspections[path], name) for name in Inspection.__slots__}
            self.inspections[path] = Inspection(**facts | changes)

    def relist(self, path, **changes):
        facts = {name: getattr(self.entries[path], name) for name in Entry.__slots__}
        self.entries[path] = Entry(**facts | changes)

    def share(self, number, share):
        self.shares |= dict.fromkeys(self.paths[:number], share)

    def open(self, folder):
        store = Store(folder / "inspection.sqlite3")
        store.list_clips(self.entries.values())
        store.save(self.inspections.values())
        store.set("face_share", ((share, path) for path, share in self.shares.items()))
        store.set("content", ((content, path) for path, content in self.contents.items()))
        return store

    def find(self, folder):
        with self.open(folder) as store:
            return findings.find_faults(self.layout, store)


def serial(work, items, workers, lost):
    yield [work(item) for item in items]


def stay_in_one_process(monkeypatch):
    """Nothing is given to other processes, and no detector is needed: a picture's brightest pixel tells of its face."""
    for module in (inspection, face_shares, strips):
        monkeypatch.setattr(module, "in_processes", serial)
    monkeypatch.setattr(face_shares, "share_of_face", lambda frame: None if frame.max() == 0 else frame.max() / 510)


def write_frames(folder, *, frames=4, size=(96, 96), brightness=255):
    folder.mkdir(parents=True)
    picture = np.zeros((*size[::-1], 3), np.uint8)
    picture[::2] = brightness
    for index in range(frames):
        Image.fromarray(picture).save(folder / f"{index}.png")
