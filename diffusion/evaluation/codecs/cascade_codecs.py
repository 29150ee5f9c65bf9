"""The cascade and its parts as codecs."""

import hashlib
import json
from typing import Any

from torch import Tensor, nn

from diffusion.config import load_config
from diffusion.data.transforms import resize
from diffusion.evaluation.codecs.codec import (
    Codec,
    CodecOptions,
    Encoded,
    latent_facts,
    restored,
    store,
    weights_digest,
)
from diffusion.pipelines.cascade_builder import PARTS, build_cascade, sampling_of
from diffusion.pipelines.padding import pad_reflect

# What a result depends on beside the networks' weights; the rest of a config is about training.
KEYS = (*PARTS, "model_id", "noise", "conditioning", "cascade")


class CascadeCodec(Codec):
    """The whole cascade: semantic latents, restored by diffusion and the VAE's decoder."""

    parts: tuple[str, ...] = PARTS

    def __init__(self, name: str, config: str, options: CodecOptions):
        self.name, self.options = name, options
        self.config = load_config(config)
        self.drawn_with = self._sampling()  # refuses what cannot be, before anything is loaded
        self.pipeline = build_cascade(
            self.config, device=options.device, dtype=options.dtype, only=self.parts
        )

    def encode(self, video: Tensor) -> Encoded:
        return store(self.pipeline.encode(video), video)

    def decode(self, encoded: Encoded) -> Tensor:
        latents = encoded.latents(self.options.device)
        return restored(self.pipeline.decode(latents, **self.drawn_with), encoded)

    def facts(self) -> dict[str, Any]:
        compressor = self.pipeline.compressor
        return latent_facts(
            compressor.spatial_compression,
            compressor.temporal_compression,
            compressor.latent_channels,
            self._networks(),
        )

    def made_with(self) -> dict[str, Any]:
        used = {key: self.config[key] for key in KEYS if key in self.config}
        text = json.dumps(used, sort_keys=True)
        return {
            "model_id": self.config["model_id"],
            "config": hashlib.sha256(text.encode()).hexdigest()[:16],
            "weights": {name: weights_digest(getattr(self.pipeline, name)) for name in self.parts},
            "dtype": str(self.options.dtype),
            **self.drawn_with,
        }

    def _networks(self) -> list[nn.Module]:
        return [getattr(self.pipeline, name) for name in self.parts]

    def _sampling(self) -> dict[str, Any]:
        """Arguments of Cascade.decode: as the config's model is meant to be sampled."""
        options = self.options
        sampling = sampling_of(self.config, options.sampler, options.steps)
        return {"steps": sampling.steps, "sampler": sampling.sampler, "seed": options.seed}


class PreviewCodec(CascadeCodec):
    """The semantic latents as the previewer shows them, enlarged to the video's size."""

    parts = ("compressor", "previewer")

    def decode(self, encoded: Encoded) -> Tensor:
        preview = self.pipeline.preview(encoded.latents(self.options.device))[0]
        factor = self.pipeline.compressor.spatial_compression // self.pipeline.previewer.upscaling
        height, width = (factor * side for side in preview.shape[-2:])
        return restored(resize(preview, height, width)[None], encoded)

    def _sampling(self) -> dict[str, Any]:
        return {}


class VAECodec(CascadeCodec):
    """The VAE alone: what the cascade could restore at best."""

    parts = ("vae",)

    def encode(self, video: Tensor) -> Encoded:
        padded = pad_reflect(video, self.pipeline.vae.spatial_compression)
        return store(self.pipeline.encode_vae(padded), video)

    def decode(self, encoded: Encoded) -> Tensor:
        latents = encoded.latents(self.options.device)
        return restored(self.pipeline.decode_vae(latents), encoded)

    def facts(self) -> dict[str, Any]:
        vae = self.pipeline.vae
        return latent_facts(
            vae.spatial_compression, vae.temporal_compression, vae.latent_channels, [vae]
        )

    def _sampling(self) -> dict[str, Any]:
        return {}
