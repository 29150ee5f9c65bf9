"""One forward of the refiner in several ways, in turn, so that their ratio is that of one run."""

import statistics
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from diffusion.models.dit import VideoDiT
from diffusion.models.grid_attention import ATTENTION, GridAttention, attention_backend
from diffusion.utils.devices import DTYPE_NAMES
from diffusion.utils.errors import ConfigError
from diffusion.utils.measuring import Timer


@dataclass(frozen=True)
class Variant:
    """compiled: every block by itself ("regional"), which is soon done and once for all blocks."""

    dtype: torch.dtype
    attention: str = "auto"
    fp32_attention: bool = False
    compiled: bool = False

    @property
    def name(self) -> str:
        parts = [DTYPE_NAMES[self.dtype], self.attention]
        parts += ["fp32 attention"] * self.fp32_attention + ["compiled"] * self.compiled
        return ", ".join(parts)


PLAIN = Variant(torch.float32, "sdpa", fp32_attention=True)
"""What gains are measured against."""


def variants_of(dtype: torch.dtype, compare: Sequence[str]) -> list[Variant]:
    """PLAIN and the usual forward in `dtype`, and others by what is compared.

    compare: any of "dtypes", "attention", "compile".
    """
    variants = [PLAIN, Variant(dtype)]
    if "dtypes" in compare:
        variants += [Variant(torch.float32), Variant(torch.bfloat16)]
        variants += [Variant(torch.bfloat16, fp32_attention=True)]
    if "attention" in compare:
        variants += [Variant(dtype, name) for name in ATTENTION if _is_installed(name)]
    if "compile" in compare:
        variants += [Variant(dtype, compiled=True)]
    return list(dict.fromkeys(variants))


def compare_variants(
    refiner: VideoDiT, forward: Callable[[], Tensor], variants: list[Variant], timer: Timer
) -> dict[str, dict[str, Any]]:
    """Name -> seconds (the median), all runs, and `gain`: how many times as fast as PLAIN.

    forward: calls the refiner on a clip.
    """
    runs: dict[str, list[float]] = {variant.name: [] for variant in variants}
    for _ in range(timer.warmup + timer.repeat):
        for variant in variants:
            with as_variant(refiner, variant), torch.no_grad():
                forward()  # converted weights are laid out anew at the first call
                runs[variant.name].append(timer.once(forward))
    seconds = {name: statistics.median(times[timer.warmup :]) for name, times in runs.items()}
    return {
        name: {
            "seconds": seconds[name],
            "runs": times[timer.warmup :],
            "gain": seconds[PLAIN.name] / seconds[name],
        }
        for name, times in runs.items()
    }


@contextmanager
def as_variant(refiner: VideoDiT, variant: Variant) -> Iterator[None]:
    """Within the block, the refiner computes in that way."""
    dtype = refiner.dtype
    layers = [module for module in refiner.modules() if isinstance(module, GridAttention)]
    before = [(layer.attend, layer.fp32_attention) for layer in layers]
    refiner.to(variant.dtype)
    for layer in layers:
        layer.attend = attention_backend(variant.attention)
        layer.fp32_attention = variant.fp32_attention
    for block in refiner.blocks if variant.compiled else ():
        block.compile()
    try:
        yield
    finally:
        for layer, (attend, fp32_attention) in zip(layers, before, strict=True):
            layer.attend, layer.fp32_attention = attend, fp32_attention
        for block in refiner.blocks:
            block._compiled_call_impl = None
        refiner.to(dtype)


def _is_installed(attention: str) -> bool:
    try:
        attention_backend(attention)
    except ConfigError:
        return False
    return True
