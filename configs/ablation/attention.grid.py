"""A small refiner with the embedded model's grids, to be compared with attention.full.py and
attention.2plus1d.py: each trains for the time that this one takes for its steps.

Run: bash train_vae.sh configs/ablation/attention.grid.py, on the clips of compact.latents.py
"""

_base_ = ["../compact.latents.py"]

# Nothing but attention lets positions see one another.
refiner = dict(hidden_size=192, depth=6, num_heads=4, local_mixing=False)
weights = dict(refiner="work_dirs/attention.grid/refiner.safetensors")
train = dict(loop=dict(max_steps=350), learning_rate=dict(peak=1e-3))
