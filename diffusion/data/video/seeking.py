"""From which packet to decode so that a frame with a certain number comes, and no other."""

from collections.abc import Iterator, Sequence
from itertools import chain, islice
from typing import Any

from av.container import InputContainer
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from diffusion.data.video.packets import MAX_REORDER, SEEKABLE
from diffusion.data.video.video_file import VideoFile


class Seeking:
    """Reads frames of an opened file by their numbers: with one seek if that is surely exact."""

    def __init__(self, file: VideoFile, container: InputContainer, stream: VideoStream):
        self.file, self.container, self.stream = file, container, stream

    def frames(self, start: int, stride: int, count: int | None) -> Iterator[VideoFrame]:
        """Frames `start`, `start + stride`, ...: once, from a file at its beginning.

        count: how many are wanted, None for all.
        """
        if self.file.is_indexed and self.file.is_numbered:
            frames = self._by_index(start, stride, count)
            if frames is not None:
                return frames
        elif start and self.file.is_numbered:
            frames = self._by_scan(start)
            if frames is not None:
                return islice(frames, 0, None, stride)
        return islice(self._decode(), start, None, stride)

    def _decode(self, *rest: Any) -> Iterator[VideoFrame]:
        return self.file.decode(self.container, self.stream, *rest)

    def _by_index(self, start: int, stride: int, count: int | None) -> Iterator[VideoFrame] | None:
        """As `frames`; None, at the file's beginning, where a seek would not be exact.

        The index of an mp4 has its packets in the order of decoding. All frames before a keyframe
        are shown before it; so are its leading packets, which follow it in the file and need
        frames before it. Its number is thus its place in the index, plus those.
        """
        entries = self.stream.index_entries
        keys = [i for i, entry in enumerate(entries) if entry.is_keyframe]
        ends = [entries[key].timestamp for key in keys[1:]] + [2**62]
        span = (min(count or 1, len(entries)) - 1) * stride + 1
        for place, end in reversed(list(zip(keys, ends, strict=True))):
            if place > start:
                continue
            # By its timestamp the demuxer would go to the keyframe before: it takes that for the
            # time of display, which is later.
            self.file.seek(end - 1, self.container, self.stream)
            ahead, packets = self.file.look_ahead(self.container, self.stream, start - place + span)
            skipped = start - place - ahead.leading
            if not ahead.begins_at(entries[place].timestamp) or skipped < 0:
                continue
            wanted = ahead.shown[skipped : skipped + span : stride]
            if not wanted:
                break
            frames = drop_until(wanted[0], self._decode(packets, wanted))
            if frames is not None:
                return self._pick(frames, wanted, stride)
        self.file.rewind(self.container, self.stream)
        return None

    def _pick(
        self, frames: Iterator[VideoFrame], wanted: Sequence[int], stride: int
    ) -> Iterator[VideoFrame]:
        """The frames of the times `wanted`, and then every `stride`th."""
        for pts in wanted:
            frame = next((f for f in frames if f.pts is None or f.pts >= pts), None)
            if frame is None:
                return
            if frame.pts != pts:
                raise self.file.error("is damaged: a frame within it cannot be decoded")
            yield frame
        yield from islice(frames, stride - 1, None, stride)

    def _by_scan(self, start: int) -> Iterator[VideoFrame] | None:
        """Frames from `start` on, in files whose packets must be read to be numbered."""
        point = self._seek_point(start)
        if point is None:
            return None
        key_pts, pts = point
        self.file.seek(key_pts, self.container, self.stream)
        frames = drop_until(pts, self._decode())
        if frames is None:
            self.file.rewind(self.container, self.stream)
        return frames

    def _seek_point(self, start: int) -> tuple[int, int] | None:
        """(time of the nearest keyframe before, time of frame `start`), from packet headers.

        None where frames cannot be numbered by their packets, or where there is nothing to skip.
        """
        times, keys = [], []
        with self.file.open() as (container, stream):
            if not container.format.name.startswith(SEEKABLE):
                return None
            for packet in container.demux(stream):
                if packet.size == 0 or packet.is_discard:
                    continue
                if packet.pts is None or packet.dts is None:
                    return None
                times.append(packet.pts)
                if packet.is_keyframe:
                    keys.append(packet.pts)
                if len(times) > start + MAX_REORDER:
                    break
        if len(times) <= start or len(set(times)) < len(times):
            return None
        # A first packet that is no keyframe, or is shown after others, loses frames in decoding.
        if not keys or keys[0] != times[0] or times[0] != min(times):
            return None
        pts = sorted(times)[start]
        key_pts = max(key for key in keys if key <= pts)
        return None if key_pts == times[0] else (key_pts, pts)


def drop_until(pts: int, frames: Iterator[VideoFrame]) -> Iterator[VideoFrame] | None:
    """The frames from the one of that time on; None if there is none."""
    for frame in frames:
        if frame.pts == pts:
            return chain([frame], frames)
        if frame.pts is None or frame.pts > pts:
            return None
    return None
