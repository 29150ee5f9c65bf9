"""Train the embedded model's refiner on encoded clips, as the weights in the repository were.

Run: .venv/bin/python tools/prepare_latents.py configs/compact.latents.py --output work_dirs/latents
     bash train_vae.sh configs/compact.latents.py

The first encodes `video_list`; what it leaves is all that the second reads.
"""

_base_ = ["compact.effn-f32.py"]

data = dict(
    _delete_=True,
    type="RandomLatents",
    folder="work_dirs/latents",
    batch_size=4,
    size=32,  # of VAE latents: 256 pixels
    num_frames=8,
)
