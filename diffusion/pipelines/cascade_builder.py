"""Configs and weights -> a pipeline. Nothing below this file reads a config."""

import json
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, overload

import torch
from torch import nn

from diffusion.config import resolve
from diffusion.models import MODELS
from diffusion.models.autoencoder import Autoencoder
from diffusion.models.dit import VideoDiT
from diffusion.models.interfaces import Compressor, PreviewDecoder
from diffusion.models.low_rank import apply_low_rank, read_low_rank
from diffusion.models.network import Network
from diffusion.models.weights import (
    check_exists,
    load_as_stored,
    load_weights,
    read_state_dict,
)
from diffusion.noise.gaussian import GaussianDiffusion
from diffusion.noise.sampling import Sampling
from diffusion.pipelines.cascade import Cascade
from diffusion.pipelines.conditioning import Conditioning
from diffusion.pipelines.cut_options import TileSizes, Windows
from diffusion.pipelines.networks import Networks
from diffusion.registry import (
    build,
    call_with,
    check_keys,
    check_options,
    keyword_parameters,
    read_value,
    split_type,
)
from diffusion.utils.compute import Compute
from diffusion.utils.errors import ConfigError, WeightsError
from diffusion.utils.files import finish_replacing
from diffusion.utils.progress import track

PARTS = ("compressor", "previewer", "vae", "refiner")
# What each must be.
INTERFACES: dict[str, type[Network]] = {
    "compressor": Compressor,
    "previewer": PreviewDecoder,
    "vae": Autoencoder,
    "refiner": VideoDiT,
}
# Low-rank changes (see LowRank), and what of a cascade each one changes.
CHANGES = {"refiner_change": "refiner", "decoder_change": "vae.decoder"}
WEIGHTS = (*PARTS, *CHANGES)  # which have files
# What describes the model.
OF_MODEL = ("model_id", *PARTS, "noise", "conditioning", "cascade", "reconstruct")
# What `cascade` may hold beside the options of windows and tiles: of the sampler, and of speed.
OF_SAMPLER, OF_SPEED = ("euler_a_spacing", "published"), "compute"


@dataclass(frozen=True)
class Reconstruct:
    """`reconstruct` of a config: what holds where a user says no more.

    sampler, steps: that the model is meant for. Without a sampler, the one that suits it.
    num_frames, max_short_edge: the most that is taken of a video, in frames and pixels.
    published_preprocess: blur frames before they are made smaller, as the published code does.
    """

    sampler: str | None = None
    steps: int = 8
    num_frames: int | None = None
    max_short_edge: int | None = None
    published_preprocess: bool = False

    def __post_init__(self) -> None:
        for name, least in (("steps", 1), ("num_frames", 1), ("max_short_edge", 16)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ConfigError(f"{name}={value} must be at least {least}")


def check_config(config: Mapping[str, Any]) -> None:
    """Refuse what nothing reads, what is missing, and values of a wrong kind or out of range,
    before anything is loaded.

    Looks at all that describes the cascade; who reads other keys checks those.
    """
    if "model_id" not in config:
        raise ConfigError("the config has no 'model_id', the name that latents files carry")
    read_value(config["model_id"], str, "model_id")
    for name in PARTS:
        if name in config:
            network, options = split_type(MODELS, config[name], name)
            if not issubclass(network, INTERFACES[name]):
                right = [n for n, c in MODELS.classes.items() if issubclass(c, INTERFACES[name])]
                raise ConfigError(
                    f"{name}.type={network.__name__!r} is no network for this; use "
                    f"{' or '.join(right)}"
                )
            check_options(network, options, name)
    build_noise(config)
    call_with(Conditioning, config.get("conditioning", {}), "conditioning", upsampling=1)
    pipeline_options(config)
    check_keys(config.get("weights", {}), WEIGHTS, "weights")
    read_value(config.get("weights", {}), Mapping[str, str | None], "weights")


def model_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """What a config says of the model, as values of JSON: nothing of files, data or training."""
    return json.loads(json.dumps({key: config[key] for key in OF_MODEL if key in config}))


def check_weights(
    config: Mapping[str, Any], names: Collection[str], override: str | Path | None = None
) -> None:
    """Refuse a cascade of the parts `names` of which a file is missing, before any is loaded."""
    paths = weights_of(config, override)
    for name in names:
        if name not in paths:
            raise WeightsError(
                f"the config names no weights for {name!r}; see `weights` in configs/"
            )
    changes = [name for name, place in CHANGES.items() if place.split(".")[0] in names]
    for name in (*names, *changes):
        if name in paths:
            check_exists(paths[name], f"weights.{name}")


@overload
def build_part(config: Mapping[str, Any], name: Literal["compressor"]) -> Compressor: ...
@overload
def build_part(config: Mapping[str, Any], name: Literal["vae"]) -> Autoencoder: ...
@overload
def build_part(config: Mapping[str, Any], name: str) -> Network: ...


def build_part(config: Mapping[str, Any], name: str) -> Network:
    """One network of the cascade, with random weights."""
    if name not in config:
        raise ConfigError(f"the config has no {name!r}")
    return build(MODELS, config[name], name)


def weights_of(config: Mapping[str, Any], override: str | Path | None = None) -> dict[str, Path]:
    """Part -> file or folder of its weights.

    override: a folder (of a training or of a whole cascade) whose <part>.safetensors, or folders
        <part>, replace the config's, or one file, which is the refiner's. A change holds for the
        file that it was learnt from: it goes when that part is replaced. None in a config is no
        file: with `weights.vae` of your own, set `weights.decoder_change=None`.
    """
    weights = config.get("weights", {})
    paths = {name: resolve(path) for name, path in weights.items() if path is not None}
    if override is None:
        return paths
    override = Path(override).expanduser()
    if override.is_file():
        return replaced(paths, {"refiner": override})
    if not override.is_dir():
        raise WeightsError(f"{override}: no such file or folder of weights")
    finish_replacing(override)
    places = [(name, override / f"{name}{end}") for name in WEIGHTS for end in ("", ".safetensors")]
    found = {name: path for name, path in places if path.exists()}
    if not found:
        raise WeightsError(
            f"{override}: holds none of {', '.join(f'{n}.safetensors' for n in WEIGHTS)}"
        )
    return replaced(paths, found)


def replaced(paths: Mapping[str, Path], found: Mapping[str, Path]) -> dict[str, Path]:
    """`paths` with those of `found` in place, and without the changes of what these replace."""
    gone = {name for name, place in CHANGES.items() if place.split(".")[0] in found}
    return {name: path for name, path in paths.items() if name not in gone} | dict(found)


def load_parts(
    config: Mapping[str, Any],
    names: tuple[str, ...],
    override: str | Path | None = None,
    *,
    changed: bool = False,
) -> dict[str, Network]:
    """Networks with their weights. A part without a path in `weights` is an error.

    changed: as the cascade has them, with their low-rank changes; otherwise as they are alone.
    """
    paths = weights_of(config, override)
    check_weights(config, names, override)
    parts = {name: build_part(config, name) for name in names}
    for name in track(names):
        load_weights(parts[name], paths[name])
    for change, place in CHANGES.items():
        part, _, module = place.partition(".")
        if changed and part in parts and change in paths:
            apply_low_rank(parts[part].get_submodule(module), paths[change])
    return parts


def stored_networks(
    config: Mapping[str, Any], override: str | Path | None = None
) -> Iterator[tuple[str, Network]]:
    """Each network, and each change beside it, by name, as its file has it; one at a time."""
    paths = weights_of(config, override)
    check_weights(config, PARTS, override)
    for name in PARTS:
        network = build_part(config, name)
        load_as_stored(network, read_state_dict(paths[name]), paths[name])
        yield name, network
    for name in CHANGES:
        if name in paths:
            yield name, read_low_rank(paths[name])


def reconstruct_of(config: Mapping[str, Any]) -> Reconstruct:
    return call_with(Reconstruct, config.get("reconstruct", {}), "reconstruct")


def sampling_of(
    config: Mapping[str, Any], sampler: str | None = None, steps: int | None = None
) -> Sampling:
    """How the config's model is sampled, by its `reconstruct` or as given here instead.

    Raises ConfigError for a sampler that cannot follow the model.
    """
    cascade, defaults = config.get("cascade", {}), reconstruct_of(config)
    options = {name: cascade[name] for name in OF_SAMPLER if name in cascade}
    sampling = call_with(Sampling, options, "cascade").changed(defaults.sampler, defaults.steps)
    return sampling.changed(sampler, steps).of(build_noise(config))


def pipeline_options(config: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of Cascade that are options of a config."""
    cascade = config.get("cascade", {})
    cut = {"windows": Windows, "tiles": TileSizes}
    keys = {name: list(keyword_parameters(target)) for name, target in cut.items()}
    check_keys(cascade, {*keys["windows"], *keys["tiles"], *OF_SAMPLER, OF_SPEED}, "cascade")
    options: dict[str, Any] = {}
    for name, target in cut.items():
        own = {key: cascade[key] for key in keys[name] if key in cascade}
        options[name] = call_with(target, own, "cascade")
    options["compute"] = call_with(Compute, cascade.get(OF_SPEED, {}), "cascade.compute")
    return {**options, "sampling": sampling_of(config)}


def build_noise(config: Mapping[str, Any]) -> GaussianDiffusion:
    return call_with(GaussianDiffusion, config.get("noise", {}), "noise")


def build_conditioning(
    config: Mapping[str, Any], compressor: Compressor | None, vae: Autoencoder | None
) -> Conditioning | None:
    if compressor is None or vae is None:
        return None
    upsampling = compressor.spatial_compression // vae.spatial_compression
    options = config.get("conditioning", {})
    return call_with(Conditioning, options, "conditioning", upsampling=upsampling)


def build_cascade(
    config: Mapping[str, Any],
    *,
    weights: str | Path | None = None,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    only: tuple[str, ...] = PARTS,
) -> Cascade:
    """The pipeline that a config describes, with its weights (see `weights_of` for `weights`).

    only: the parts that will be used; the others are not loaded. Without the refiner there is
        nothing that it restored, and the VAE decodes what it encoded.
    """
    check_config(config)
    parts = load_parts(config, only, weights, changed="refiner" in only)
    return assemble(config, parts, device=device, dtype=dtype)


def assemble(
    config: Mapping[str, Any],
    parts: Mapping[str, nn.Module],
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    live: bool = False,
) -> Cascade:
    """The pipeline around networks that are at hand already, and stay as they are.

    live: see Cascade.
    """
    named: Any = {name: parts.get(name) for name in PARTS}
    networks = Networks(**named)
    return Cascade(
        networks,
        noise=build_noise(config),
        conditioning=build_conditioning(config, networks.compressor, networks.vae),
        **pipeline_options(config),
        device=device,
        dtype=dtype,
        live=live,
    )
