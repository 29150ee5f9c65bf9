"""Codecs by name."""

from collections.abc import Callable
from functools import partial

from diffusion.evaluation.codecs.cascade_codecs import CascadeCodec, PreviewCodec, VAECodec
from diffusion.evaluation.codecs.classic_codecs import BicubicCodec, H264Codec, LinearCodec
from diffusion.evaluation.codecs.codec import Codec, CodecOptions, Encoded
from diffusion.evaluation.codecs.diffusers_codec import DiffusersCodec
from diffusion.evaluation.codecs.enlarging_codecs import FrameCodec, InterpolateCodec, UpscaleCodec
from diffusion.evaluation.codecs.stable_cascade_codec import StableCascadeCodec
from diffusion.utils.errors import UserError

__all__ = ["SPECS", "Codec", "CodecOptions", "Encoded", "build_codec", "parse_spec"]

# Name of a model -> (what builds it from its own name, what follows a colon, the options; the
# default of what follows). None: it must be given.
Builder = Callable[[str, str, CodecOptions], Codec]
COMPACT = "configs/compact.effn-f32.py"
SPECS: dict[str, tuple[Builder, str | None]] = {
    "compact": (CascadeCodec, COMPACT),
    "s1024": (CascadeCodec, "configs/s1024.effn-f32.py"),
    "previewer": (PreviewCodec, COMPACT),
    "vae": (VAECodec, COMPACT),
    "linear": (LinearCodec, COMPACT),
    "upscale": (UpscaleCodec, COMPACT),
    "upscale_compressor": (partial(UpscaleCodec, condition="compressor"), COMPACT),
    "interpolate": (InterpolateCodec, COMPACT),
    "frames": (FrameCodec, "blended"),
    "bicubic": (BicubicCodec, "16/1024"),
    "h264": (H264Codec, "0.25"),
    "stablecascade": (StableCascadeCodec, "stabilityai/stable-cascade"),
    "diffusers": (DiffusersCodec, None),
}


def build_codec(spec: str, options: CodecOptions | None = None) -> Codec:
    """`spec`: NAME, NAME:ARGUMENT or the path of a cascade's config.

    previewer, vae and linear take the CONFIG they are parts of, as do upscale, upscale_compressor
    and interpolate, frames "blended" or "repeated", bicubic the values per pixel, h264 the bits per
    pixel, stablecascade and diffusers a folder or the name of a repository.
    """
    build, argument = parse_spec(spec)
    return build(spec, argument, options or CodecOptions())


def parse_spec(spec: str) -> tuple[Builder, str]:
    """What builds the codec, and what it takes; UserError for what is neither name nor config."""
    kind, colon, argument = spec.partition(":")
    if kind not in SPECS and spec.endswith(".py"):
        return CascadeCodec, spec
    if kind not in SPECS:
        raise UserError(
            f"--models {spec}: is unknown; use {', '.join(SPECS)}:FOLDER_OR_HUB_ID, or the path "
            "of a config"
        )
    build, default = SPECS[kind]
    if not argument and (colon or default is None):
        raise UserError(f"--models {spec}: nothing stands after the colon, e.g. diffusers:FOLDER")
    return build, argument or default
