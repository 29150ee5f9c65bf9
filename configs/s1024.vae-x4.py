"""The published transformer on VAE latents of a video of a quarter of the size, to enlarge it.

No weights are published for it (its first layer takes 4 condition channels, theirs 16), and the
trainer has no stage for it yet: give weights of yours.

Run: python tools/upscale.py VIDEO --condition vae --config configs/s1024.vae-x4.py --weights X
"""

_base_ = ["s1024.effn-f32.py"]

model_id = "s1024.vae-x4"
refiner = dict(condition_channels=4)
conditioning = dict(scale=1.0)  # VAE latents come scaled
