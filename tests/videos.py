"""Small video files for tests, and the frames that FFmpeg's own tool decodes of them."""

import shutil
import subprocess
from fractions import Fraction

import av
import numpy as np

TOOL = shutil.which("ffmpeg")


def moving_picture(i, width, height):
    """A gradient with a bright bar that moves 3 pixels a frame: no two frames are alike, nor two of their rows."""
    rows, columns = np.mgrid[:height, :width]
    picture = np.stack([rows * 200 // height, columns * 200 // width, np.full_like(rows, 5 * i % 200)], axis=-1)
    picture[:, (columns[0] - 3 * i) % width < 6] = 255
    return picture.astype(np.uint8)


def write_moving(
    path, *, frames=60, size=(96, 64), codec="libx264", rate=25, gop=12, b_frames=2, stamps=None, pix_fmt="yuv420p",
    aspect=None, container_options=None, options=None, format=None, start=0,
):  # fmt: skip
    """A video of :func:`moving_picture`; ``stamps`` are presentation times in units of 1/1000 s."""
    with av.open(str(path), "w", format=format, options=container_options or {}) as out:
        stream = out.add_stream(codec, rate=rate, options=options or {})
        stream.width, stream.height, stream.pix_fmt = *size, pix_fmt
        stream.gop_size, stream.max_b_frames, stream.bit_rate = gop, b_frames, 800_000
        if aspect is not None:
            stream.sample_aspect_ratio = Fraction(aspect)
        if stamps is not None:
            stream.codec_context.time_base = Fraction(1, 1000)
        for i in range(frames):
            frame = av.VideoFrame.from_ndarray(moving_picture(i, *size), format="rgb24")
            if stamps is not None:
                frame.pts, frame.time_base = stamps[i], Fraction(1, 1000)
            else:
                frame.pts, frame.time_base = i + start, Fraction(1, rate)
            out.mux(stream.encode(frame))
        out.mux(stream.encode())
    return path


def cut_without_encoding(source, path, first, last=None):
    """What `ffmpeg -ss … -t … -c copy` and a phone's trimming do: the packets from the key frame before frame
    ``first``, with times so shifted that an edit list hides the frames before it."""
    with av.open(str(source)) as given, av.open(str(path), "w") as out:
        stream = given.streams.video[0]
        packets = [packet for packet in given.demux(stream) if packet.size]
        shown = sorted(packet.pts for packet in packets)
        start = shown[first]
        end = shown[last] if last is not None else shown[-1] + 1
        key = max(packet.dts for packet in packets if packet.is_keyframe and packet.pts <= start)
        copy = out.add_stream_from_template(stream)
        for packet in packets:
            if packet.dts < key or packet.dts >= end:
                continue
            packet.pts, packet.dts, packet.stream = packet.pts - start, packet.dts - start, copy
            out.mux(packet)
    return path


def decode_in_order(path):
    """All frames as the `ffmpeg` tool decodes them, uint8 (n, H, W, 3); by PyAV from the first packet to the last where
    it is not installed."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(stream)]
    if TOOL is None:
        return np.stack(frames)
    command = [TOOL, "-v", "error", "-i", str(path), "-map", "0:v:0", "-f", "rawvideo", "-pix_fmt", "rgb24",
               "-fps_mode", "passthrough", "-"]  # fmt: skip
    done = subprocess.run(command, capture_output=True, check=True)
    return np.frombuffer(done.stdout, np.uint8).reshape(-1, *frames[0].shape)
