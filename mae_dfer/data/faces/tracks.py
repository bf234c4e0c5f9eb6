"""Follows faces through a video: one smooth square box a face, from its first frame to its last.

The detector looks at six frames a second; in between, boxes move straight, which differs from what it would have seen
by little more than it differs from itself. Then boxes are kept still as far as they may (`smoothing.py`).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass, field

import cv2
import numpy as np
from numpy.typing import NDArray

from mae_dfer.data.faces.detector import SURE, FaceDetector, Faces
from mae_dfer.data.faces.smoothing import round_bends, taut_path
from mae_dfer.data.video import Frames, Video
from mae_dfer.errors import UserError

LOOKS = 6.0  # a second
_MOST_SKIPPED = 10  # frames, whatever rate a file claims
_ASSUMED_RATE = 25.0  # of videos without times, to tell how long a track lasts
# Least intersection over union of a face and the same one when it is next seen, both boxes doubled: so it may move by
# more than its width from look to look.
_SAME_FACE = 0.25
# How far a box may be from where the detector saw the face: its centre, by the face's size; its size, by itself. Twice
# what a still face seems to move and change by, in a camera's noise (6 of 255) and under strong compression.
_CENTRE_SLACK, _SIZE_SLACK = 0.01, 0.02
_BEND = 0.1  # seconds over which a box that sets off, stops or turns does so
# A cut changes the picture, and twice as much as any of the two frames on either side do.
_CUT_CHANGE, _CUT_RATIO = 12.0, 2.0


@dataclass(frozen=True)
class Track:
    """One face, in frames that follow each other.

    Attributes:
        first_frame: its index in the video.
        boxes: float64 (n, 4), a square in each frame, as large as the face that the detector saw and in its middle.
        scores: float64 (n,), the detector's, from 0.5 to 1, straight between the frames that it looked at.
    """

    first_frame: int
    boxes: NDArray[np.float64]
    scores: NDArray[np.float64]

    @property
    def frames(self) -> range:
        """Indices of its frames."""
        return range(self.first_frame, self.first_frame + len(self.boxes))


@dataclass
class _Sightings:
    """One face where the detector saw it."""

    frames: list[int] = field(default_factory=list)
    boxes: list[NDArray[np.float64]] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)

    def add(self, frame: int, box: NDArray[np.float64], score: float) -> None:
        self.frames.append(frame)
        self.boxes.append(box)
        self.scores.append(score)


def find_tracks(
    video: Video, detector: FaceDetector, *, bridge: float = 1.0, shortest: float = 0.5
) -> list[Track]:
    """The faces of a video, a folder of frames or an image, in order of their first frames.

    A cut ends a track. So does a face that is out of sight for longer than ``bridge`` seconds; for a shorter time, its
    box goes on to where it is seen again. Tracks shorter than ``shortest`` seconds are dropped, unless the video is,
    and those in which no face is certain. Where images have no times, 25 frames a second are assumed, and the detector
    looks at each.

    Raises: VideoError for a frame that cannot be decoded.
    """
    if bridge < 0 or shortest < 0:
        raise UserError(f"bridge ({bridge}) and shortest ({shortest}) are seconds, 0 or more")
    rate = frame_rate(video)
    every = 1 if rate is None else min(max(round(rate / LOOKS), 1), _MOST_SKIPPED)
    rate = rate or _ASSUMED_RATE
    seen, cuts = _look(video, detector, every)
    least = min(round(shortest * rate), video.num_frames)
    tracks = []
    for first, end in itertools.pairwise([0, *cuts, video.num_frames]):
        shot = {frame: faces for frame, faces in seen.items() if first <= frame < end}
        for sightings in _link(shot, max(bridge * rate, every)):
            span = _span(sightings, first, end, every)
            if len(span) >= least and max(sightings.scores) >= SURE:
                tracks.append(_smooth(sightings, span, _BEND * rate))
    return sorted(tracks, key=lambda track: track.first_frame)


def main_track(tracks: Iterable[Track]) -> Track | None:
    """The track of the face that is largest for longest; None where there is no track."""
    return max(tracks, key=lambda track: float((track.boxes[:, 2] - track.boxes[:, 0]).sum()), default=None)


def frame_rate(video: Video) -> float | None:
    """Mean frames a second, by the frames' times where the video has them; None for images."""
    if video.times is not None and len(video.times) > 1:
        return (len(video.times) - 1) / float(video.times[-1] - video.times[0])
    return video.fps


def _look(video: Video, detector: FaceDetector, every: int) -> tuple[dict[int, Faces], list[int]]:
    """The faces of each ``every``-th frame and of the last; and the first frame after each cut."""
    seen, changes = {}, np.zeros(video.num_frames)
    previous = None
    for index, frame in enumerate(video.stream()):
        if index % every == 0 or index == video.num_frames - 1:
            seen[index] = detector.detect(frame)
        small = _thumbnail(frame)
        if previous is not None:
            changes[index] = np.abs(small - previous).mean()
        previous = small
    return seen, _find_cuts(changes)


def _thumbnail(frame: Frames) -> NDArray[np.float32]:
    step = max(min(frame.shape[:2]) // 64, 1)
    small = np.ascontiguousarray(frame[::step, ::step])
    return cv2.resize(small, (32, 24), interpolation=cv2.INTER_AREA).astype(np.float32)


def _find_cuts(changes: NDArray[np.float64]) -> list[int]:
    """Frames that differ from the one before as no frame near them does: a flash and a fast pan are no cuts."""
    padded = np.pad(changes, 2)
    around = np.max([padded[:-4], padded[1:-3], padded[3:-1], padded[4:]], axis=0)
    return [int(index) for index in np.flatnonzero((changes > _CUT_CHANGE) & (changes > _CUT_RATIO * around))]


def _link(shot: dict[int, Faces], longest_gap: float) -> list[_Sightings]:
    """Sightings of the same faces: from look to look, those boxes that overlap most go together."""
    lost: list[_Sightings] = []
    followed: list[_Sightings] = []
    for frame, (boxes, scores) in sorted(shot.items()):
        lost += [one for one in followed if frame - one.frames[-1] > longest_gap]
        followed = [one for one in followed if frame - one.frames[-1] <= longest_gap]
        overlaps = _overlaps(_doubled(np.array([one.boxes[-1] for one in followed])), _doubled(boxes))
        new = set(range(len(boxes)))
        while overlaps.size and overlaps.max() >= _SAME_FACE:
            old, now = (int(at) for at in np.unravel_index(overlaps.argmax(), overlaps.shape))
            followed[old].add(frame, boxes[now], scores[now])
            overlaps[old], overlaps[:, now] = 0.0, 0.0
            new.discard(now)
        followed += [_Sightings([frame], [boxes[now]], [scores[now]]) for now in sorted(new)]
    return lost + followed


def _doubled(boxes: NDArray[np.float64]) -> NDArray[np.float64]:
    """Boxes (n, 4) of twice the width and height."""
    boxes = boxes.reshape(-1, 4)
    half = (boxes[:, 2:] - boxes[:, :2]) / 2
    return np.hstack([boxes[:, :2] - half, boxes[:, 2:] + half])


def _overlaps(some: NDArray[np.float64], others: NDArray[np.float64]) -> NDArray[np.float64]:
    """Intersection over union of boxes (m, 4) and (n, 4) -> (m, n)."""
    one = some[:, None]
    corners = np.minimum(one[..., 2:], others[:, 2:]) - np.maximum(one[..., :2], others[:, :2])
    shared = corners.clip(min=0).prod(axis=-1)
    areas = [(boxes[..., 2:] - boxes[..., :2]).prod(axis=-1) for boxes in (one, others)]
    return np.asarray(shared / (areas[0] + areas[1] - shared))


def _span(sightings: _Sightings, first: int, end: int, every: int) -> range:
    """Frames of a track: to the ends of the shot where the detector did not look between them and the face."""
    start, stop = sightings.frames[0], sightings.frames[-1] + 1
    return range(first if start - first < every else start, end if end - stop < every else stop)


def _smooth(sightings: _Sightings, span: range, sigma: float) -> Track:
    """``sigma``: frames over which bends are rounded."""
    at, seen = np.array(sightings.frames, dtype=np.float64), np.array(sightings.boxes)
    sizes = np.sqrt((seen[:, 2:] - seen[:, :2]).prod(axis=1))
    centres, slack = (seen[:, :2] + seen[:, 2:]) / 2, sizes * _CENTRE_SLACK
    paths = [taut_path(at, centre - slack, centre + slack) for centre in centres.T]
    paths.append(taut_path(at, np.log(sizes) - _SIZE_SLACK, np.log(sizes) + _SIZE_SLACK))
    x, y, size = (round_bends(np.interp(span, at, path), sigma) for path in paths)
    half = np.exp(size) / 2
    boxes = np.stack([x - half, y - half, x + half, y + half], axis=1)
    return Track(span.start, boxes, np.interp(span, at, sightings.scores))
