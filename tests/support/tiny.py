"""A cascade of a few thousand parameters, with random weights, as files that commands can use."""

import importlib.util
from pathlib import Path
from types import ModuleType

import torch

from diffusion.config import ROOT, load_config
from diffusion.models.weights import save_weights
from diffusion.pipelines.cascade_builder import PARTS, assemble, build_part

CONFIG = """
_base_ = [{base!r}]
model_id = "tiny"
compressor = dict(channels=[8, 8, 8], depths=[1, 1, 1])
previewer = dict(channels=[8, 8, 8], depths=[1, 1, 1])
vae = dict(
    encoder_channels=[8, 8], encoder_depths=[1, 1], decoder_channels=[8, 8], decoder_depths=[1, 1]
)
refiner = dict(hidden_size=48, depth=2, num_heads=2, grids=[[1, 4], None])
weights = dict(
    _delete_=True,  # the embedded model's change of its decoder is none of these networks'
    compressor={folder!r} + "/compressor.safetensors",
    previewer={folder!r} + "/previewer.safetensors",
    vae={folder!r} + "/vae.safetensors",
    refiner={folder!r} + "/refiner.safetensors",
)
"""


def write_config(path: Path, extra: str = "", weights: Path | None = None) -> Path:
    """A config file of the tiny cascade; `extra` is appended to it."""
    base = str(ROOT / "configs" / "_base_" / "compact_models.py")
    path.write_text(CONFIG.format(base=base, folder=str(weights or path.parent)) + extra)
    return path


def random_parts(config) -> dict[str, torch.nn.Module]:
    """Networks with no weight left at zero, so that every layer has its say."""
    torch.manual_seed(0)
    parts = {name: build_part(config, name) for name in PARTS}
    with torch.no_grad():
        for part in parts.values():
            for parameter in part.parameters():
                parameter += 0.02 * torch.randn_like(parameter)
    return parts


def random_cascade(config):
    return assemble(config, random_parts(config))


def write_cascade(folder: Path) -> Path:
    """tiny.py and the weights it names; the path of tiny.py."""
    path = write_config(folder / "tiny.py")
    for name, part in random_parts(load_config(path)).items():
        save_weights(part, folder / f"{name}.safetensors", {"part": name})
    return path


def tool(name: str) -> ModuleType:
    """tools/<name>.py as a module."""
    spec = importlib.util.spec_from_file_location(f"tool_{name}", ROOT / "tools" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
