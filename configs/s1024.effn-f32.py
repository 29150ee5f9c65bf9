"""The published model, 8 frames at 1024 pixels. Fetch its weights: bash pretrained/download.sh

Run: bash recon.sh my_video.mp4 --config configs/s1024.effn-f32.py
Published result on Inter4K (200 clips, 1024x1024): PSNR 23.73, SSIM 0.674, LPIPS 0.179.

Train it further on your videos: bash train_vae.sh configs/s1024.effn-f32.py --dtype fp16
What that takes: the same with --dry-run count. A step is 1919 TFLOP and 131,072 tokens.
"""

video_list = ["example"]

model_id = "s1024.effn-f32"
compressor = dict(type="SemanticCompressor")
previewer = dict(type="Previewer")
vae = dict(type="VideoVAE")
cut_space, cut_time, full = [1, 4], [4, 1], None
refiner = dict(
    type="VideoDiT",
    condition_channels=16,
    hidden_size=1152,
    depth=28,
    num_heads=16,
    grids=4 * [cut_space, cut_time] + 4 * [full] + 4 * [cut_space, cut_time] + 8 * [full],
    position_interpolation=2.0,
    gradient_checkpointing=True,
)
noise = dict(prediction_type="epsilon", learned_variance=True)
conditioning = dict(scale=0.13025)  # the published training scaled both latents alike
cascade = dict(window=8, window_overlap=4, tile=128)
weights = dict(
    compressor="pretrained/effnet_encoder.safetensors",
    previewer="pretrained/previewer.safetensors",
    vae="pretrained/svd/vae",
    refiner="pretrained/s1024.effn-f32.pth",
)
reconstruct = dict(max_short_edge=1024, num_frames=8)

# The published recipe. What it lacked: an average of the weights, and validation.
data = dict(
    type="VideoClips",
    batch_size=4,
    size=1024,
    num_frames=8,
    frame_strides=[4],
    policy="crop",
    crop="center",
)
train = dict(
    stage=dict(
        type="RefinerStage",
        image_share=0.1,
        sample_posterior=True,
        init_from=weights["refiner"],
    ),
    optimizer=dict(type="CAME", weight_decay=0.0),
    learning_rate=dict(
        peak=2e-5,  # for 256 clips per step: 2.5e-6 for 4
        auto=dict(rule="sqrt", base_batch=256),
        schedule="constant",
        warmup_steps=1000,
    ),
    loop=dict(max_steps=100_000, gradient_clip=0.01, ema_decay=0.9999, log_interval=5, seed=43),
    saving=dict(interval=1000),
)
validation = dict(interval=1000, num_clips=4, num_frames=8, size=1024)
del cut_space, cut_time, full
