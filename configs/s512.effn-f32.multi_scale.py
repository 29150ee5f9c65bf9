"""Train the published model on 16 frames at 512 and 4 frames at 1024 pixels, in turn.

Clips have 1024 pixels: half of the steps see four crops of 512 pixels, the others whole clips whose
frames are cut in four groups. (16 frames, so that a quarter still divides into the 4 cells of the
grids in time.)

Run: bash train_vae.sh configs/s512.effn-f32.multi_scale.py --dtype fp16
"""

_base_ = ["s1024.effn-f32.py"]

refiner = dict(position_interpolation=1.0)  # twice as fine at 1024 pixels, as published there
cascade = dict(window=16, window_overlap=8, tile=64)
reconstruct = dict(max_short_edge=512, num_frames=16)
data = dict(num_frames=16, batch_size=1)
train = dict(stage=dict(latent_crop=64, multi_scale=True))
validation = dict(num_frames=16, size=512)
