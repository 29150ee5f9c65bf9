"""Numbering the frames of a file by its packets, without decoding them."""

from dataclasses import dataclass

from av.container import InputContainer
from av.packet import Packet
from av.video.stream import VideoStream

# Codecs whose packets each show one frame, so that frames can be numbered without decoding. Not so:
# VP8 (hidden packets), MPEG-4 part 2 (packed B-frames).
ONE_FRAME_PER_PACKET = {"h264", "hevc", "av1", "libdav1d", "vp9", "mjpeg", "prores", "ffv1", "png"}
SEEKABLE = ("mov", "matroska")  # have an index; MPEG-TS lands inside a group of pictures
MAX_REORDER = 32  # packets; the codecs above allow 16 frames, of two fields each


@dataclass(frozen=True)
class Ahead:
    """Packets from a keyframe on, and as many more as reordering can reach."""

    packets: "list[Packet[VideoStream]]"

    @property
    def leading(self) -> int:
        """How many follow the first one in the file but are shown before it."""
        return sum(time < self._first for time in self._times)

    @property
    def shown(self) -> list[int]:
        """The times of the first one and of those shown after it, in order."""
        return sorted(time for time in self._times if time >= self._first)

    @property
    def _first(self) -> int:
        return self.packets[0].pts or 0

    @property
    def _times(self) -> list[int]:
        return [packet.pts for packet in self.packets if packet.pts is not None]

    def begins_at(self, dts: int) -> bool:
        return bool(self.packets) and self.packets[0].dts == dts

    @property
    def is_clean(self) -> bool:
        """Whether nothing is lost when decoding begins here."""
        timed = bool(self.packets) and all(packet.pts is not None for packet in self.packets)
        return timed and self.packets[0].is_keyframe and self.leading == 0


def has_full_index(container: InputContainer, stream: VideoStream) -> bool:
    """Whether every packet stands in the file's index, and each one is shown."""
    if not container.format.name.startswith("mov") or len(stream.index_entries) != stream.frames:
        return False
    return not any(entry.is_discard for entry in stream.index_entries)
