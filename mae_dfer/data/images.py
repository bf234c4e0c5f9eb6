"""Images, alone or in a folder, as the frames of a video without times."""

from __future__ import annotations

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


class ImageFrames(Video):
    """Images as the frames of a video; their names come in the order of ``files``."""

    def __init__(self, path: str, files: list[str]) -> None:
        self.path = path
        self._files = files
        self.num_frames = len(files)

    def _decode(self, indices: list[int], size: tuple[int, int] | None) -> list[Frames]:
        frames = [self._load(self._files[i]) for i in indices]
        if all(frame.shape[:2] == self._first_size for frame in frames):
            return frames
        warnings.warn(
            f"{self.path}: frames differ in size; all are resized to one", VideoWarning, stacklevel=2
        )
        height, width = size or self._first_size
        return [
            np.asarray(Image.fromarray(frame).resize((width, height), Image.Resampling.BILINEAR))
            for frame in frames
        ]

    @functools.cached_property
    def _first_size(self) -> tuple[int, int]:
        height, width, _ = self._load(self._files[0]).shape
        return height, width

    def _load(self, file: str) -> Frames:
        if Path(file).suffix.lower() in _HEIF:
            _register_heif(self.path)
        try:
            with Image.open(file) as image:
                return _to_rgb(ImageOps.exif_transpose(image))
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            what = _impostor(file)
            reason = f"it is {what}" if what else " ".join((getattr(error, "strerror", None) or str(error)).split())
            raise VideoError(self.path, f"cannot read image {file} ({reason[:200]})") from None


def _impostor(file: str) -> str | None:
    try:
        return describe_impostor(file)
    except OSError:  # what is wrong is known already
        return None


def _to_rgb(image: Image.Image) -> Frames:
    """uint8 (H, W, 3). 16-bit grey keeps its upper byte; transparency is dropped, as FFmpeg does."""
    if image.mode.startswith("I"):
        grey = np.asarray(image, dtype=np.int64)
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
    names = [name for name in os.listdir(folder) if is_frame(name)]
    if not names:
        raise VideoError(folder, f"the folder holds no frames ({', '.join(IMAGE_SUFFIXES)})")
    return [os.path.join(folder, name) for name in sorted(names, key=_natural)]


def is_frame(name: str) -> bool:
    """Whether a file of that name is an image that counts: hidden ones do not."""
    return name.lower().endswith(IMAGE_SUFFIXES) and not name.startswith(".")


def _natural(name: str) -> list[tuple[int, str]]:
    """Sort key that puts frame_2 before frame_10."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"([0-9]+)", name)]
