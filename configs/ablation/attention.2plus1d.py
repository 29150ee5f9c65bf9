"""attention.grid.py with attention within frames and along time in turn, for the same time."""

_base_ = ["attention.grid.py"]

refiner = dict(grids=["spatial", "temporal"])
weights = dict(refiner="work_dirs/attention.2plus1d/refiner.safetensors")
train = dict(loop=dict(max_steps=405))
