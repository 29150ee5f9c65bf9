"""Train the embedded model's compressor and previewer together (f32, 16 channels).

Run: bash train_vae.sh configs/compact.compressor.py
Expect 27.5 dB for the preview on whole frames at 512 pixels (their PCA: 26.6).
"""

_base_ = ["_base_/compact_models.py"]

video_list = ["example"]
data = dict(
    type="RandomClips", cache_dir="work_dirs/frames", batch_size=16, size=256, max_downscale=1.5
)
train = dict(
    stage=dict(type="CompressorStage"),
    loop=dict(max_steps=2500, gradient_clip=0.05),
    learning_rate=dict(peak=5e-4),
)
