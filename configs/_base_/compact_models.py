"""The embedded model's networks: 11.9 M parameters without the DiT, 21 M with it."""

model_id = "compact.effn-f32"
compressor = dict(type="CompactCompressor")
previewer = dict(type="CompactPreviewer")
vae = dict(type="CompactVAE")
