"""Videos of a real face whose place in each frame is known: pictures that are moved, scaled and turned.

`pictures/astronaut.jpg` is a part of NASA's portrait of Eileen Collins (S93-31103, public domain), as scikit-image
distributes it whole.
"""

from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
from PIL import Image

RATE = 25


def astronaut():
    """uint8 (288, 288, 3)"""
    return np.asarray(Image.open(Path(__file__).with_name("pictures") / "astronaut.jpg"))


def background(width, height):
    """Blurred noise of all colours: nothing in it is a face."""
    small = np.random.default_rng(0).integers(0, 256, (height // 40, width // 40, 3), dtype=np.uint8)
    return cv2.resize(small, (width, height), interpolation=cv2.INTER_CUBIC)


def placed(middle, scale, degrees, size=288):
    """The affine map (2, 3) that turns and scales a picture of ``size`` and brings its middle to ``middle``."""
    turn = cv2.getRotationMatrix2D((size / 2, size / 2), degrees, scale)
    turn[:, 2] += np.asarray(middle) - size / 2
    return turn


def wander(seconds, width=1280, height=720):
    """Maps (2, 3) for a walk over most of the frame: up to two widths of the face a second, and turns of ± 20°."""
    t = np.arange(round(seconds * RATE)) / RATE
    x = width / 2 + 0.30 * width * np.sin(2 * np.pi * 0.17 * t)
    y = height / 2 + 0.20 * height * np.sin(2 * np.pi * 0.29 * t + 1)
    scale = 1.3 + 0.4 * np.sin(2 * np.pi * 0.13 * t + 2)
    degrees = 20 * np.sin(2 * np.pi * 0.23 * t)
    return [placed(*how) for how in zip(zip(x, y, strict=True), scale, degrees, strict=True)]


def draw(maps, picture=None, *, size=(1280, 720), noise=0.0):
    """Frames uint8 (H, W, 3) with the picture at each of ``maps``, and a camera's noise of that standard deviation."""
    picture = astronaut() if picture is None else picture
    behind, grain = background(*size), np.zeros((size[1], size[0], 3), np.float32)
    cv2.setRNGSeed(1)
    for where in maps:
        frame = behind.copy()
        cv2.warpAffine(picture, where, size, dst=frame, borderMode=cv2.BORDER_TRANSPARENT)
        if noise:
            frame = np.clip(frame + cv2.randn(grain, 0, noise), 0, 255).astype(np.uint8)
        yield frame


def write(path, frames, *, rate=RATE, stamps=None, options=None, prepare=lambda stream: None):
    """``stamps``: times of the frames in milliseconds. ``prepare`` changes the stream."""
    if stamps is None:
        times, unit = range(10**9), Fraction(1, rate)
    else:
        times, unit = stamps, Fraction(1, 1000)
    with av.open(str(path), "w") as out:
        stream = out.add_stream("libx264", rate=rate, options={"preset": "ultrafast", "crf": "23"} | (options or {}))
        stream.codec_context.time_base = unit
        for time, picture in zip(times, frames, strict=False):
            if time == times[0]:
                stream.height, stream.width = picture.shape[:2]
                stream.pix_fmt = "yuv420p"
                prepare(stream)
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = time, unit
            out.mux(stream.encode(frame))
        out.mux(stream.encode())
    return path


def known_boxes(detector, maps):
    """Where the face is: the square of the box that the detector gives on the still, upright picture, which stands at
    twice its size in the middle of a frame, moved and scaled as the picture is; float64 (n, 4)."""
    upright = placed((640, 360), 2.0, 0)
    boxes, scores = detector.detect(next(draw([upright])))
    assert len(boxes) == 1 and scores[0] > 0.9
    left, top, right, bottom = boxes[0]
    back = cv2.invertAffineTransform(upright)
    middle = back @ ((left + right) / 2, (top + bottom) / 2, 1)
    side = np.sqrt((right - left) * (bottom - top)) / 2
    squares = []
    for where in maps:
        centre, scale = where @ (*middle, 1), np.sqrt(abs(np.linalg.det(where[:, :2])))
        squares.append([*(centre - side * scale / 2), *(centre + side * scale / 2)])
    return np.array(squares)


def overlap(some, others):
    """Intersection over union, box by box."""
    shared = (np.minimum(some[:, 2:], others[:, 2:]) - np.maximum(some[:, :2], others[:, :2])).clip(min=0).prod(axis=1)
    areas = [(boxes[:, 2:] - boxes[:, :2]).prod(axis=1) for boxes in (some, others)]
    return shared / (areas[0] + areas[1] - shared)
