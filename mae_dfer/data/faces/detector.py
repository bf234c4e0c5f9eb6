"""Finds the faces of one picture, with libfacedetection's network (YuNet) run by OpenCV.

The network lies beside this file (BSD-3-Clause, `libfacedetection.LICENSE`): 55 thousand weights. It finds faces from
20 to 600 pixels high in the reduced picture it is given. `benchmarks/faces_bench.py` compares detectors;
`tests/face_model.py` tells how the file was made.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from mae_dfer.data.video import Frames
from mae_dfer.errors import UserError
from mae_dfer.files import describe_impostor

MODEL = Path(__file__).with_name("libfacedetection.onnx")
# Of 18 pictures and 18 frames with and without faces, real faces score 0.80 and more, other things 0.39 and less.
SURE, POSSIBLE = 0.7, 0.5
_OVERLAP = 0.3  # as intersection over union: boxes above it are of one face


class Faces(NamedTuple):
    """Faces of one frame, the largest first.

    boxes: float64 (n, 4), left, top, right, bottom in pixels of the frame, from the forehead to the chin.
    scores: float64 (n,), from 0.5 to 1; from 0.7 on it is certainly a face.
    """

    boxes: NDArray[np.float64]
    scores: NDArray[np.float64]


class FaceDetector:
    """Finds faces in pictures that are reduced to ``longest_side`` pixels first; used by one thread at a time.

    With the default, faces are found from 40 pixels of height in 1280 × 720 and from 60 in 1920 × 1080.

    Args:
        model: a YuNet network in ONNX; by default that of libfacedetection, which comes with this package.

    Raises:
        UserError: ``model`` does not exist, or is no YuNet network.
    """

    def __init__(self, model: str | os.PathLike[str] | None = None, *, longest_side: int = 640) -> None:
        if longest_side < 32:
            raise UserError(f"the longest side of pictures to find faces in is {longest_side}; at least 32 is needed")
        self._longest_side = longest_side
        self._size = (0, 0)
        self._network = _load(Path(MODEL if model is None else model))

    def detect(self, frame: Frames) -> Faces:
        """Faces of uint8 (H, W, 3), RGB. Those that score less than 0.5 are left out."""
        height, width = frame.shape[:2]
        factor = min(1.0, self._longest_side / max(height, width))
        size = max(round(width * factor), 1), max(round(height * factor), 1)
        picture: Any = np.ascontiguousarray(frame)
        if size != (width, height):
            picture = cv2.resize(picture, size, interpolation=cv2.INTER_AREA)
        if size != self._size:
            self._network.setInputSize(size)
            self._size = size
        _, found = self._network.detect(cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))
        faces = np.zeros((0, 15)) if found is None else np.asarray(found, dtype=np.float64)
        faces = faces[np.argsort(-faces[:, 2] * faces[:, 3], kind="stable")]
        corners = np.hstack([faces[:, :2], faces[:, :2] + faces[:, 2:4]])
        return Faces(corners * np.tile(np.divide((width, height), size), 2), faces[:, 14])


def largest_face_share(frame: Frames, detector: FaceDetector) -> float | None:
    """How much of the frame's area its largest face fills, from 0 to 1; None where no face is found.

    About 0.45 in a clip that :func:`~mae_dfer.data.faces.crop` cut with its default margin.
    """
    boxes, scores = detector.detect(frame)
    boxes = boxes[scores >= SURE]
    if len(boxes) == 0:
        return None
    height, width = frame.shape[:2]
    left, top, right, bottom = boxes.T
    inside = (right.clip(max=width) - left.clip(min=0)) * (bottom.clip(max=height) - top.clip(min=0))
    return float(inside.max()) / (width * height)


def _load(model: Path) -> cv2.FaceDetectorYN:
    try:
        if (impostor := describe_impostor(model)) is not None:
            raise UserError(f"{model}: it is {impostor}")
        weights = np.fromfile(model, np.uint8)
    except OSError as error:
        raise UserError(f"{model}: the face detector cannot be read ({error.strerror})") from None
    try:
        with _silence():
            # Read from memory: OpenCV does not open all names of files on Windows.
            network = cv2.FaceDetectorYN.create(
                "onnx", weights, np.zeros(0, np.uint8), (64, 64), POSSIBLE, _OVERLAP
            )
            network.detect(np.zeros((64, 64, 3), np.uint8))
    except (cv2.error, SystemError):
        raise UserError(
            f"{model}: it is no YuNet face detector that OpenCV {cv2.__version__} can run; "
            "give a file like face_detection_yunet_2023mar.onnx of the OpenCV Zoo"
        ) from None
    return network


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """OpenCV's own messages, which it writes on standard error, are dropped."""
    logging: Any = cv2 if hasattr(cv2, "setLogLevel") else cv2.utils.logging  # the latter from OpenCV 5 on
    level = logging.getLogLevel()
    logging.setLogLevel(0)
    try:
        yield
    finally:
        logging.setLogLevel(level)
