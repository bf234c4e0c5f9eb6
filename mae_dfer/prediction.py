"""A trained classifier with all that it takes to use it: :func:`load`, and predictions over time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .checkpoint import is_own
from .config import preset
from .data import Video, open_video
from .data.sampling import window_indices, window_starts
from .data.sets import STRIDES, find_classes, find_set
from .data.transforms import TestTransform, to_channels_first
from .errors import UserError
from .files import printable
from .models import VideoClassifier, VideoModel
from .models.config import unknown
from .notes import print_note
from .settings_check import check_settings
from .training.checkpoints import find_weights
from .training.hardware import find_device
from .training.weights import load_classifier

# Settings that the tensors of a published checkpoint do not tell.
UNTOLD = ("preset", "model", "img_size", "num_frames", "region_size", "num_heads", "pool")


@dataclass(frozen=True)
class Window:
    """One prediction: ``probabilities`` (classes,) for the frames from ``start`` to before ``end``.

    ``seconds``: when the first of them is first shown, and when the last no longer is; None where that is not known.
    """

    path: Path
    start: int
    end: int
    seconds: tuple[float, float] | None
    probabilities: np.ndarray


@dataclass(frozen=True, eq=False)
class Predictor:
    """What :func:`load` returns.

    Attributes:
        model: the classifier, in evaluation mode.
        classes: the names of its outputs, in order.
        stride: every how many frames of a video the model takes one.
        square_pixels: as in :func:`mae_dfer.data.open_video`.
        checkpoint: the file that the weights are from.
    """

    model: VideoClassifier
    classes: list[str]
    stride: int
    square_pixels: bool
    checkpoint: Path

    def preprocess(self, frames: NDArray[np.uint8]) -> Tensor:
        """What the model takes of the frames of one clip: resized, ImageNet-normalised, on the model's device.

        Args:
            frames: uint8 (T, H, W, 3), RGB, cropped to the face, ``stride`` apart; T is ``model.config.num_frames``.

        Returns:
            float32 (1, 3, T, height, width) of ``model.config.img_size``.

        Raises:
            UserError: frames of another type or shape.
        """
        if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[3] != 3:
            raise UserError(
                f"preprocess takes the frames of one clip as uint8 (frames, rows, columns, 3), "
                f"got {frames.dtype} {frames.shape}"
            )
        return _preprocess([frames], self.model)

    def predict(
        self, path: str | Path, *, window_step: int | None = None, batch_size: int = 8
    ) -> list[Window]:
        """Class probabilities over time for a video file, a folder of frames or an image; see :func:`predict_clip`."""
        return predict_clip(
            Path(path),
            self.model,
            self.stride,
            window_step=window_step,
            batch_size=batch_size,
            square_pixels=self.square_pixels,
            source=str(self.checkpoint),
        )


def load(
    path: str | Path,
    *,
    device: str | torch.device | None = None,
    classes: str | Sequence[str] | None = None,
    stride: int | None = None,
    weights: str = "auto",
    protocol: str | None = None,
    say: Callable[[str], Any] = print_note,
    **sizes: Any,
) -> Predictor:
    """Loads a trained classifier with its classes and its preprocessing.

    >>> predictor = mae_dfer.load("runs/base", device="cuda")
    >>> predictor.predict("video.mp4")[0].probabilities                 # (classes,), in the order of predictor.classes
    >>> logits = predictor.model(predictor.preprocess(frames))          # uint8 (T, H, W, 3) → (1, classes)

    Args:
        path: a run folder of ``mae_dfer.train``, one of its fine-tuning checkpoints, or a published ``.pth``.
        device: where the model is to be, ``auto`` for a GPU where there is one; None: torch's default device.
        classes: of a published checkpoint, which does not hold them: the name of a data set (``"dfew"``), a file with
            one name per line, or the names in the order of the outputs. A checkpoint of ours must have the same.
        stride: in place of the checkpoint's own, or of the data set's.
        weights: of a published checkpoint: ``model``, ``ema`` or ``auto``; see :func:`mae_dfer.load_official`.
        protocol: ``published`` takes pixels for square, ``corrected`` shows frames as wide as they are; in place of the
            checkpoint's own. A published checkpoint holds none, and is taken for ``corrected``.
        say: is called with one line for each thing that was assumed; default: print on stderr.
        sizes: what a published checkpoint does not tell and the paper's values are not right for: ``img_size``,
            ``num_frames``, ``region_size``, ``num_heads``, ``pool``; ``preset`` or ``model``.

    Raises:
        UserError: no such file or device, no classifier, one of other classes or sizes, or a value that is none.
    """
    for name in sizes:
        if name not in UNTOLD:
            raise UserError(unknown("option of load", name, UNTOLD))
    named = classes if isinstance(classes, str) else ""
    names = find_classes(named) if named else None if classes is None else list(classes)
    config = preset(sizes.get("preset", "base"))
    config.stride = STRIDES.get(find_set(named) or "", config.stride) if stride is None else stride
    for name, value in (sizes | {"weights": weights, "protocol": protocol or config.protocol}).items():
        setattr(config, name, value)
    check_settings(config, lambda group, name: name)
    if names is not None and (len(set(names)) < len(names) or not all(isinstance(name, str) for name in names)):
        raise UserError(f"classes are names that differ, not {printable(str(names))}")
    place = None if device is None else find_device(str(device))
    weights_path = find_weights(path, stages=("finetune",))
    if sizes and is_own(weights_path):
        raise UserError(f"{weights_path} says its own sizes; leave out --{next(iter(sizes)).replace('_', '-')}")
    model, metadata = load_classifier(
        weights_path, config=config, classes=names, classes_from=named or "classes", weights=weights, say=say
    )
    if metadata.get("data") == "demo":
        say("this model learnt drawn faces (the demo set); what it says of real people means nothing")
    return Predictor(
        model if place is None else model.to(place),
        metadata["classes"],
        metadata["stride"] if stride is None else stride,
        (protocol or metadata.get("protocol")) == "published",
        weights_path,
    )


@torch.no_grad()
def predict_clip(
    path: Path,
    model: VideoModel,
    stride: int,
    *,
    window_step: int | None = None,
    batch_size: int = 8,
    square_pixels: bool = False,
    source: str = "the model",
) -> list[Window]:
    """Slides the model's window over one clip. The last frame is repeated where the clip is shorter.

    Args:
        window_step: frames of the video from one window to the next; None: half a window.
        batch_size: windows that are computed at a time.
        square_pixels: as in :func:`mae_dfer.data.open_video`.
        source: where the model is from, for messages.

    Raises:
        VideoError: the clip cannot be read.
        UserError: outputs of the model that are not finite; numbers below 1.
    """
    for name, value in (("window_step", window_step), ("batch_size", batch_size)):
        if value is not None and (not isinstance(value, int) or value < 1):
            raise UserError(f"{name} is a whole number from 1 on, not {value!r}")
    length, windows = model.config.num_frames, []
    with open_video(path, square_pixels=square_pixels) as video:
        starts = window_starts(video.num_frames, length, stride, window_step or max(length * stride // 2, 1))
        for first in range(0, len(starts), batch_size):
            part = starts[first : first + batch_size]
            frames = [video.get(window_indices(video.num_frames, start, length, stride)) for start in part]
            logits = model(_preprocess(frames, model)).float()
            if not logits.isfinite().all():
                raise UserError(
                    f"{path}: the outputs of {source} are not finite, so its weights are of no use; "
                    "take an earlier checkpoint, or train again with a lower --lr"
                )
            for start, row in zip(part, logits.softmax(-1).cpu().numpy(), strict=True):
                end = min(start + length * stride, video.num_frames)
                windows.append(Window(path, start, end, _seconds(video, start, end), row))
    return windows


def _preprocess(clips: Sequence[NDArray[np.uint8]], model: VideoModel) -> Tensor:
    transform = TestTransform(model.config.img_size)
    batch = torch.stack([transform(to_channels_first(frames)) for frames in clips])
    return batch.to(next(model.parameters()).device)


def _seconds(video: Video, start: int, end: int) -> tuple[float, float] | None:
    """When frame ``start`` is first shown, and when the one before ``end`` no longer is."""
    if video.times is None or video.end is None:
        return None
    return float(video.times[start]), float(video.times[end] if end < video.num_frames else video.end)
