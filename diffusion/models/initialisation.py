"""First weights that several networks draw alike."""

from torch import nn


def start_at_zero(layer: nn.Linear | nn.Conv2d) -> None:
    """Weights and biases of zero: at first the layer adds nothing to what it is added to."""
    nn.init.zeros_(layer.weight)
    zero_bias(layer)


def zero_bias(layer: nn.Linear | nn.Conv2d) -> None:
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
