"""What making a clip costs: decoding a video of VoxCeleb2's kind and cutting, resizing and normalising 16 frames."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import av
import cv2
import numpy as np
import torch

from mae_dfer.data import ClipConfig, ClipDataset, Sample
from mae_dfer.data.demo.render import clips_of, write_clip
from mae_dfer.data.video import open_video

# VoxCeleb2: 224 × 224 pixels, 25 frames a second, 8 seconds on average. The recipe cuts its inner 160 × 160.
SIDE, RATE, FRAMES = 224, 25, 200
FACE_BOX = (0, 32, 160, 160)


def clips_per_second(seconds: float) -> float:
    """Pre-training clips that one core makes, from the file to the normalised tensor."""
    with tempfile.TemporaryDirectory() as folder:
        path = write_video(Path(folder))
        dataset = ClipDataset([Sample(str(path), -1)], ClipConfig(face_box=FACE_BOX), mode="pretrain")
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            dataset[(0, 0)]
            started, made = time.perf_counter(), 0
            while time.perf_counter() - started < seconds:
                made += 1
                if not isinstance(dataset[(made, 0)], dict):
                    raise RuntimeError("the benchmark's own video cannot be read")
            return made / (time.perf_counter() - started)
        finally:
            torch.set_num_threads(threads)


def write_video(folder: Path) -> Path:
    """A drawn face, moving, at VoxCeleb2's size, rate and length."""
    clip = clips_of("train", 1)[0]
    (folder / clip.file).parent.mkdir(parents=True, exist_ok=True)
    write_clip(clip, folder)
    with open_video(folder / clip.file) as video:
        small = video.get(range(video.num_frames))
    large = [cv2.resize(np.ascontiguousarray(frame), (SIDE, SIDE), interpolation=cv2.INTER_CUBIC) for frame in small]
    path = folder / "video.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=RATE)
        stream.width = stream.height = SIDE
        stream.pix_fmt = "yuv420p"
        # Forwards and backwards in turn, without a jump.
        turns = [*large, *reversed(large)]
        for index in range(FRAMES):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(turns[index % len(turns)], format="rgb24")))
        container.mux(stream.encode())
    return path
