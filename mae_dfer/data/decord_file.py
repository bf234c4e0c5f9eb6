"""Video files, decoded with decord where it is right."""

from __future__ import annotations

import functools

from av.packet import Packet

from mae_dfer.data.h264 import begins_anew
from mae_dfer.data.video import Frames
from mae_dfer.data.video_file import VideoFile, display_matrix
from mae_dfer.errors import UserError


class DecordFile(VideoFile):
    """A video file that decord decodes where it is right, which PyAV has to find out.

    Right it is in H.264 in mp4, of 8 bits, with closed GOPs, upright, of square pixels, and with no frame hidden.
    """

    _has_closed_gops = True

    def _can_start_at(self, packet: Packet) -> bool:
        self._has_closed_gops &= begins_anew(bytes(packet))
        return super()._can_start_at(packet)

    def _decode(self, indices: list[int], size: tuple[int, int] | None) -> list[Frames]:
        if self.reader == "decord":
            import decord

            try:
                return list(decord.VideoReader(self.path, num_threads=1).get_batch(indices).asnumpy())
            except (decord.DECORDError, RuntimeError):
                self.reader = "pyav"  # which says what is wrong with what it cannot decode either
        return super()._decode(indices, size)

    @functools.cached_property
    def reader(self) -> str:
        """``decord`` or ``pyav``: which library decodes this file."""
        try:
            import decord
        except ImportError:
            raise UserError("decord is not installed; pip install decord, or leave the decoder to PyAV") from None
        context = self._stream.codec_context
        known = self._timed and "mp4" in self._container.format.name.split(",") and context.name == "h264"
        if not known or not self._has_closed_gops or self._pixel_aspect != 1.0:
            return "pyav"
        first = next(self._frames_from_start(), None)
        if first is None or display_matrix(first) is not None or first.format.name not in ("yuv420p", "yuvj420p"):
            return "pyav"
        try:
            return "decord" if len(decord.VideoReader(self.path, num_threads=1)) == self.num_frames else "pyav"
        except (decord.DECORDError, RuntimeError):
            return "pyav"
