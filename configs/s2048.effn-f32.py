"""The published model at its larger scale: 2048 pixels and a quarter of the frames.

Positions lie half as far apart as at 1024 pixels, and a window has 4 frames (a quarter of 16; of 8,
the 2 left would not divide into the grids' 4 cells in time). Fetch the weights: bash
pretrained/download.sh

Run: bash recon.sh my_video.mp4 --config configs/s2048.effn-f32.py
"""

_base_ = ["s1024.effn-f32.py"]

refiner = dict(position_interpolation=4.0)
cascade = dict(window=4, window_overlap=2, tile=256)
reconstruct = dict(max_short_edge=2048, num_frames=4)
