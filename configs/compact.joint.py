"""Train the embedded model's compressor, previewer and refiner together, from its weights.

Run: bash train_vae.sh configs/compact.joint.py
"""

_base_ = ["compact.effn-f32.py"]

train = dict(
    stage=dict(type="JointStage", init_from="pretrained/compact/refiner"),
    learning_rate=dict(peak=1e-4),  # its networks are trained already
)
