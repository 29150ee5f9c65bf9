"""Train the embedded model's compressor and previewer together (f32, 16 channels).

Run: bash train_vae.sh configs/compact.compressor.py
"""

_base_ = ["_base_/compact_models.py"]

video_list = ["example"]
data = dict(
    type="RandomClips", cache_dir="work_dirs/frames", batch_size=16, size=256, max_downscale=2.0
)
train = dict(
    stage=dict(type="CompressorStage"),
    max_steps=3000,
    lr=5e-4,
)
