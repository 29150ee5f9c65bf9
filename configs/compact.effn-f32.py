"""The embedded model. Run: bash recon.sh

Train its refiner: bash train_vae.sh configs/compact.effn-f32.py, after the VAE (compact.vae.py),
the compressor (compact.compressor.py), and

    python tools/prepare_latents.py configs/compact.effn-f32.py --output work_dirs/latents
"""

_base_ = ["_base_/compact_models.py"]

video_list = ["example"]
data = dict(type="RandomLatents", folder="work_dirs/latents", batch_size=4, size=32, num_frames=8)
train = dict(
    stage=dict(type="RefinerStage", image_share=0.1, position_range=[8, 64, 64]),
    max_steps=1500,
    lr=8e-4,
    ema_decay=0.995,
)
