"""Fit the embedded model's VAE decoder to its diffusion transformer: perceptual and adversarial.

Run: bash train_vae.sh configs/compact.decoder.py

The last stage: it decodes what the transformer restores. The VAE's encoder, and so everything
else of the cascade, stays as it is.
"""

_base_ = ["_base_/compact_models.py"]

video_list = ["example"]
data = dict(
    type="RandomClips",
    cache_dir="work_dirs/frames",
    batch_size=2,
    size=256,
    num_frames=8,
    max_downscale=1.75,
)
train = dict(
    stage=dict(
        type="DecoderStage",
        perceptual_weight=0.3,
        adversarial_weight=0.03,
        init_from="pretrained/compact/vae.safetensors",
    ),
    max_steps=1500,
    lr=3e-4,
    warmup_steps=20,
    gradient_clip=0.5,
    ema_decay=0.99,
)
