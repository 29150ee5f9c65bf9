"""attention.grid.py with full attention over all frames in every block, for the same time."""

_base_ = ["attention.grid.py"]

refiner = dict(grids=[None])
weights = dict(refiner="work_dirs/attention.full/refiner.safetensors")
train = dict(loop=dict(max_steps=135))
