"""The published model with the published inference, defects included, to compare with its results.

Frames are blurred before resizing, timesteps are rounded to half precision, attention is computed
in float32, windows and tiles overwrite each other, and the VAE decodes 4 frames at a time.

Run: bash recon.sh my_video.mp4 --config configs/s1024.effn-f32.published.py
"""

_base_ = ["s1024.effn-f32.py"]

refiner = dict(timestep_dtype="float16", fp32_attention=True)
vae = dict(decode_chunk=4, decode_overlap=0)
cascade = dict(published=True)
reconstruct = dict(published_preprocess=True)
