"""The DiT of a golden case, with its weights."""

import golden_data
import torch
from torch import Tensor

from diffusion.models.dit import VideoDiT


def build_dit(meta: dict, **options) -> VideoDiT:
    config = meta["config"]
    with torch.device("meta"):  # no time spent on weights that are replaced
        model = VideoDiT(
            condition_channels=config["in_channels"] - 4,
            depth=config["depth"],
            grids=config["attn_strides"],
            position_interpolation=config["pe_interpolation"],
            **options,
        )
    weights = golden_data.case_weights(meta["weights"])
    model.load_state_dict(weights, strict=True, assign=True)
    return model.eval()


@torch.no_grad()
def run_case(meta: dict, t: dict[str, Tensor], model: VideoDiT) -> Tensor:
    """Forward of a `dit_forward` case, with the frames flattened as the golden output has them."""
    call, config = meta["call"], meta["config"]
    num_frames = call["frames"] // call["videos"]
    x_t, condition = golden_data.split_inputs(t["x"], num_frames)
    # the published code doubles the interpolation by itself when latents are twice as large
    enlarged = call["latent_size"] // config["input_size"]
    out = model(
        x_t,
        t["timestep"].view(-1, num_frames),
        condition,
        image_mode=call["train_as_img"],
        position_interpolation=config["pe_interpolation"] * enlarged,
    )
    return golden_data.to_frames(out)
