"""The embedded model: 23.1 M parameters, small enough for two CPU cores."""

model_id = "compact.effn-f32"
compressor = dict(type="CompactCompressor")
previewer = dict(type="CompactPreviewer")
vae = dict(type="CompactVAE")
wide, long = [-2, -8], [-8, -4]  # cells of 2 frames of 8x8 tokens, and of 8 frames of 4x4
refiner = dict(
    type="VideoDiT",
    condition_channels=16 + 4,  # semantic latents and the VAE latents of the preview
    hidden_size=288,
    depth=8,
    num_heads=4,
    learned_variance=False,
    local_mixing=True,
    grids=[long, wide],
)
noise = dict(prediction_type="v_prediction", beta_schedule="squaredcos_cap_v2")
conditioning = dict(residual_std=[0.367, 0.377, 0.495, 0.614])
# of all overlaps, 3 flickers least at the borders of windows (docs/large_videos.md)
cascade = dict(window=8, window_overlap=3, euler_a_spacing="angle")
weights = dict(
    compressor="pretrained/compact/compressor",
    previewer="pretrained/compact/previewer",
    vae="pretrained/compact/vae",
    refiner="pretrained/compact/refiner",
    decoder_change="pretrained/compact/decoder_change",
)
reconstruct = dict(max_short_edge=512, num_frames=16)
del wide, long
