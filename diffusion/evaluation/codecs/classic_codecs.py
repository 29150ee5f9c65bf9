"""What needs no learned decoder: principal components, a smaller picture, H.264."""

import io
import re
from typing import Any

import av
import numpy as np
from av.video.frame import VideoFrame
from av.video.reformatter import ColorRange, Colorspace, VideoReformatter
from torch import Tensor

from diffusion.config import load_config
from diffusion.data.transforms import resize, to_float, to_uint8
from diffusion.data.video.rgb import EXACT, frame_to_rgb
from diffusion.evaluation.codecs.codec import (
    Codec,
    CodecOptions,
    Encoded,
    latent_facts,
    restored,
    store,
    weights_digest,
)
from diffusion.models.compact import LinearBlocks
from diffusion.pipelines.cascade_builder import load_parts
from diffusion.pipelines.padding import pad_reflect
from diffusion.utils.errors import UserError
from diffusion.utils.frames import map_frames

FRAMES_PER_CHUNK = 8
BT709 = 1  # the matrix in ITU-T H.273
WORST_CRF = 51.0
# Units of type 6: x264 writes 700 bytes about itself. Start codes cannot occur within a unit.
NOTES = re.compile(rb"\x00\x00\x00?\x01\x06.*?(?=\x00\x00\x00?\x01)", re.DOTALL)
CRF_STEPS = 8  # halvings of 0..51: to a fifth of a level


class LinearCodec(Codec):
    """Principal components of square blocks: the linear shortcut of a config's compressor.

    It was fitted on the compressor's training clips, before the networks around it, and its code
    has as many values as theirs.
    """

    def __init__(self, name: str, config: str, options: CodecOptions):
        self.name = name
        compressor = load_parts(load_config(config), ("compressor",))["compressor"]
        linear = getattr(getattr(compressor, "encoder", None), "linear", None)
        if not isinstance(linear, LinearBlocks):
            raise UserError(
                f"--models {name}: the compressor of {config} has no linear part; use a config "
                "with a CompactCompressor"
            )
        self.linear = linear.to(options.device).eval()

    def encode(self, video: Tensor) -> Encoded:
        padded = pad_reflect(video, self.linear.block).to(self.linear.mean.device)
        return store(map_frames(self.linear.encode, padded, FRAMES_PER_CHUNK), video)

    def decode(self, encoded: Encoded) -> Tensor:
        code = encoded.latents(self.linear.mean.device)
        return restored(map_frames(self.linear.decode, code, FRAMES_PER_CHUNK), encoded)

    def facts(self) -> dict[str, Any]:
        facts = latent_facts(self.linear.block, 1, len(self.linear.std))
        return facts | {"parameters": self.linear.mean.numel() + self.linear.basis.numel()}

    def made_with(self) -> dict[str, Any]:
        return {"weights": weights_digest(self.linear)}


class BicubicCodec(Codec):
    """A smaller RGB picture, bicubic with antialiasing down, bicubic up.

    values: three per small pixel, so 16/1024 of them per pixel (those of the compact compressor)
        make both sides 13.9 times smaller; rounded down, so that there are never more.
    """

    def __init__(self, name: str, values: str, options: CodecOptions):
        self.name, self.options = name, options
        above, _, below = values.partition("/")
        self.values = number(name, above) / number(name, below or "1")
        self.shrinking = (3 / self.values) ** 0.5
        if self.shrinking < 1:
            raise UserError(f"--models {name}: at most 3 values per pixel are there to keep")

    def encode(self, video: Tensor) -> Encoded:
        small = [max(1, int(side / self.shrinking)) for side in video.shape[-2:]]
        return store(resize(video[0].to(self.options.device), *small)[None], video)

    def decode(self, encoded: Encoded) -> Tensor:
        small = encoded.latents(self.options.device)[0]
        return restored(resize(small, *encoded.size[1:])[None], encoded)

    def facts(self) -> dict[str, Any]:
        return latent_facts(self.shrinking, 1, 3)

    def made_with(self) -> dict[str, Any]:
        return {"values_per_pixel": self.values}


class H264Codec(Codec):
    """libx264, preset medium, yuv420p, at the best constant quality (CRF) within a bit rate.

    bits: most bits per pixel, of the bare stream without a container. 0.25 are 16 float16 values
        per 32x32 pixels. A video that exceeds it at the worst quality takes what that takes.

    The seconds of encoding include the search for the quality.
    """

    def __init__(self, name: str, bits: str, options: CodecOptions):
        self.name = name
        self.bits_per_pixel = number(name, bits)

    def encode(self, video: Tensor) -> Encoded:
        frames = to_uint8(video[0])
        even = [(0, side % 2) for side in frames.shape[1:3]]  # as yuv420p needs
        frames = np.pad(frames, [(0, 0), *even, (0, 0)], mode="edge")
        size = tuple(video.shape[2:])
        most = self.bits_per_pixel * np.prod(size)
        best, low, high = h264(frames, WORST_CRF), 0.0, WORST_CRF
        for _ in range(CRF_STEPS):
            crf = (low + high) / 2
            stream = h264(frames, crf)
            if 8 * len(stream) <= most:
                best, high = stream, crf
            else:
                low = crf
        return Encoded(best, size)

    def decode(self, encoded: Encoded) -> Tensor:
        reformatter = VideoReformatter()
        with av.open(io.BytesIO(encoded.data), format="h264") as container:
            decoded = [frame_to_rgb(frame, reformatter) for frame in container.decode(video=0)]
        return restored(to_float(np.stack(decoded))[None], encoded)

    def facts(self) -> dict[str, Any]:
        return {
            "spatial_compression": None,
            "temporal_compression": None,
            "channels": None,
            "values_per_pixel": None,
            "bits_per_pixel": self.bits_per_pixel,
            "parameters": 0,
        }

    def made_with(self) -> dict[str, Any]:
        return {
            "bits_per_pixel": self.bits_per_pixel,
            "ffmpeg": {name: list(v) for name, v in av.library_versions.items()},
            "preset": "medium",
            "threads": 1,
        }


def h264(frames: np.ndarray, crf: float) -> bytes:
    """(F, H, W, 3) uint8 with even sides -> the bare stream."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="h264") as container:
        # of several threads, what x264 makes of the same frames depends on which is ahead
        options = {"crf": f"{crf:.3f}", "preset": "medium", "threads": "1"}
        stream = container.add_stream("libx264", rate=30, options=options)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        stream.codec_context.colorspace = BT709
        stream.codec_context.color_range = ColorRange.MPEG
        for frame in frames:
            picture = VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
            picture = picture.reformat(
                format="yuv420p",
                src_color_range=ColorRange.JPEG,
                dst_colorspace=Colorspace.ITU709,
                dst_color_range=ColorRange.MPEG,
                interpolation=EXACT,
            )
            container.mux(stream.encode(picture))
        container.mux(stream.encode(None))
    return NOTES.sub(b"", buffer.getvalue())


def number(name: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise UserError(f"--models {name}: {text!r} is not a positive number")
    return value
