"""The embedded model: 23.1 M parameters, small enough for two CPU cores."""

model_id = "compact.effn-f32"
compressor = dict(type="CompactCompressor")
previewer = dict(type="CompactPreviewer")
vae = dict(type="CompactVAE")
cut_space, cut_time, cut_both = [1, 4], [4, 1], [2, 2]
refiner = dict(
    type="VideoDiT",
    condition_channels=16 + 4,  # semantic latents and the VAE latents of the preview
    hidden_size=288,
    depth=8,
    num_heads=6,
    learned_variance=False,
    grids=[cut_space, cut_time, cut_space, cut_time, cut_both] + [cut_space, cut_time, cut_both],
)
noise = dict(prediction_type="v_prediction")
conditioning = dict(residual_std=[0.40, 0.42, 0.57, 0.74])
cascade = dict(window=8, window_overlap=2, euler_a_spacing="angle")
weights = dict(
    compressor="pretrained/compact/compressor.safetensors",
    previewer="pretrained/compact/previewer.safetensors",
    vae="pretrained/compact/vae.safetensors",
    refiner="pretrained/compact/refiner.safetensors",
)
reconstruct = dict(max_short_edge=512, num_frames=16)
del cut_space, cut_time, cut_both
