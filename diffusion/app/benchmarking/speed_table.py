"""What a benchmark prints."""

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table


def print_benchmark(result: Mapping[str, Any]) -> None:
    console = Console()
    machine = result["machine"]
    console.print(
        f"{result['model_id']}, {result['frames']} frames of {result['width']}x{result['height']}, "
        f"{result['dtype']}; {machine['name']} ({machine['device']}, {machine['threads']} CPU "
        f"threads), torch {machine['torch']}",
        highlight=False,
        soft_wrap=True,
    )
    for part, source in result["weights"].items():
        millions = result["parameters"][part] / 1e6
        console.print(f"  {part}: {millions:.1f} M parameters, weights: {source}", highlight=False)
    if "stages" in result:
        console.print(stage_table(result))
        if result["sizes_compared"]:
            console.print(size_table(result))
    refiner = result["refiner"]
    size = "x".join(map(str, refiner["size"]))
    table = Table(
        title=f"one forward of the refiner: latents {size}, {refiner['tokens']} tokens, "
        f"{refiner['tflop']:.3g} TFLOP"
    )
    for column in ("seconds", "TFLOP/s", "matmul TFLOP/s", "share of matmul", "peak MB"):
        table.add_column(column, justify="right")
    table.add_row(
        f"{refiner['seconds']:.3f}",
        f"{refiner['tflop_per_s']:.3g}",
        f"{refiner['matmul_tflop_per_s']:.3g}",
        f"{refiner['share_of_matmul']:.0%}",
        f"{refiner['peak_memory_mb']:.0f}",
    )
    console.print(table)
    if "variants" in refiner:
        console.print(variant_table(refiner["variants"]))


def variant_table(variants: Mapping[str, Any]) -> Table:
    table = Table("", title="the same forward, in turn")
    for column in ("seconds", "gain"):
        table.add_column(column, justify="right")
    for name, run in variants.items():
        table.add_row(name, f"{run['seconds']:.3f}", f"{run['gain']:.2f}")
    return table


def stage_table(result: Mapping[str, Any]) -> Table:
    table = Table(title=f"{result['steps']} steps of {result['sampler']}, weights loaded")
    for column in ("stage", "seconds", "peak MB"):
        table.add_column(column, justify="left" if column == "stage" else "right")
    for name, run in result["stages"].items():
        table.add_row(name, f"{run['seconds']:.3f}", f"{run['peak_memory_mb']:.0f}")
    table.add_row("all", f"{result['seconds']:.3f}", "")
    for steps, seconds in result["steps_compared"].items():
        table.add_row(f"all, {steps} steps", f"{seconds:.3f}", "")
    return table


def size_table(result: Mapping[str, Any]) -> Table:
    """All stages of every size, by numbers of steps."""
    size = f"{result['frames']}x{result['height']}x{result['width']}"
    table = Table(title="seconds of all stages")
    table.add_column("size")
    counts = sorted({*result["steps_compared"], result["steps"]})
    for column in (*(f"{count} steps" for count in counts), "peak MB"):
        table.add_column(column, justify="right")
    for name, row in (result["sizes_compared"] | {size: result}).items():
        times = {result["steps"]: row["seconds"]} | row["steps_compared"]
        peak = max(stage["peak_memory_mb"] for stage in row["stages"].values())
        table.add_row(name, *(f"{times[count]:.2f}" for count in counts), f"{peak:.0f}")
    return table
