"""Fit the embedded model's VAE decoder to its diffusion transformer: perceptual and adversarial.

Run: bash train_vae.sh configs/compact.decoder.py

The last stage, a change of low rank in a file of its own (`weights.decoder_change`): the cascade
decodes with it what the transformer restored, and the VAE alone stays as it is. To go on from the
embedded one:

    --cfg-options train.stage.init_from=pretrained/compact/decoder_change
"""

_base_ = ["_base_/compact_models.py"]

video_list = ["example"]
data = dict(
    type="RandomClips",
    cache_dir="work_dirs/frames",
    batch_size=4,
    size=256,
    num_frames=8,
    max_downscale=1.75,
)
train = dict(
    stage=dict(
        type="DecoderStage",
        rank=28,
        picture_frames=4,
        perceptual_weight=3.0,
        adversarial_weight=0.1,
    ),
    loop=dict(max_steps=560, gradient_clip=0.5, ema_decay=0.99),
    learning_rate=dict(peak=7e-4, warmup_steps=20),
)
