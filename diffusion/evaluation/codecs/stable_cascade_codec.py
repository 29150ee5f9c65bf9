"""StableCascade's decoder, through diffusers, on the latents of its own encoder."""

from pathlib import Path
from typing import Any

import torch
from huggingface_hub import hf_hub_download
from torch import Tensor

from diffusion.config import resolve
from diffusion.evaluation.codecs.codec import (
    Codec,
    CodecOptions,
    Encoded,
    latent_facts,
    restored,
    store,
    tensors_digest,
    weights_digest,
)
from diffusion.evaluation.codecs.diffusers_codec import cannot_be_loaded
from diffusion.evaluation.quiet_libraries import quiet_diffusers, quiet_transformers
from diffusion.models.semantic_compressor import SemanticCompressor
from diffusion.models.weights import load_weights
from diffusion.pipelines.padding import pad_reflect
from diffusion.utils.compute import inference
from diffusion.utils.errors import WeightsError
from diffusion.utils.frames import map_frames

ENCODER = "effnet_encoder.safetensors"
STEPS = 10  # the pipeline's default, as is no guidance


class StableCascadeCodec(Codec):
    """Wuerstchen's stages B and A (Pernias et al. 2023, arXiv:2306.00637), frame by frame.

    Latents of an EfficientNetV2-S, 32 times smaller per side, condition a diffusion model of the
    latents of a VQGAN. The prompt is empty.

    source: a folder in the form of the repository stabilityai/stable-cascade, or a repository's
        name. The encoder is the folder's effnet_encoder.safetensors, else that of
        pretrained/download.sh.
    """

    def __init__(self, name: str, source: str, options: CodecOptions):
        self.name, self.options = name, options
        self.compressor = SemanticCompressor()
        load_weights(self.compressor, encoder_file(source))
        self.compressor.to(options.device).eval().requires_grad_(False)
        self.pipeline = load_pipeline(source, self.compressor.spatial_compression)
        self.pipeline.to(options.device)
        with inference(options.device, options.dtype):
            text, pooled, _, _ = self.pipeline.encode_prompt(options.device, 1, 1, False, prompt="")
        self.prompt = {"prompt_embeds": text, "prompt_embeds_pooled": pooled}
        self.pipeline.text_encoder = None  # its work is done

    def encode(self, video: Tensor) -> Encoded:
        padded = pad_reflect(video, self.compressor.spatial_compression)
        with inference(self.options.device, self.options.dtype):
            return store(self.compressor.encode(padded.to(self.options.device)), video)

    def decode(self, encoded: Encoded) -> Tensor:
        generator = torch.Generator(self.options.device).manual_seed(self.options.seed)

        def picture(latents: Tensor) -> Tensor:
            """(1, 16, h, w) -> (1, 3, H, W)."""
            out = self.pipeline(
                latents,
                num_inference_steps=STEPS,
                generator=generator,
                output_type="pt",
                **self.prompt,
            )
            return 2 * out.images.float() - 1

        with inference(self.options.device, self.options.dtype):
            latents = encoded.latents(self.options.device)
            return restored(map_frames(picture, latents, 1), encoded)

    def facts(self) -> dict[str, Any]:
        encoder = self.compressor
        networks = [encoder, self.pipeline.decoder, self.pipeline.vqgan]
        return latent_facts(encoder.spatial_compression, 1, encoder.latent_channels, networks)

    def made_with(self) -> dict[str, Any]:
        import diffusers

        return {
            "class": type(self.pipeline).__name__,
            "weights": {
                "compressor": weights_digest(self.compressor),
                "decoder": weights_digest(self.pipeline.decoder),
                "vqgan": weights_digest(self.pipeline.vqgan),
                "empty prompt": tensors_digest(self.prompt),
            },
            "scheduler": type(self.pipeline.scheduler).__name__,
            "steps": STEPS,
            "seed": self.options.seed,
            "dtype": str(self.options.dtype),
            "diffusers": diffusers.__version__,
        }


def encoder_file(source: str) -> Path:
    """EfficientNet's weights: the folder's, else those of download.sh, else the hub's."""
    for path in (Path(source) / ENCODER, resolve(f"pretrained/{ENCODER}")):
        if path.is_file():
            return path
    if Path(source).is_dir():
        raise WeightsError(
            f"stablecascade:{source}: holds no {ENCODER}; put it there, or run bash "
            "pretrained/download.sh"
        )
    try:
        return Path(hf_hub_download(source, ENCODER))
    except Exception as error:  # whatever the hub makes the library raise
        raise cannot_be_loaded(f"stablecascade:{source}", error) from error


def load_pipeline(source: str, compression: int) -> Any:
    """compression: pixels per side of the latents; the pipeline's own default is 42.67."""
    from diffusers import (
        DDPMWuerstchenScheduler,
        StableCascadeDecoderPipeline,
        StableCascadeUNet,
    )
    from diffusers.pipelines.stable_cascade.pipeline_stable_cascade import PaellaVQModel
    from transformers import CLIPTextModelWithProjection, CLIPTokenizer

    # One by one: the repository's list names a module of diffusers that newer releases have moved.
    networks = {
        "decoder": StableCascadeUNet,
        "vqgan": PaellaVQModel,
        "text_encoder": CLIPTextModelWithProjection,
    }
    others = {"tokenizer": CLIPTokenizer, "scheduler": DDPMWuerstchenScheduler}
    try:
        with quiet_transformers(), quiet_diffusers():
            parts = {
                name: kind.from_pretrained(source, subfolder=name, use_safetensors=True)
                for name, kind in networks.items()  # no pickles
            } | {
                name: kind.from_pretrained(source, subfolder=name) for name, kind in others.items()
            }
            vqgan = parts["vqgan"].config
            pixels = vqgan.up_down_scale_factor * 2 ** (vqgan.levels - 1)
            pipeline = StableCascadeDecoderPipeline(**parts, latent_dim_scale=compression / pixels)
    except Exception as error:  # whatever a damaged folder or the hub makes the library raise
        raise cannot_be_loaded(f"stablecascade:{source}", error) from error
    pipeline.set_progress_bar_config(disable=True)
    return pipeline
