"""Train the embedded model's VAE (f8, 4 channels). Run: bash train_vae.sh configs/compact.vae.py

Expect 30.8 dB on whole frames at 512 pixels (their PCA: 27.2). Then the decoder alone, for pixels
and nothing else, which leaves the latents as they are:

    bash train_vae.sh configs/compact.vae.py --work-dir work_dirs/compact.vae.pixels --cfg-options
        train.stage.init_from=work_dirs/compact.vae/vae.safetensors train.stage.train_encoder=False
        train.stage.pixel_loss=log_rmse train.stage.perceptual_weight=0 train.loop.max_steps=3000
"""

_base_ = ["_base_/compact_models.py"]

video_list = ["example"]
data = dict(
    type="RandomClips", cache_dir="work_dirs/frames", batch_size=8, size=256, max_downscale=1.75
)
train = dict(
    stage=dict(type="VAEStage", perceptual_weight=0.1),
    loop=dict(max_steps=1500, gradient_clip=0.5),
    learning_rate=dict(peak=5e-4),
)
