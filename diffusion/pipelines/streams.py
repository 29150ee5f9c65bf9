"""Clips of any length in constant memory: frames go in and come out while others are not there.

A network that mixes frames runs on overlapping windows of them. A stretch of frames is finished as
soon as the last window that covers it has run, whatever follows, so that a sampler is a chain of
such streams, one per step: step s of a window waits only for step s - 1 of the windows that
overlap it. The result is that of blending whole clips at every step; what is held at a time is
about one stretch per step.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Generic, NamedTuple, TypeVar

import torch
from einops import rearrange
from torch import Tensor

from diffusion.noise.samplers import Trajectory
from diffusion.pipelines.blending import Spans, Units

Frames = tuple[Tensor, ...]
"""Tensors (B, C_i, f, H_i, W_i) of the same frames."""

S = TypeVar("S", bound="Segment")


@dataclass
class Segment:
    """Frames start..stop-1 of a clip: what lies between the starts of two windows."""

    start: int
    stop: int
    frames: Frames

    def inputs(self) -> Frames:
        """What the network sees of them."""
        return self.frames


@dataclass
class NoisySegment(Segment):
    """A segment on its way from noise to latents; `frames` are its condition."""

    trajectory: Trajectory

    def inputs(self) -> Frames:
        """x_t (B, C, f, h, w), and the condition."""
        x_t = self.trajectory.model_input()
        return rearrange(x_t, "(b f) c h w -> b c f h w", f=self.stop - self.start), *self.frames

    def step(self, prediction: Tensor) -> "NoisySegment":
        """prediction: (B, C, f, h, w)."""
        self.trajectory.step(rearrange(prediction, "b c f h w -> (b f) c h w"))
        return self

    def replace(self, x: Tensor) -> None:
        """x: (B, C, f, h, w), from which to go on."""
        self.trajectory.replace(rearrange(x, "b c f h w -> (b f) c h w"))

    @property
    def x(self) -> Tensor:
        """(B, C, f, h, w)."""
        return rearrange(self.trajectory.x, "(b f) c h w -> b c f h w", f=self.stop - self.start)


class WindowedStream(Generic[S]):
    """A network over a clip that comes in segments, in overlapping windows that are blended.

    net: takes a list of windows, each the inputs of one call, and gives a result (B, C', f, H', W')
        for each.
    spans: the windows, with their weights on the results' device; segments go in as
        `spans.segments` cuts them.
    group: windows that `net` is given at a time, where so many are ready.
    """

    def __init__(self, net: Callable[[Units], Iterable[Tensor]], spans: Spans, group: int = 1):
        self.net, self.spans, self.group = net, spans, group
        self.position = 0  # of the next window
        self.held: deque[S] = deque()  # from the next window's start on
        self.sums: deque[Tensor | None] = deque()  # the blended result of each, so far

    def push(self, segment: S) -> Iterator[tuple[S, Tensor]]:
        """Take one segment in; what is finished then, with the network's blended result."""
        self.held.append(segment)
        self.sums.append(None)
        while ready := self._ready():
            windows = [self._window(k) for k in ready]
            for k, result in zip(ready, self.net(windows), strict=True):
                self._add(k, result)
                self.position += 1
                done, total = self.held.popleft(), self.sums.popleft()
                assert total is not None  # a window begins with it
                yield done, total

    def _ready(self) -> range:
        """Windows of which all frames are there: `group` of them, or the last ones."""
        if not self.held:
            return range(0)
        available = self.held[-1].stop
        starts = self.spans.starts[self.position : self.position + self.group]
        count = sum(start + self.spans.window <= available for start in starts)
        is_enough = count == self.group or available == self.spans.length
        return range(self.position, self.position + count if is_enough else self.position)

    def _window(self, k: int) -> Frames:
        start = self.spans.starts[k]
        stop = start + self.spans.window
        parts = [s.inputs() for s in self.held if start <= s.start < stop]
        return tuple(
            torch.cat(x, dim=2)[:, :, : self.spans.window] for x in zip(*parts, strict=True)
        )

    def _add(self, k: int, result: Tensor) -> None:
        if len(self.spans.starts) == 1:  # nothing to blend
            self.sums[0] = result
            return
        start = self.spans.starts[k]
        weights = rearrange(self.spans.weights[k], "f -> f 1 1")
        weighted = (result * weights).float()
        for i, segment in enumerate(self.held):
            if segment.start >= start + self.spans.window:
                break
            part = weighted[:, :, segment.start - start : segment.stop - start]
            total = self.sums[i]
            if total is None:
                size = (*part.shape[:2], segment.stop - segment.start, *part.shape[3:])
                total = self.sums[i] = part.new_zeros(size)
            total[:, :, : part.shape[2]] += part


class SamplerStep(NamedTuple):
    """What an observer is told: `frames` have just taken a step of the sampler.

    index: of the step, from 0 to count - 1; after the last one x is what was sampled.
    frames: of the clip, of which each is in one of these per step.
    x: (B, C, f, h, w) of these frames, x_t after the step, on the device. Not to be changed; what
        the observer returns, if anything, takes its place.
    """

    index: int
    count: int
    frames: range
    x: Tensor


OnStep = Callable[[SamplerStep], Tensor | None]


def denoise_stream(
    segments: Iterable[NoisySegment],
    spans: Spans,
    predict: Callable[[Units, Tensor], Iterable[Tensor]],
    timesteps: Tensor,
    group: int = 1,
    on_step: OnStep = lambda step: None,
) -> Iterator[NoisySegment]:
    """Segments of noise -> segments of latents, each as soon as no window will change it.

    predict(windows, timestep): x_t and condition of each window -> a prediction for each.
    """
    streams = [
        WindowedStream[NoisySegment](lambda windows, t=t: predict(windows, t), spans, group)
        for t in timesteps
    ]
    for segment in segments:
        ready = [segment]
        for index, stream in enumerate(streams):
            stepped = []
            for noisy in ready:
                for done, prediction in stream.push(noisy):
                    stepped.append(done.step(prediction))
                    frames = range(done.start, done.stop)
                    changed = on_step(SamplerStep(index, len(streams), frames, done.x))
                    if changed is not None:
                        done.replace(changed)
            ready = stepped
        yield from ready


def recut(pieces: Iterable[Frames], lengths: Iterable[int]) -> Iterator[Frames]:
    """The same frames, in pieces of `lengths` frames; there may be more frames than those."""
    pieces, held = iter(pieces), None
    for length in lengths:
        while held is None or held[0].shape[2] < length:
            piece = next(pieces, None)
            if piece is None:
                raise ValueError("the stream ended before its last frame")
            parts = [piece] if held is None else [held, piece]
            held = tuple(torch.cat(x, dim=2) for x in zip(*parts, strict=True))
        yield tuple(x[:, :, :length] for x in held)
        held = tuple(x[:, :, length:] for x in held)
