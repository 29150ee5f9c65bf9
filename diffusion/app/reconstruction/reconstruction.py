"""A clip through the whole cascade in constant memory, with everything a user wants to see."""

from collections import deque
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from diffusion.app.opened_cascade import OpenedCascade
from diffusion.app.reconstruction.clip_source import ClipSource
from diffusion.app.reconstruction.coding import (
    decode_pieces,
    encode_chunks,
    full_size_preview,
    latents_info,
    single_frames,
    without_padding,
)
from diffusion.app.reconstruction.frame_means import FrameMeans
from diffusion.app.reconstruction.result_files import (
    comparison_files,
    latents_file,
    result_files,
    video_file,
    with_pixels,
)
from diffusion.app.reconstruction.unfinished import UnfinishedRun
from diffusion.data.transforms import to_uint8
from diffusion.utils.files import write_json
from diffusion.utils.measuring import peak_memory_mb
from diffusion.utils.overlap import Overlap

# What a reconstruction leaves in its folder.
OUTPUTS = (
    "latents.safetensors",
    "preview.mp4",
    "recon.mp4",
    "compare.mp4",
    "compare.png",
    "metrics.json",
)
COLUMNS = ["original", "without LDM", "with LDM"]


def reconstruct(
    opened: OpenedCascade[ClipSource], folder: Path, config_name: str
) -> dict[str, Any] | None:
    """Write all OUTPUTS -> what is in metrics.json. None if this process helped another one.

    Metrics are means over frames.
    """
    with opened.running(folder / ".unfinished") as (is_first, unfinished):
        run = Reconstruction(opened, unfinished)
        if not is_first:
            run.take_part()
            return None
        with result_files(folder, OUTPUTS) as places:
            metrics = {
                **run.write(places),
                "latents_bytes": places["latents.safetensors"].stat().st_size,
                "seconds": opened.stages.seconds(),
                "config": config_name,
                "weights": {name: str(path) for name, path in opened.weights.items()},
                "device": str(opened.pipeline.device),
                "dtype": str(opened.pipeline.dtype).removeprefix("torch."),
                **opened.sampling,
            }
            write_json(places["metrics.json"], metrics)
    return metrics


class Reconstruction:
    """One clip on its way from pixels to latents and back."""

    def __init__(self, opened: OpenedCascade[ClipSource], unfinished: UnfinishedRun):
        self.pipeline, self.clip, self.stages = opened.pipeline, opened.source, opened.stages
        self.sampling, self.unfinished = opened.sampling, unfinished
        self.info, self.latent_shape = latents_info(
            self.pipeline, self.clip, opened.config["model_id"]
        )

    def take_part(self) -> None:
        """Do this process's share of the networks' work, and nothing else."""
        with Overlap(self.stages.wait) as overlap:
            for _ in self._restored(self._encoded(overlap)):
                pass

    def write(self, places: Mapping[str, Path]) -> dict[str, Any]:
        """Write all files but the metrics -> the measures, and the sizes.

        places: where to write each of OUTPUTS.
        """
        clip, stages = self.clip, self.stages
        means = FrameMeans(stages)
        with Overlap(stages.wait) as overlap:
            files = ReconstructionFiles(self, places, overlap)
            # The originals are read again: cheaper than to hold them until they are compared.
            originals = overlap.ahead(with_pixels(stages.each("read", clip.chunks(1))), depth=2)
            pieces = self._encoded(overlap, files, means)
            frames = single_frames(self._restored(pieces))
            for frame, (original, pixels) in zip(frames, originals, strict=True):
                means.add("", frame, original)
                files.add_restored(frame, pixels)
        return {
            **means.over(clip.num_frames),
            "frames": clip.num_frames,
            "height": clip.height,
            "width": clip.width,
            "fps": self.info.fps,
            "latent_shape": list(self.latent_shape),
            "values_ratio": self.pipeline.compressor.spatial_compression**2,
            "peak_memory_mb": peak_memory_mb(self.pipeline.device),
        }

    def _encoded(
        self,
        overlap: Overlap,
        files: "ReconstructionFiles | None" = None,
        means: FrameMeans | None = None,
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Semantic latents and preview of the clip's frames; written and measured, where asked."""
        for video, latents in encode_chunks(self.pipeline, self.clip, self.stages, overlap):
            with self.stages("preview"):
                preview = self.pipeline.preview(latents)
            if files is not None and means is not None:
                shown = full_size_preview(self.pipeline, preview, self.info)
                means.add("preview_", shown, video)
                files.add_encoded(latents, shown)
            yield latents, preview

    def _restored(self, pieces: Iterator[tuple[Tensor, Tensor]]) -> Iterator[Tensor]:
        """Frames (3, f, H, W), where the networks are."""
        size, count = (self.clip.height, self.clip.width), self.clip.num_frames
        videos = decode_pieces(
            self.pipeline, pieces, size, count, self.unfinished, self.stages, **self.sampling
        )
        return (without_padding(video, self.info) for video in videos)


class ReconstructionFiles:
    """The files of a reconstruction, which get what there is as it comes."""

    def __init__(self, run: Reconstruction, places: Mapping[str, Path], overlap: Overlap):
        stages, fps, self.frames_to_encode = run.stages, run.info.fps, run.clip.num_frames
        self.stages = stages
        self.latents = overlap.behind(
            latents_file(places["latents.safetensors"], run.latent_shape, run.info, stages)
        )
        self.preview = overlap.behind(video_file(places["preview.mp4"], fps, stages))
        self.recon = overlap.behind(video_file(places["recon.mp4"], fps, stages))
        compared = (places["compare.mp4"], places["compare.png"], COLUMNS, fps)
        middle = run.clip.num_frames // 2
        self.compare = overlap.behind(comparison_files(*compared, middle, stages))
        self.previews: deque[np.ndarray] = deque()  # (1, H, W, 3) of frames not restored so far

    def add_encoded(self, latents: Tensor, preview: Tensor) -> None:
        """Semantic latents (1, C, f, h, w) and the preview (3, f, H, W) of the next frames."""
        with self.stages("write"):
            pixels = to_uint8(preview)
            self.latents(latents.cpu())
            self.preview(pixels)
        self.previews.extend(np.split(pixels, len(pixels)))
        self.frames_to_encode -= len(pixels)
        if self.frames_to_encode == 0:  # both can be completed while frames are restored
            self.latents.end()
            self.preview.end()

    def add_restored(self, frame: Tensor, original: np.ndarray) -> None:
        """The next frame (3, 1, H, W), and (1, H, W, 3) uint8 of the original."""
        with self.stages("write"):
            pixels = to_uint8(frame)
            self.recon(pixels)
            self.compare([original, self.previews.popleft(), pixels])
