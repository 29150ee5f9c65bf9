"""Teach the embedded model's refiner to take four steps where it took eight.

Run: bash train_vae.sh configs/compact.student.py
     bash recon.sh --config configs/compact.student.py --weights work_dirs/compact.student

Then two, and one, each from the student before:

    bash train_vae.sh configs/compact.student.py --work-dir work_dirs/student2 --cfg-options \\
        train.stage.steps=2 reconstruct.steps=2 \\
        train.stage.teacher=work_dirs/compact.student/refiner.safetensors
"""

_base_ = ["compact.effn-f32.py"]

reconstruct = dict(sampler="ddim", steps=4)
train = dict(
    stage=dict(
        _delete_=True,
        type="DistillationStage",
        steps=4,
        teacher="pretrained/compact/refiner",
        position_range=[8, 64, 64],
    ),
    loop=dict(max_steps=500),
    learning_rate=dict(peak=2e-4),
)
