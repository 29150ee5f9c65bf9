"""Figures of the published comparison: printed beside ours, and not measured here.

1024x1024, 30 frames per second, the first 200 videos of Inter4K; VBench's dimensions are of the
same reconstructions.
"""

NOTE = "published, not measured here; net of LPIPS, frames per clip and resizing are not stated"

# Label, and whether higher is better. LPIPS stands under a name of its own: whether it is
# lpips_alex or lpips_vgg is not known.
LABELS = {
    "psnr": ("PSNR", True),
    "ssim": ("SSIM", True),
    "lpips": ("LPIPS (net not stated)", False),
    "vbench_subject_consistency": ("VBench subject consistency", True),
    "vbench_background_consistency": ("VBench background consistency", True),
    "vbench_temporal_flickering": ("VBench temporal flickering", True),
    "vbench_motion_smoothness": ("VBench motion smoothness", True),
    "vbench_imaging_quality": ("VBench imaging quality", True),
    "vbench_aesthetic_quality": ("VBench aesthetic quality", True),
}

ROWS = {
    "Open-Sora-Plan v1.1": (
        (25.7282, 0.8000, 0.1030),
        (0.9519, 0.9618, 0.9573, 0.9789, 0.6791, 0.5450),
    ),
    "EasyAnimate v3": (
        (28.8666, 0.8505, 0.0818),
        (0.9578, 0.9695, 0.9615, 0.9845, 0.6735, 0.5535),
    ),
    "StableCascade": (
        (24.3336, 0.6896, 0.1395),
        (0.9490, 0.9517, 0.9430, 0.9639, 0.6811, 0.5675),
    ),
    "CascadeV": (
        (23.7320, 0.6742, 0.1786),
        (0.9601, 0.9679, 0.9626, 0.9837, 0.6747, 0.5579),
    ),
}

PUBLISHED = [
    {
        "name": name,
        "protocol": "inter4k-200",
        "values": dict(zip(LABELS, (*quality, *vbench), strict=True)),
        "note": NOTE,
    }
    for name, (quality, vbench) in ROWS.items()
]
