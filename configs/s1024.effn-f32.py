"""The published model, 8 frames at 1024 pixels. Fetch its weights: bash pretrained/download.sh

Run: bash recon.sh my_video.mp4 --config configs/s1024.effn-f32.py
Published result on Inter4K (200 clips, 1024x1024): PSNR 23.73, SSIM 0.674, LPIPS 0.179.
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
del cut_space, cut_time, full
