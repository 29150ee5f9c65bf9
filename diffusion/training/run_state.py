"""Everything the next step of a training depends on, to be kept and taken up again."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from accelerate.utils import gather_object, set_seed
from torch import Tensor, nn

from diffusion.models.weights import save_weights_together
from diffusion.training.checkpoint import State, random_state, set_random_state
from diffusion.training.ema import Average
from diffusion.training.meter import Meter
from diffusion.training.processes import map_tensors, sharded_like, whole

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunState:
    """The parts of a running training that change from step to step."""

    accelerator: Accelerator
    parts: nn.ModuleDict
    average: Average
    optimizer: AcceleratedOptimizer
    meter: Meter

    def snapshot(self) -> State | None:
        """A copy on the CPU, in the main process; None in others, which all must call this."""
        random_states = gather_object([random_state()])
        network = self.average.gather()
        is_main = self.accelerator.is_main_process
        if not (is_main or self.average.is_sharded):
            return None
        scaler = self.accelerator.scaler
        state = {
            "model": self.parts.state_dict(),
            "ema": network.state_dict() if is_main else {},
            "optimizer": self.optimizer.state_dict(),
            "scaler": scaler and scaler.state_dict(),
            "meter": self.meter.state_dict(),
            "random": random_states,
        }

        def kept(tensor: Tensor) -> Tensor | None:
            gathered = whole(tensor)  # which takes all processes
            return gathered.to("cpu", copy=True) if is_main else None

        state = map_tensors(kept, state)
        return state if is_main else None

    def restore(self, state: State) -> None:
        """The weights and their averages are there already: networks are wrapped around them."""
        weights = [weight for group in self.optimizer.param_groups for weight in group["params"]]
        averages = {
            i: map_tensors(partial(sharded_like, like=weights[i]), values)
            for i, values in state["optimizer"]["state"].items()
        }
        self.optimizer.load_state_dict(state["optimizer"] | {"state": averages})
        self.meter.load_state_dict(state.get("meter", {}))
        if self.accelerator.scaler is not None and state.get("scaler"):
            self.accelerator.scaler.load_state_dict(state["scaler"])

    def restore_random(self, state: State, seed: int) -> None:
        """seed: where another number of processes had other random states."""
        random_states = state.get("random", [])
        if len(random_states) == self.accelerator.num_processes:
            set_random_state(random_states[self.accelerator.process_index])
            return
        set_seed(seed, device_specific=True)  # draws of clips do not depend on them
        if random_states:
            log.info(
                "%d processes continue what %d began: a step has a batch of another size",
                *(self.accelerator.num_processes, len(random_states)),
            )


def write_averages(
    averages: Mapping[str, Tensor], parts: list[str], folder: Path, step: int
) -> None:
    """The averaged weights for inference, <part>.safetensors: all of one step."""
    files = {}
    for name in parts:
        prefix = f"{name}."
        weights = {
            key.removeprefix(prefix): value
            for key, value in averages.items()
            if key.startswith(prefix)
        }
        files[f"{name}.safetensors"] = weights, {"step": str(step)}
    save_weights_together(folder, files)
