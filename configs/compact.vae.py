"""Train the embedded model's VAE (f8, 4 channels). Run: bash train_vae.sh configs/compact.vae.py"""

_base_ = ["_base_/compact_models.py"]

video_list = ["example"]
data = dict(
    type="RandomClips", cache_dir="work_dirs/frames", batch_size=8, size=256, max_downscale=2.0
)
train = dict(
    stage=dict(type="VAEStage", perceptual_weight=0.1),
    max_steps=3000,
    lr=5e-4,
)
