"""The networks. MODELS lists what a config's `type` may name."""

from diffusion.models.compact import CompactCompressor, CompactPreviewer, CompactVAE
from diffusion.models.dit import VideoDiT
from diffusion.models.network import Network
from diffusion.models.previewer import Previewer
from diffusion.models.semantic_compressor import SemanticCompressor
from diffusion.models.video_vae import VideoVAE
from diffusion.registry import Registry

MODELS: Registry[Network] = Registry(
    "model",
    [
        CompactCompressor,
        CompactPreviewer,
        CompactVAE,
        Previewer,
        SemanticCompressor,
        VideoDiT,
        VideoVAE,
    ],
)
