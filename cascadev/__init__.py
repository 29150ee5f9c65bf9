"""CascadeV from Python: everything here may be relied on; what lies in `diffusion` may change.

    from cascadev import CascadePipeline

    pipe = CascadePipeline.from_pretrained("pretrained/compact", torch_dtype="auto", device="auto")
    latents = pipe.encode("my_video.mp4")
    frames = pipe.decode(latents, num_inference_steps=8, output_type="np").frames

Names are imported when they are first used, so that this takes no time.
"""

from importlib import import_module, util
from pathlib import Path
from typing import Any

_PUBLIC = {
    "diffusion.hub.cascade_pipeline": ("CascadePipeline", "CascadeOutput"),
    "diffusion.hub.autoencoder_cascadev": ("AutoencoderCascadeV",),
    "diffusion.models.compact": ("CompactCompressor", "CompactPreviewer", "CompactVAE"),
    "diffusion.models.dit": ("VideoDiT",),
    "diffusion.models.low_rank": ("LowRank",),
    "diffusion.models.previewer": ("Previewer",),
    "diffusion.models.semantic_compressor": ("SemanticCompressor",),
    "diffusion.models.video_vae": ("VideoVAE",),
    "diffusion.data.latents": ("LatentsReader", "LatentsWriter", "LatentsInfo"),
    "diffusion.data.video.clip": ("Clip", "read_video"),
    "diffusion.data.video.video_writer": ("VideoWriter",),
    "diffusion.utils.errors": ("UserError", "ConfigError", "VideoError", "WeightsError"),
}
_MODULE_OF = {name: module for module, names in _PUBLIC.items() for name in names}

# diffusers looks for its base class in the module that a pipeline's index names
_NOT_PUBLIC = {"ModelMixin": "diffusers"}

__all__ = list(_MODULE_OF)


def __getattr__(name: str) -> Any:
    module = {**_MODULE_OF, **_NOT_PUBLIC}.get(name)
    if module is None:
        raise AttributeError(f"module 'cascadev' has no attribute {name!r}")
    value = getattr(import_module(module), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def _check_diffusion() -> None:
    """Refuse another project's package `diffusion`: it is a common name."""
    found = util.find_spec("diffusion")
    places: list[str] = []
    if found is not None:
        places = list(found.submodule_search_locations or filter(None, [found.origin]))
    if not any((Path(place) / "hub" / "cascade_pipeline.py").is_file() for place in places):
        raise ImportError(
            f"cascadev needs its own package `diffusion`, but Python finds {places or 'none'}: "
            "put this project in front of it in PYTHONPATH, or install it"
        )


_check_diffusion()
