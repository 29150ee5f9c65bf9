"""Smaller pictures and fewer frames, restored by the cascade or by plain filters.

What another model made is stood in for by the original, reduced.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final

import torch
from torch import Tensor

from diffusion.evaluation.codecs.cascade_codecs import CascadeCodec
from diffusion.evaluation.codecs.codec import (
    Codec,
    CodecOptions,
    Encoded,
    latent_facts,
    restored,
    store,
)
from diffusion.pipelines.cascade import Cascade
from diffusion.pipelines.interpolation import (
    repeat,
    stretch,
    stretched_length,
    stretched_pieces,
)
from diffusion.pipelines.padding import pad_edges, pad_reflect
from diffusion.pipelines.upscaling import Upscaler, reduce
from diffusion.utils.errors import UserError

Filter = Callable[[Iterable[Tensor], int], Iterator[Tensor]]
FILTERS: Final[dict[str, Filter]] = {"blended": stretch, "repeated": repeat}
FACTOR: Final = 4  # of height and width, or of the frame rate


class EnlargingCodec(CascadeCodec):
    """The cascade from other pieces than its own semantic latents."""

    def _restore(
        self,
        pipeline: Cascade,
        pieces: Iterable[tuple[Tensor, Tensor]],
        num_frames: int,
    ) -> Tensor:
        """Conditions, and what stands for the preview -> (B, 3, num_frames, H', W')."""
        latents = pipeline.restore_stream(pieces, num_frames, **self.drawn_with)
        return torch.cat(list(pipeline.decode_vae_stream(latents, num_frames)), dim=2)


class UpscaleCodec(EnlargingCodec):
    """A quarter of the height and width, restored by the cascade. condition: see Upscaler."""

    def __init__(self, name: str, config: str, options: CodecOptions, condition: str = "enlarged"):
        super().__init__(name, config, options)
        self.upscaler = Upscaler(self.pipeline, FACTOR, condition)

    def encode(self, video: Tensor) -> Encoded:
        return store(reduce(pad_reflect(video, FACTOR), FACTOR), video)

    def decode(self, encoded: Encoded) -> Tensor:
        pieces = self.upscaler.pieces([encoded.latents(self.options.device)])
        return restored(self._restore(self.upscaler.pipeline, pieces, encoded.size[0]), encoded)

    def facts(self) -> dict[str, Any]:
        return latent_facts(FACTOR, 1, 3, self._networks())

    def made_with(self) -> dict[str, Any]:
        return super().made_with() | {"factor": FACTOR, "condition": self.upscaler.condition}


class InterpolateCodec(EnlargingCodec):
    """Every fourth frame; those between are restored by the cascade, those after are the last."""

    def encode(self, video: Tensor) -> Encoded:
        return store(video[:, :, ::FACTOR], video)

    def decode(self, encoded: Encoded) -> Tensor:
        known = encoded.latents(self.options.device)
        pieces = stretched_pieces(self.pipeline, [known], FACTOR)
        num_frames = stretched_length(known.shape[2], FACTOR)
        video = self._restore(self.pipeline, pieces, num_frames)
        return restored(as_long(video, encoded), encoded)

    def facts(self) -> dict[str, Any]:
        return latent_facts(1, FACTOR, 3, self._networks())

    def made_with(self) -> dict[str, Any]:
        return super().made_with() | {"factor": FACTOR}


class FrameCodec(Codec):
    """Every fourth frame, and between them a cross-fade, or each one repeated."""

    def __init__(self, name: str, between: str, options: CodecOptions):
        if between not in FILTERS:
            raise UserError(f"--models {name}: {between!r} is not one of {', '.join(FILTERS)}")
        self.name, self.options, self.filtered = name, options, FILTERS[between]

    def encode(self, video: Tensor) -> Encoded:
        return store(video[:, :, ::FACTOR], video)

    def decode(self, encoded: Encoded) -> Tensor:
        known = encoded.latents(self.options.device)
        return restored(as_long(between(self.filtered, known), encoded), encoded)

    def facts(self) -> dict[str, Any]:
        return latent_facts(1, FACTOR, 3)

    def made_with(self) -> dict[str, Any]:
        return {"factor": FACTOR}


def between(filtered: Filter, known: Tensor) -> Tensor:
    """(B, C, f, h, w) -> (B, C, (f - 1) * FACTOR + 1, h, w)."""
    return torch.cat(list(filtered([known], FACTOR)), dim=2)


def as_long(video: Tensor, encoded: Encoded) -> Tensor:
    """With the last frame repeated up to the length that was encoded."""
    return pad_edges(video, (encoded.size[0], *video.shape[-2:]))
