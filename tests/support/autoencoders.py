"""Autoencoders of diffusers with a few thousand random weights, one per class."""

from pathlib import Path

import diffusers
import torch
from torch import nn

SMALL = {
    "AutoencoderKLWan": {
        "base_dim": 3,
        "z_dim": 4,
        "dim_mult": [1, 1, 1, 1],
        "num_res_blocks": 1,
        "temperal_downsample": [False, True, True],
        "latents_mean": [0.0] * 4,
        "latents_std": [1.0] * 4,
    },
    "AutoencoderKLLTXVideo": {
        "latent_channels": 8,
        "block_out_channels": (8, 8, 8, 8),
        "decoder_block_out_channels": (8, 8, 8, 8),
        "layers_per_block": (1, 1, 1, 1, 1),
        "decoder_layers_per_block": (1, 1, 1, 1, 1),
    },
    "AutoencoderKLCogVideoX": {
        "block_out_channels": (8, 8, 8, 8),
        "latent_channels": 4,
        "layers_per_block": 1,
        "norm_num_groups": 2,
    },
    "AutoencoderKLMagvit": {
        "block_out_channels": (8, 8, 8, 8),
        "latent_channels": 4,
        "layers_per_block": 1,
        "norm_num_groups": 2,
    },
    "AutoencoderKLTemporalDecoder": {
        "block_out_channels": (32, 32, 32, 32),
        "down_block_types": 4 * ("DownEncoderBlock2D",),
    },
    "AutoencoderDC": {
        "latent_channels": 4,
        "attention_head_dim": 2,
        "encoder_block_types": ("ResBlock", "EfficientViTBlock"),
        "decoder_block_types": ("ResBlock", "EfficientViTBlock"),
        "encoder_block_out_channels": (8, 8),
        "decoder_block_out_channels": (8, 8),
        "encoder_qkv_multiscales": ((), (5,)),
        "decoder_qkv_multiscales": ((), (5,)),
        "encoder_layers_per_block": (1, 1),
        "decoder_layers_per_block": (1, 1),
        "downsample_block_type": "conv",
        "upsample_block_type": "interpolate",
        "decoder_norm_types": "rms_norm",
        "decoder_act_fns": "silu",
    },
    "AutoencoderTiny": {
        "encoder_block_out_channels": (8, 8, 8, 8),
        "decoder_block_out_channels": (8, 8, 8, 8),
        "num_encoder_blocks": (1, 1, 1, 1),
        "num_decoder_blocks": (1, 1, 1, 1),
    },
}


def small_autoencoder(name: str) -> nn.Module:
    torch.manual_seed(0)
    return getattr(diffusers, name)(**SMALL[name]).eval()


def save_stable_cascade(folder: Path) -> None:
    """StableCascade in small, but for its encoder, which has one size: random weights."""
    from diffusers.pipelines.stable_cascade.pipeline_stable_cascade import PaellaVQModel
    from safetensors.torch import save_file
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection, CLIPTokenizer

    from diffusion.models.semantic_compressor import SemanticCompressor

    torch.manual_seed(0)
    layer = ("SDCascadeResBlock", "SDCascadeTimestepBlock")
    decoder = diffusers.StableCascadeUNet(
        in_channels=4,
        out_channels=4,
        patch_size=2,
        conditioning_dim=16,
        block_out_channels=(8, 16),
        num_attention_heads=(-1, 2),
        down_num_layers_per_block=(1, 1),
        up_num_layers_per_block=(1, 1),
        block_types_per_layer=(layer, (*layer, "SDCascadeAttnBlock")),
        clip_text_pooled_in_channels=8,
        effnet_in_channels=16,
        timestep_conditioning_type=("sca",),
    )
    vqgan = PaellaVQModel(
        levels=2, bottleneck_blocks=1, embed_dim=8, latent_channels=4, num_vq_embeddings=8
    )
    text = CLIPTextConfig(
        hidden_size=8,
        intermediate_size=8,
        projection_dim=8,
        num_hidden_layers=1,
        num_attention_heads=1,
        vocab_size=2,
        bos_token_id=0,
        eos_token_id=1,
        max_position_embeddings=8,
    )
    vocabulary = {"<|startoftext|>": 0, "<|endoftext|>": 1}
    diffusers.StableCascadeDecoderPipeline(
        decoder=decoder.eval(),
        tokenizer=CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=8),
        text_encoder=CLIPTextModelWithProjection(text).eval(),
        scheduler=diffusers.DDPMWuerstchenScheduler(),
        vqgan=vqgan.eval(),
    ).save_pretrained(folder)
    save_file(SemanticCompressor().state_dict(), folder / "effnet_encoder.safetensors")
