"""What a person should know before training on a set: faults of its lists, its files and its conventions.

What makes a run wrong, or its score not comparable with others, is a fault; the rest is a note. One clip in a thousand
may be damaged, or more or fewer than published: such sets were published on, too.
"""

from __future__ import annotations

import itertools
import os
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from mae_dfer.data.prepare.counts import count_clips, part_name, splits_of
from mae_dfer.data.prepare.face_shares import find_whole_frames, look_for_faces
from mae_dfer.data.prepare.layout import ABSENT, TEST, TRAIN, Finding, Layout
from mae_dfer.data.prepare.published import PUBLISHED, compare
from mae_dfer.data.prepare.store import SHOWN, Store, first_paths
from mae_dfer.data.sets import CLASSES

CLIP_FRAMES = 16  # that a clip is sampled to
SMALL = 80  # pixels of the shorter side: half of what the published models take
_TOLERATED = 1000  # of so many clips, one may be damaged, missing, or more than published
_NEARLY_ALL = 0.95
_READABLE = "clips JOIN inspections USING (path) WHERE fault = ''"

@dataclass(frozen=True)
class Reason:
    """Why clips cannot be read.

    Attributes:
        part: of the reason that inspection gives, in lower case.
        what: is said of such clips.
        remedy: what to do.
        is_original: whether a set may be handed out like that, so that a few such clips are no fault.
    """

    part: str
    what: str
    remedy: str
    is_original: bool = False


_REASONS = (
    Reason("no such file", "missing", "copy or extract them again, or correct --root"),
    Reason("which does not exist", "links to files that do not exist", "copy the files themselves"),
    Reason("git lfs", "Git LFS pointers, which stand for files", "fetch the files with git lfs pull"),
    Reason("block of zeros", "zeros, as an unfinished download leaves them", "download them again"),
    Reason("html page", "HTML pages, such as a download page", "download the files themselves"),
    Reason("a text file", "text files", "download the files themselves"),
    Reason("not valid utf-8", "names that are not valid UTF-8", "rename them"),
    Reason("process that", "a process was ended by them, or for lack of memory", "try fewer --workers", True),
    Reason("no face was found", "no face was found", "look at them, or give another --face-model", True),
    Reason("holds no frames", "folders without frames", "extract their frames again", True),
    Reason("empty", "empty", "download or extract them again", True),
    Reason("truncated", "truncated", "copy or download them again", True),
)
_DAMAGED = Reason("", "damaged, or no video", "download or extract them again", True)


def find_faults(
    layout: Layout, store: Store, workers: int = 1, advance: Callable[[int], None] = lambda more: None
) -> list[Finding]:
    """All findings, the faults first.

    Args:
        workers: processes that look for faces in a sample of the clips.
        advance: is called with how many more clips of the sample are done.
    """
    look_for_faces(layout, store, workers, advance)
    findings = [
        *layout.findings,
        *_find_list_faults(layout, store),
        *_find_differences(layout, store),
        *_find_unreadable(layout, store),
        *_find_duplicates(layout, store),
        *_find_odd_frames(layout, store),
        *find_whole_frames(layout, store),
    ]
    return sorted(findings, key=lambda finding: not finding.is_fault)


def _find_list_faults(layout: Layout, store: Store) -> Iterator[Finding]:
    counts = count_clips(layout, store, readable=True)
    classes = CLASSES.get(layout.set, ())
    lacking = [
        f"{part_name(layout, fold, split)} lacks {', '.join(names) if counts[fold, split] else 'all classes'}"
        for fold, split in splits_of(layout)
        if (names := [name for label, name in enumerate(classes) if not counts[fold, split][label]])
    ]
    if lacking:
        yield Finding("a class has no clips in some list; complete the lists or the files", examples=_few(lacking))
    if layout.folds > 1:
        yield from _find_fold_faults(store)
    subjects: dict[int, dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
    for splits, subject in store.ask("SELECT DISTINCT splits, subject FROM clips WHERE subject != ''"):
        for fold, split in enumerate(splits.split(",")):
            subjects[fold][split].add(subject)
    shared = [
        f"{part_name(layout, fold) or 'both'}: {', '.join(_few(sorted(both)))}{', …' if len(both) > SHOWN else ''}"
        for fold, known in sorted(subjects.items())
        if (both := known[TRAIN] & known[TEST])
    ]
    if shared:
        yield Finding(
            "subjects are both in a training list and in the test list of the same fold, so that scores are too high; "
            "take the set's own folds",
            examples=_few(shared),
        )


def _find_fold_faults(store: Store) -> Iterator[Finding]:
    """Clips that are tested more than once, or never, or that a fold forgets."""
    texts = {
        "many": "in the test lists of several folds; give each clip to one",
        "none": "in no fold's test list; give each clip to one",
        "absent": "in neither list of some fold; complete its lists",
    }
    numbers: Counter[str] = Counter()
    examples: dict[str, list[str]] = defaultdict(list)
    for splits, number in store.ask("SELECT splits, count(*) FROM clips GROUP BY splits ORDER BY splits"):
        listed = splits.split(",")
        tests = listed.count(TEST)
        kinds = {"many": tests > 1, "none": tests == 0, "absent": ABSENT in listed}
        for kind in (kind for kind, found in kinds.items() if found):
            numbers[kind] += number
            examples[kind] += first_paths(store, "clips WHERE splits = ?", splits)
    for kind, text in texts.items():
        if number := numbers[kind]:
            verb = "clip is" if number == 1 else "clips are"
            yield Finding(f"{number:,} {verb} {text}", examples=_few(examples[kind]))


def _find_differences(layout: Layout, store: Store) -> Iterator[Finding]:
    parts = PUBLISHED[layout.set].parts if layout.set in PUBLISHED else {}
    if not parts:
        yield Finding(f"no published counts of {layout.set} are known; nothing is compared", is_fault=False)
        return
    differences = list(compare(layout.set, count_clips(layout, store)))
    if not differences:
        return
    is_large = any(
        abs(one.found - one.published) * _TOLERATED > parts[one.fold, one.split].clips for one in differences
    )
    examples = [
        f"{part_name(layout, one.fold - 1, one.split)}{f', {one.name}' if one.name else ''}: {one.found:,} clips, "
        f"published {one.published:,}"
        for one in differences
    ]
    what = f"{len(differences)} counts of clips differ" if len(differences) > 1 else "a count of clips differs"
    remedy = "complete the files and lists, or scores cannot be compared" if is_large else "scores hardly change by it"
    yield Finding(f"{what} from the published; {remedy}", is_large, _few(examples))


def _find_unreadable(layout: Layout, store: Store) -> Iterator[Finding]:
    """One finding for each kind of reason."""
    numbers: Counter[Reason] = Counter()
    examples: dict[Reason, list[str]] = defaultdict(list)
    query = "SELECT path, fault FROM clips JOIN inspections USING (path) WHERE fault != '' ORDER BY number"
    for path, fault in store.ask(query):
        said = fault.replace(os.path.join(layout.root, path), "").casefold()
        reason = next((reason for reason in _REASONS if reason.part in said), _DAMAGED)
        numbers[reason] += 1
        if len(examples[reason]) < SHOWN:
            examples[reason].append(path if reason is not _DAMAGED else f"{path}: {fault}")
    (total,) = next(store.ask("SELECT count(*) FROM clips"))
    for reason, number in numbers.most_common():
        yield Finding(
            f"{number:,} of {total:,} clips cannot be read ({reason.what}); {reason.remedy}; until then lists leave "
            "them out",
            not reason.is_original or number * _TOLERATED > total,
            tuple(examples[reason]),
        )


def duplicate_groups(store: Store) -> Iterator[list[tuple[str, int, str]]]:
    """The clips of equal content: (path, label, splits) of each."""
    rows = store.ask(
        "SELECT content, path, label, splits FROM clips JOIN inspections USING (path) "
        "WHERE content != '' AND fault = '' ORDER BY content, number"
    )
    for _, group in itertools.groupby(rows, key=lambda row: row[0]):
        clips = [(path, label, splits) for _, path, label, splits in group]
        if len(clips) > 1:
            yield clips


def _find_duplicates(layout: Layout, store: Store) -> Iterator[Finding]:
    classes = CLASSES.get(layout.set, ())
    texts = {
        "labels": ("the same content and different labels; remove those whose label is wrong", True),
        "splits": ("the same content in the training and the test list of a fold; remove those for training", True),
        "other": ("the same content; each counts as often as it is listed", False),
    }
    numbers: Counter[str] = Counter()
    examples: dict[str, list[str]] = defaultdict(list)
    for group in duplicate_groups(store):
        labels = {label for _, label, _ in group}
        folds = zip(*(splits.split(",") for _, _, splits in group), strict=True)
        kinds = {"labels": len(labels) > 1, "splits": any({TRAIN, TEST} <= set(fold) for fold in folds)}
        for kind in [kind for kind, found in kinds.items() if found] or ["other"]:
            numbers[kind] += 1
            if len(examples[kind]) < SHOWN:
                shown = [f"{path} ({classes[label]})" if kind == "labels" else path for path, label, _ in group]
                examples[kind].append(" = ".join(_few(shown)) + (" = …" if len(shown) > SHOWN else ""))
    for kind, (text, is_fault) in texts.items():
        if number := numbers[kind]:
            groups = "group of clips has" if number == 1 else "groups of clips have"
            yield Finding(f"{number:,} {groups} {text}", is_fault, tuple(examples[kind]))


def _find_odd_frames(layout: Layout, store: Store) -> Iterator[Finding]:
    """What the numbers and sizes of frames contradict."""
    window = CLIP_FRAMES * layout.stride
    is_oblong, is_small = "abs(width - height) > 0.05 * max(width, height)", "min(width, height) < ?"
    query = (
        f"SELECT count(*), total(frames = ?), total(frames < ?), total({is_small}), total({is_oblong}), "
        f"total(width > 1.2 * height) FROM {_READABLE}"
    )
    total, *found = map(int, next(store.ask(query, CLIP_FRAMES, window, SMALL)))
    sixteen, short, small, oblong, wide = found

    def some(number: int) -> str:
        return f"{number:,} of {total:,} clips {'has' if number == 1 else 'have'}"

    if layout.stride > 1 and sixteen and sixteen >= _NEARLY_ALL * total:
        yield Finding(
            f"{some(sixteen)} {CLIP_FRAMES} frames, which are meant for stride 1 and not for {layout.stride}; take "
            "the clips of full length, or train with stride 1"
        )
    elif short:
        text = f"fewer than {window} frames, as many as {CLIP_FRAMES} at stride {layout.stride} span"
        remedy = "the last is repeated, as in the published training"
        yield Finding(f"{some(short)} {text}; {remedy}", False,
                      first_paths(store, f"{_READABLE} AND frames < ?", window))  # fmt: skip
    if small:
        text = f"frames with a side below {SMALL} pixels, half of what the models take; take larger ones if there are"
        yield Finding(f"{some(small)} {text}", False, first_paths(store, f"{_READABLE} AND {is_small}", SMALL))
    if layout.is_cropped and oblong:
        is_fault = wide > total / 2
        remedy = "take the crops, or use --crop-faces" if is_fault else "training squeezes them into a square"
        yield Finding(f"{some(oblong)} frames that are not square, as crops of faces are; {remedy}", is_fault,
                      first_paths(store, f"{_READABLE} AND {is_oblong}"))  # fmt: skip


def _few(items: list[str]) -> tuple[str, ...]:
    return tuple(items[:SHOWN])
