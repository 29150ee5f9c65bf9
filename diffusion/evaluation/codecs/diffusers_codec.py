"""Any autoencoder class of diffusers as a codec."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from diffusion.evaluation.codecs.codec import (
    Codec,
    CodecOptions,
    Encoded,
    latent_facts,
    restored,
    store,
    weights_digest,
)
from diffusion.evaluation.quiet_libraries import quiet_diffusers
from diffusion.pipelines.padding import pad_reflect
from diffusion.utils.compute import inference
from diffusion.utils.errors import UserError, WeightsError
from diffusion.utils.frames import map_frames

FRAMES_PER_CHUNK = 4  # of networks for pictures
FRAMES_TOGETHER = 8  # of decoders that mix frames of latents that were encoded frame by frame
SIDES = (64, 128, 256)  # of probes
STEPS_IN_TIME = (1, 2, 4, 6, 8, 12, 16, 32)


@dataclass(frozen=True)
class Shape:
    """What an autoencoder takes: `first` + n * `step` frames, sides that are multiples of `side`.

    temporal, channels: frames of video per frame of latents, and values per position.
    """

    first: int
    step: int
    side: int
    temporal: float
    channels: int

    def padded_frames(self, frames: int) -> int:
        return self.first + max(0, -(-(frames - self.first) // self.step)) * self.step


class DiffusersCodec(Codec):
    """An autoencoder for pictures or videos from a folder, or the hub, in diffusers' format.

    What sizes it takes is measured on small probes: classes say it in different ways, or not at
    all. Shorter clips are padded by their last frame, sides by reflection; the latents are the
    mean of the posterior.
    """

    def __init__(self, name: str, source: str, options: CodecOptions):
        self.name, self.options = name, options
        self.model = load_autoencoder(source).to(options.device).eval().requires_grad_(False)
        self.shape = probe(self._encode, self._decode, name)

    def encode(self, video: Tensor) -> Encoded:
        frames = video.shape[2]
        missing = self.shape.padded_frames(frames) - frames
        padded = pad_reflect(video, self.shape.side)
        padded = F.pad(padded, (0, 0, 0, 0, 0, missing), mode="replicate")
        return store(self._encode(padded), video)

    def decode(self, encoded: Encoded) -> Tensor:
        return restored(self._decode(encoded.latents(self.options.device)), encoded)

    def facts(self) -> dict[str, Any]:
        shape = self.shape
        return latent_facts(shape.side, shape.temporal, shape.channels, [self.model])

    def made_with(self) -> dict[str, Any]:
        import diffusers

        return {
            "class": type(self.model).__name__,
            "config": {k: v for k, v in self.model.config.items() if not k.startswith("_")},
            "weights": weights_digest(self.model),
            "dtype": str(self.options.dtype),
            "diffusers": diffusers.__version__,
        }

    def _encode(self, video: Tensor) -> Tensor:
        """(1, 3, F, H, W), of a size that it takes -> (1, C, f, h, w)."""
        forget(self.model)
        with inference(self.options.device, self.options.dtype):
            video = video.to(self.options.device)
            if takes_videos(self.model):
                return latents_of(self.model.encode(video)).float()
            return map_frames(
                lambda x: latents_of(self.model.encode(x)).float(), video, FRAMES_PER_CHUNK
            )

    def _decode(self, latents: Tensor) -> Tensor:
        """(1, C, f, h, w) -> (1, 3, F, H, W)."""
        # Some decoders inject noise from the global generator.
        devices = [self.options.device] if self.options.device.type == "cuda" else []
        with (
            inference(self.options.device, self.options.dtype),
            torch.random.fork_rng(devices),
        ):
            torch.manual_seed(self.options.seed)
            if takes_videos(self.model):
                return self._decode_video(latents).float()
            if "num_frames" in inspect.signature(self.model.decode).parameters:
                return self._decode_together(latents).float()
            return map_frames(
                lambda x: self.model.decode(x).sample.float(), latents, FRAMES_PER_CHUNK
            )

    def _decode_video(self, latents: Tensor) -> Tensor:
        if self.model.config.get("timestep_conditioning"):
            # LTX's decoder denoises as well: 0 is "nothing to denoise", its pipeline's default.
            return self.model.decode(latents, latents.new_zeros(len(latents))).sample
        return self.model.decode(latents).sample

    def _decode_together(self, latents: Tensor) -> Tensor:
        """Spans of frames, for Stable Video Diffusion's decoder."""
        parts = []
        for span in latents.split(FRAMES_TOGETHER, dim=2):
            frames = rearrange(span, "1 c f h w -> f c h w")
            parts.append(self.model.decode(frames, num_frames=len(frames)).sample)
        return rearrange(torch.cat(parts), "f c h w -> 1 c f h w")


def forget(model: nn.Module) -> None:
    """Drop the frames that some video classes keep between chunks, also after a refused video."""
    for name in ("_clear_conv_cache", "clear_cache"):
        getattr(model, name, lambda: None)()


def takes_videos(model: nn.Module) -> bool:
    """Whether `encode` wants (B, C, F, H, W): its encoder convolves over three axes."""
    return any(isinstance(module, nn.Conv3d) for module in model.encoder.modules())


def latents_of(output: Any) -> Tensor:
    """Classes name what `encode` gives in three ways."""
    if hasattr(output, "latent_dist"):
        return output.latent_dist.mode()
    return output.latent if hasattr(output, "latent") else output.latents


def load_autoencoder(source: str) -> nn.Module:
    """The autoencoder in `source` or, where that is a whole pipeline, in its subfolder `vae`."""
    import diffusers

    try:
        try:
            subfolder, config = None, diffusers.AutoencoderKL.load_config(source)
        except OSError:
            subfolder, config = "vae", diffusers.AutoencoderKL.load_config(source, subfolder="vae")
        network = getattr(diffusers, config.get("_class_name", ""), None)
        if not (hasattr(network, "encode") and hasattr(network, "decode")):
            raise UserError(
                f"diffusers:{source}: {config.get('_class_name')!r} is not an autoencoder that "
                f"diffusers {diffusers.__version__} has"
            )
        with quiet_diffusers():
            # No pickles.
            return network.from_pretrained(source, subfolder=subfolder, use_safetensors=True)
    except UserError:
        raise
    except Exception as error:  # whatever a damaged folder or the hub makes the library raise
        raise cannot_be_loaded(f"diffusers:{source}", error) from error


def cannot_be_loaded(spec: str, error: Exception) -> WeightsError:
    """What a user should read about an error of diffusers or of the hub."""
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    return WeightsError(
        f"{spec}: cannot be loaded ({reason}); give a folder that save_pretrained wrote with "
        "safetensors, or a repository's name"
    )


def probe(
    encode: Callable[[Tensor], Tensor], decode: Callable[[Tensor], Tensor], name: str
) -> Shape:
    """Try small videos until two lengths in a row come back as long as they went in."""
    for side in SIDES:
        # 16 for classes that do not take a single frame.
        sizes = (_latent_size(encode, frames, side) for frames in (1, 16))
        size = next(filter(None, sizes), None)
        if size is not None and min(size[2:]) >= 2:
            break
    else:
        raise UserError(f"--models {name}: does not encode videos of {SIDES[-1]} pixels")
    for step in STEPS_IN_TIME:
        for first in (1, 0):
            lengths = (first + step, first + 2 * step)
            latents = [_round_trip(encode, decode, length, side) for length in lengths]
            if None not in latents and latents[1] > latents[0]:
                temporal = step / (latents[1] - latents[0])
                temporal = int(temporal) if temporal.is_integer() else temporal
                return Shape(first, step, side // size[3], temporal, size[0])
    raise UserError(f"--models {name}: gives back another number of frames than it was given")


def _latent_size(
    encode: Callable[[Tensor], Tensor], frames: int, side: int
) -> tuple[int, ...] | None:
    """(C, f, h, w) of a probe; None where it is refused."""
    try:
        return tuple(encode(torch.zeros(1, 3, frames, side, side)).shape[1:])
    except (RuntimeError, ValueError, AssertionError, IndexError):
        return None


def _round_trip(
    encode: Callable[[Tensor], Tensor], decode: Callable[[Tensor], Tensor], frames: int, side: int
) -> int | None:
    """Frames of latents of a probe, if all its frames come back."""
    try:
        latents = encode(torch.zeros(1, 3, frames, side, side))
        back = tuple(decode(latents).shape) == (1, 3, frames, side, side)
        return latents.shape[2] if back else None
    except (RuntimeError, ValueError, AssertionError, IndexError):
        return None
