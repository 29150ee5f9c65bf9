"""Semantic latents -> VAE latents: the refiner's sampler, over windows of a clip."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Tensor

from diffusion.noise.gaussian import GaussianDiffusion
from diffusion.noise.samplers import Scheduler, Trajectory, draw_noise, frame_generators
from diffusion.noise.sampling import OwnScheduler, Sampling
from diffusion.pipelines.blending import Spans, Units
from diffusion.pipelines.conditioning import Conditioning
from diffusion.pipelines.cut_options import Windows
from diffusion.pipelines.streams import (
    Frames,
    NoisySegment,
    OnStep,
    SamplerStep,
    denoise_stream,
    recut,
)
from diffusion.pipelines.tiled import TiledNetworks
from diffusion.utils.progress import track

Piece = tuple[Tensor, Tensor | None]
"""Semantic latents (B, C, f, h, w), and their preview (B, 3, f, H, W) if it is at hand."""


@dataclass(frozen=True)
class Run:
    """How one clip is restored.

    noise: (B, 4, F, 4h, 4w) to start from, in place of a draw from `seed`.
    finished: the first results of a run that was broken off.
    first_video: the clip's number in its batch, if that is restored one by one.
    """

    sampling: Sampling | OwnScheduler
    seed: int = 0
    noise: Tensor | None = None
    finished: Sequence[Tensor] = ()
    on_step: OnStep | None = None
    first_video: int = 0


@dataclass(frozen=True)
class Restorer:
    """Shapes: semantic latents (B, C, F, h, w), VAE latents (B, 4, F, 4h, 4w)."""

    networks: TiledNetworks
    noise: GaussianDiffusion
    conditioning: Conditioning
    windows: Windows

    def stream(self, pieces: Iterable[Piece], num_frames: int, run: Run) -> Iterator[Tensor]:
        """See `Cascade.restore_stream`."""
        device, group = self.networks.device, self.networks.group
        scheduler = run.sampling.scheduler(self.noise)
        timesteps = self.networks.sent(torch.as_tensor(scheduler.timesteps))
        spans = self.windows.spans(num_frames).to(device)
        parts = recut(map(self._on_device, pieces), [b - a for a, b in spans.segments])
        # the last one is computed in any case, and with it all pieces are read
        kept = min(len(run.finished), len(spans.starts) - 1)
        first = spans.looked_back_on(kept, run.sampling.steps)
        for i in range(first):
            next(parts)
            yield self.networks.sent(run.finished[i])

        spans = spans.since(first)
        tell = telling(run.on_step, run.sampling.steps * len(spans.starts))

        def predict(windows: Units, t: Tensor) -> list[Tensor]:
            # a short clip becomes one whole window, the length that the refiner was trained on
            is_image = num_frames == 1
            length = 1 if is_image else self.windows.window
            return self.networks.predict(windows, t, length, image_mode=is_image)

        noisy = self._noisy_segments(parts, spans, scheduler, run)
        for i, done in enumerate(
            denoise_stream(noisy, spans, predict, timesteps, group, tell), first
        ):
            (condition,) = done.frames
            base = self.conditioning.base_of(condition)
            restored = self.conditioning.from_x0(done.x, base)
            yield self.networks.sent(run.finished[i]) if i < kept else restored

    def base(self, latents: Tensor, preview: Tensor | None = None) -> Tensor | None:
        """VAE latents of the preview, where the refiner builds on them."""
        if not self.conditioning.uses_base:
            return None
        preview = self.networks.preview(latents) if preview is None else preview
        return self.networks.encode_vae(preview)

    def _on_device(self, piece: Piece) -> Frames:
        """Latents, and the preview where the refiner builds on it."""
        latents, preview = piece
        latents = self.networks.sent(latents).float()
        if not self.conditioning.uses_base:
            return (latents,)
        preview = self.networks.preview(latents) if preview is None else preview
        return latents, self.networks.sent(preview)

    def _noisy_segments(
        self, parts: Iterator[Frames], spans: Spans, scheduler: Scheduler, run: Run
    ) -> Iterator[NoisySegment]:
        """Latents, and preview, of each segment -> noise with its condition."""
        for (start, stop), part in zip(spans.segments, parts, strict=True):
            latents, *preview = part
            condition = self.conditioning.join(latents, self.base(latents, *preview))
            batch, _, _, *sides = condition.shape
            generators = frame_generators(run.seed, range(start, stop), batch, run.first_video)
            if run.noise is None:
                channels = self.networks.networks.require("vae").latent_channels
                size = (len(generators), channels, *sides)
                noise = draw_noise(size, generators, self.networks.device)
            else:
                given = self.networks.sent(run.noise[:, :, start:stop])
                noise = rearrange(given, "b c f h w -> (b f) c h w")
            trajectory = Trajectory(scheduler, noise, generators)
            yield NoisySegment(start, stop, (condition,), trajectory)


def telling(on_step: OnStep | None, total: int) -> OnStep:
    """An observer that shows progress, see `track`, and tells the given one."""
    ticks = iter(track(range(total)))
    next(ticks, None)  # the display begins now, and ends with the last step

    def tell(step: SamplerStep) -> Tensor | None:
        next(ticks, None)
        return None if on_step is None else on_step(step)

    return tell
