"""The embedded model with a student of one step in place of eight.

Run: bash recon.sh --config configs/compact.one-step.py

Train the student: bash train_vae.sh configs/compact.one-step.py
"""

_base_ = ["compact.decoder.py"]

weights = dict(refiner_change="pretrained/compact/one_step")
reconstruct = dict(steps=1)
train = dict(
    stage=dict(
        _delete_=True,
        type="OneStepStage",
        teacher="pretrained/compact/refiner",
        rank=16,
        perceptual_weight=2.0,
        adversarial_weight=0.02,
        position_range=[8, 64, 64],
    ),
    loop=dict(max_steps=800),
    learning_rate=dict(peak=3e-4, warmup_steps=100),
)
