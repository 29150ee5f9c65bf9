"""Finish the embedded model's VAE decoder, behind latents that stay: perceptual and adversarial.

Run: bash train_vae.sh configs/compact.decoder.py, after compact.vae.py. See `train` for what it
starts from. Pixel losses leave 0.35 of the original's gradient energy; this brings 0.5, for 0.7 dB.
"""

_base_ = ["compact.vae.py"]

train = dict(
    stage=dict(
        perceptual_weight=0.15,
        adversarial_weight=0.03,
        train_encoder=False,
        init_from="work_dirs/compact.vae/vae.safetensors",
    ),
    max_steps=900,
    lr=6e-4,
    warmup_steps=20,
    ema_decay=0.99,
)
