"""A real evaluation in small: real codecs on real frames, written as results.json says."""

from collections.abc import Callable, Mapping
from pathlib import Path
from time import perf_counter

import torch
from einops import rearrange
from torch import Tensor

from diffusion.data.transforms import resize
from diffusion.data.video.clip import read_video
from diffusion.data.video.video_writer import VideoWriter
from diffusion.evaluation.metrics.all_metrics import METRICS
from diffusion.evaluation.metrics.fidelity import psnr, ssim
from diffusion.evaluation.report.results import costs

Codec = Callable[[Tensor, Path], tuple[Tensor, int]]  # (3, F, H, W) -> its like, and the bits


def bicubic(video: Tensor, folder: Path) -> tuple[Tensor, int]:
    height, width = video.shape[-2:]
    small = resize(video, height // 4, width // 4)
    return resize(small, height, width), 16 * small.numel()


def linear(video: Tensor, folder: Path, block: int = 8, channels: int = 12) -> tuple[Tensor, int]:
    """The principal components of blocks, of this very video."""
    cut = dict(p=block, q=block, c=3, f=video.shape[1], h=video.shape[2] // block)
    blocks = rearrange(video, "c f (h p) (w q) -> (f h w) (c p q)", p=block, q=block)
    mean = blocks.mean(0)
    basis = torch.linalg.svd(blocks - mean, full_matrices=False)[2][:channels]
    codes = (blocks - mean) @ basis.T
    whole = rearrange(codes @ basis + mean, "(f h w) (c p q) -> c f (h p) (w q)", **cut)
    return whole.clamp(-1, 1), 16 * codes.numel()


def h264(video: Tensor, folder: Path) -> tuple[Tensor, int]:
    path = folder / "h264.mp4"
    with VideoWriter(path, 25, crf=38) as writer:
        writer.write(video)
    bits = 8 * path.stat().st_size
    decoded = read_video(path).video
    path.unlink()
    return decoded, bits


CODECS: dict[str, Codec] = {"linear": linear, "bicubic": bicubic, "h264": h264}


def evaluate(folder: Path, videos: Mapping[str, Tensor], codecs: Mapping[str, Codec] = CODECS):
    """videos: name -> (3, F, H, W) in [-1, 1]. Writes their files into `folder`."""
    originals, models = {}, {}
    for index, (name, video) in enumerate(videos.items()):
        originals[name] = write(folder, f"videos/original/{index}.mp4", video)
    for spec, codec in codecs.items():
        entries = {}
        for index, (name, video) in enumerate(videos.items()):
            begin = perf_counter()
            decoded, bits = codec(video, folder)
            entries[name] = {
                "frames": video.shape[1],
                "height": video.shape[2],
                "width": video.shape[3],
                "fps": 25.0,
                "metrics": {
                    "psnr": per_frame(psnr(decoded, video)),
                    "ssim": per_frame(ssim(decoded, video)),
                },
                "seconds": {"encode": 0.0, "decode": perf_counter() - begin},
                "peak_memory_mb": 100.0,
                "bits": bits,
                "reconstruction": write(folder, f"videos/{spec}/{index}.mp4", decoded),
            }
        means = {
            metric: sum(e["metrics"][metric]["mean"] for e in entries.values()) / len(entries)
            for metric in ("psnr", "ssim")
        }
        facts = {"spatial_compression": 8, "temporal_compression": 1, "channels": 12}
        facts |= {"values_per_pixel": 12 / 64, "bits_per_pixel": 3.0, "parameters": 0}
        models[spec] = {
            "facts": facts,
            "made_with": {"weights": spec[::-1]},
            "videos": entries,
            "failed": {},
            "means": means,
            "costs": costs(entries),
        }
    return {
        "protocol": {"name": "small", "size": "native", "resize": {"filter": "bicubic"}},
        "environment": {"torch": torch.__version__},
        "metrics": {
            "psnr": METRICS["psnr"].describe(),
            "ssim": METRICS["ssim"].describe(),
            "lpips_alex": {
                "label": "LPIPS (alex)",
                "higher_is_better": False,
                "missing": "the weights are not here; pip install lpips",
            },
        },
        "models": models,
        "originals": originals,
        "published": [
            {
                "name": "CascadeV",
                "protocol": "inter4k-200",
                "values": {"psnr": 23.7320, "ssim": 0.6742, "vbench_aesthetic_quality": 0.5579},
                "note": "from the paper's table",
            }
        ],
        "bad_videos": {},
    }


def write(folder: Path, name: str, video: Tensor) -> str:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    with VideoWriter(path, 25) as writer:
        writer.write(video)
    return name


def per_frame(values: Tensor) -> dict:
    return {"mean": values.mean().item(), "per_frame": values.tolist()}
