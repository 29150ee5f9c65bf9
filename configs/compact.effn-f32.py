"""The embedded model. Run: bash recon.sh

Train its refiner on your videos: put them into `video_list` and run bash train_vae.sh. It starts
from random weights; from the embedded ones with

    --cfg-options train.stage.init_from=pretrained/compact/refiner

The steps of large trainings cost less on clips that are encoded once: compact.latents.py.
"""

_base_ = ["_base_/compact_models.py"]

video_list = ["example"]
data = dict(type="VideoClips", batch_size=4, size=256, num_frames=8, policy="random")
train = dict(
    stage=dict(type="RefinerStage", image_share=0.1, position_range=[8, 64, 64]),
    loop=dict(max_steps=1500, ema_decay=0.995),
    learning_rate=dict(peak=8e-4),
)
validation = dict(interval=250, num_clips=2, num_frames=8, size=256)
