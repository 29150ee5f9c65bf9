"""Finish the embedded model's refiner: what it restores is judged as pictures, behind the decoder.

Run: bash train_vae.sh configs/compact.pictures.py
"""

_base_ = ["compact.effn-f32.py"]

data = dict(
    _delete_=True,
    type="RandomClips",
    cache_dir="work_dirs/frames",
    batch_size=2,
    size=256,
    num_frames=8,
    max_downscale=1.75,
)
train = dict(
    stage=dict(
        _delete_=True,
        type="PictureStage",
        init_from="pretrained/compact/refiner.safetensors",
        position_range=[8, 64, 64],
    ),
    max_steps=1000,
    lr=2e-4,
    warmup_steps=20,
    ema_decay=0.99,
)
