"""For DiffusionPipeline.from_pretrained(folder, trust_remote_code=True)."""

from cascadev import CascadePipeline

__all__ = ["CascadePipeline"]
