"""Images, alone or in a folder, as the frames of a video without times."""

from __future__ import annotations

import contextlib
import functools
import os
import re
import warnings
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from mae_dfer.data.video import Frames, Video, VideoError, VideoWarning
from mae_dfer.files import describe_impostor

_HEIF = (".heic", ".heif")
IMAGE_SUFFIXES = (
    ".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".pgm", ".ppm", ".pbm", ".pnm", *_HEIF
)  # fmt: skip


_DAMAGE = (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError)
_ORIENTATION = 0x0112  # in Exif; from 5 on, rows are shown as columns


class ImageFrames(Video):
    """Images as the frames of a video: one of each file, or all pages of a single file."""

    def __init__(self, path: str, files: list[str]) -> None:
        self.path = path
        self._files = files
        self._pages = self._count_pages() if len(files) == 1 else 1
        self.num_frames = len(files) * self._pages

    def _count_pages(self) -> int:
        """Of a TIFF stack or an animation. A second picture in a JPEG is something else, such as a map of depths."""
        with contextlib.suppress(*_DAMAGE), Image.open(self._files[0]) as image:
            return getattr(image, "n_frames", 1) if image.format in ("TIFF", "WEBP", "PNG") else 1
        return 1  # what is wrong is said when it is read

    def _decode(self, indices: list[int], size: tuple[int, int] | None) -> list[Frames]:
        frames = [self._load(*divmod(i, self._pages)) for i in indices]
        first = frames[0].shape[:2] if indices[0] == 0 else self._first_size or frames[0].shape[:2]
        if all(frame.shape[:2] == first for frame in frames):
            return frames
        self.sizes_differ = True
        warnings.warn(
            f"{self.path}: frames differ in size; all are resized to one", VideoWarning, stacklevel=2
        )
        height, width = size or first
        return [
            np.asarray(Image.fromarray(frame).resize((width, height), Image.Resampling.BILINEAR))
            for frame in frames
        ]

    @functools.cached_property
    def _first_size(self) -> tuple[int, int] | None:
        """(height, width) of the first frame, from its header where that tells; None where it cannot be read."""
        with contextlib.suppress(*_DAMAGE), Image.open(self._files[0]) as image:
            is_turned = image.getexif().get(_ORIENTATION, 1) > 4
            return image.size if is_turned else image.size[::-1]
        return None

    def _load(self, file: int, page: int) -> Frames:
        path = self._files[file]
        if Path(path).suffix.lower() in _HEIF:
            _register_heif(self.path)
        try:
            with Image.open(path) as image:
                image.seek(page)
                return _to_rgb(ImageOps.exif_transpose(image), image.format)
        except _DAMAGE as error:
            what = _impostor(path)
            reason = f"it is {what}" if what else " ".join((getattr(error, "strerror", None) or str(error)).split())
            raise VideoError(self.path, f"cannot read image {path} ({reason[:200]})") from None


def _impostor(file: str) -> str | None:
    try:
        return describe_impostor(file)
    except OSError:  # what is wrong is known already
        return None


def _to_rgb(image: Image.Image, file_format: str | None) -> Frames:
    """uint8 (H, W, 3). 16-bit grey keeps its upper byte; transparency is dropped, as FFmpeg does.

    Whole numbers of 32 bits, of which no standard says what is white, are taken for 8 bits if none is larger.
    """
    if image.mode.startswith("I"):
        grey = np.asarray(image, dtype=np.int64)
        if image.mode == "I" and file_format == "TIFF" and 0 <= grey.min() and grey.max() <= 0xFF:
            grey <<= 8
        if grey.min() < 0 or grey.max() > 0xFFFF:
            raise ValueError(f"its values go from {grey.min()} to {grey.max()}; save it with 8 or 16 bits a pixel")
        return np.repeat((grey >> 8).astype(np.uint8)[..., None], 3, axis=-1)
    if image.mode == "F":
        raise ValueError("its pixels are floating-point numbers; save it with 8 or 16 bits a pixel")
    if image.mode in ("P", "PA"):
        image = image.convert("RGBA")
    return np.asarray(image.convert("RGB"))


@functools.cache
def _register_heif(path: str) -> None:
    try:
        import pillow_heif
    except ImportError:
        raise VideoError(path, "HEIC images need one more package: pip install pillow-heif") from None
    pillow_heif.register_heif_opener()


def list_frames(folder: str) -> list[str]:
    """The images of a folder in natural order of their names. Raises VideoError where there are none."""
    with os.scandir(folder) as entries:
        names = [entry.name for entry in entries if is_frame(entry.name) and not entry.is_dir()]
    if not names:
        raise VideoError(folder, f"the folder holds no frames ({', '.join(IMAGE_SUFFIXES)})")
    return [os.path.join(folder, name) for name in sorted(names, key=_natural)]


def is_frame(name: str) -> bool:
    """Whether a file of that name is an image that counts: hidden ones do not."""
    return name.lower().endswith(IMAGE_SUFFIXES) and not name.startswith(".")


def _natural(name: str) -> list[tuple[int, str]]:
    """Sort key that puts frame_2 before frame_10."""
    parts = re.split(r"([0-9]+)", name)  # every second one is a number
    return [(int(part), "") if index % 2 else (-1, part) for index, part in enumerate(parts)]
