"""A cascade as a folder of diffusers: subfolders for its networks and scheduler, and an index.

Nothing in it is run on loading, but by who trusts its pipeline.py.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import __version__

from diffusion.config import load_config
from diffusion.models.network import Network
from diffusion.pipelines.cascade import Cascade
from diffusion.pipelines.cascade_builder import (
    CHANGES,
    PARTS,
    build_cascade,
    build_noise,
    model_of,
    sampling_of,
)
from diffusion.utils.errors import WeightsError
from diffusion.utils.files import make_folder, replacing, write_json
from diffusion.utils.saved_cascade import INDEX, LIBRARY, read_json

CLASS, PIPELINE_FILE = "CascadePipeline", "pipeline.py"
CODE = f'''"""For DiffusionPipeline.from_pretrained(folder, trust_remote_code=True)."""

from {LIBRARY} import {CLASS}

__all__ = ["{CLASS}"]
'''


def write_cascade_folder(
    folder: str | Path,
    config: Mapping[str, Any],
    networks: Iterable[tuple[str, Network]],
    *,
    variant: str | None = None,
    max_shard_size: str = "10GB",
) -> None:
    """networks: by their names in PARTS and CHANGES. config: what they are parts of."""
    folder = make_folder(folder)
    index: dict[str, Any] = {name: [None, None] for name in (*PARTS, *CHANGES)}
    for name, network in networks:
        network.save_pretrained(folder / name, variant=variant, max_shard_size=max_shard_size)
        index[name] = [LIBRARY, type(network).__name__]
    scheduler = sampling_of(config).scheduler(build_noise(config))
    scheduler.save_pretrained(folder / "scheduler")
    index["scheduler"] = ["diffusers", type(scheduler).__name__]
    index["settings"] = {k: v for k, v in model_of(config).items() if k not in PARTS}
    index["_diffusers_version"] = __version__
    write_json(folder / INDEX, index)
    write_pipeline_file(folder)


def write_pipeline_file(folder: Path) -> None:
    """Name in the index, and write, the code that finds the pipeline's class."""
    index = read_json(folder / INDEX)
    index["_class_name"] = [Path(PIPELINE_FILE).stem, CLASS]
    index.pop("_name_or_path", None)  # a path of the machine that it was loaded on
    with replacing(folder / PIPELINE_FILE) as partial:
        partial.write_text(CODE)
    write_json(folder / INDEX, dict(sorted(index.items())))


def save_cascade(cascade: Cascade, config: Mapping[str, Any], folder: str | Path) -> None:
    """Write a folder from which `load_cascade`, and CascadePipeline, make it again.

    Of a cascade that was built without some parts, those that it has.
    """
    parts = {name: getattr(cascade.networks, name) for name in PARTS}
    networks = [(name, part) for name, part in parts.items() if part is not None]
    write_cascade_folder(folder, config, networks)


def load_cascade(
    folder: str | Path,
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    only: tuple[str, ...] | None = None,
) -> Cascade:
    """What `save_cascade` wrote. (An older folder has a config.py, which is code and is run.)

    only: see build_cascade; by default all parts that were saved, and never others.
    """
    config = load_config(folder)
    saved = tuple(name for name in PARTS if name in config["weights"])
    for name in only or ():
        if name not in saved:
            raise WeightsError(f"{folder}: holds no {name}; that cascade was built without it")
    return build_cascade(config, device=device, dtype=dtype, only=only or saved)
