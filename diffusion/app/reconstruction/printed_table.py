"""The short table that a command prints at its end."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table


def print_results(metrics: Mapping[str, Any], paths: Iterable[Path]) -> None:
    console = Console()
    table = Table(title=f"{metrics['frames']} frames of {metrics['width']}x{metrics['height']}")
    table.add_column("")
    table.add_column("PSNR dB", justify="right")
    table.add_column("SSIM", justify="right")
    for name, prefix in (("without LDM", "preview_"), ("with LDM", "")):
        quality = (metrics[f"{prefix}psnr"], metrics[f"{prefix}ssim"])
        table.add_row(name, f"{quality[0]:.2f}", f"{quality[1]:.3f}")
    console.print(table)
    shape = "x".join(map(str, metrics["latent_shape"][1:]))
    console.print(
        f"latents {shape}, {metrics['latents_bytes'] / 1000:.1f} kB: 1 position for "
        f"{metrics['values_ratio']} pixels"
    )
    seconds = ", ".join(f"{name} {value:.1f}" for name, value in metrics["seconds"].items())
    console.print(
        f"seconds: {seconds}; peak memory {metrics['peak_memory_mb']:.0f} MB", highlight=False
    )
    for path in paths:
        console.print(f"  {path}", highlight=False, soft_wrap=True)
