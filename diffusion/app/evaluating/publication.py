"""From measurements to results and a page: once, and of everything."""

import hashlib
import json
import logging
import shlex
import time
from collections.abc import Mapping
from typing import Any

import torch

from diffusion.app.benchmarking.speed import cpu_name
from diffusion.app.environment import describe_environment
from diffusion.app.evaluating.evaluation_request import Evaluation
from diffusion.app.evaluating.measure_codec import count_unmeasured
from diffusion.app.evaluating.terminal_table import print_table
from diffusion.app.reconstruction.stage_times import Stages
from diffusion.evaluation.report.published import PUBLISHED
from diffusion.evaluation.report.report import write_report
from diffusion.evaluation.report.result_table import counted
from diffusion.evaluation.report.results import (
    Measurements,
    Run,
    merge,
    read_json,
    write_results,
)
from diffusion.evaluation.vbench import add_vbench, keep_scores
from diffusion.utils.errors import UserError
from diffusion.utils.files import locked, write_json

log = logging.getLogger(__name__)

# Those that change numbers.
PACKAGES = ("torch", "torchvision", "torchmetrics", "diffusers", "transformers", "lpips", "av")


class Publication:
    """Of an evaluation that one or several processes measure into one folder.

    Each asks for it when its own part is done. It happens in one that has seen everything measured;
    others that have wait for it, and find a note of what was published when the page was whole. A
    process that is killed leaves no note, and its lock goes with it: the next one publishes.
    """

    def __init__(self, what: Evaluation, device: torch.device):
        """Made before anything is measured, to tell what this command published from earlier."""
        self.what, self.device = what, device
        self.measurements = Measurements(what.folder)
        self._note = what.folder / ".published.json"
        self._before = read_json(self._note)

    def collect(self) -> dict[str, Any]:
        """Write results.json, .csv and .md of all that is in the folder by now."""
        with locked(self.what.folder / ".lock"):
            return self._write(self._merged())

    def publish_once(self, *, again: bool) -> None:
        """Write report.html and print the table, unless something is not measured yet.

        again: also if an earlier command published the same. One process of each command may.
        """
        unmeasured = count_unmeasured(self.measurements, self.what)
        if unmeasured:
            log.info(
                "%s: %d measurements are not there yet; what measures the last writes the report",
                self.what.folder,
                unmeasured,
            )
            return
        with locked(self.what.folder / ".publishing"):
            merged, note = self._merged(), read_json(self._note)
            state = state_of(merged, self.what)
            published = note is not None and note["state"] == state
            if published and not (again and note == self._before):
                return
            with locked(self.what.folder / ".lock"):
                results = self._write(merged)
            self._publish(results)
            write_json(self._note, {"state": state, "time": time.time_ns()})

    def _publish(self, results: dict[str, Any]) -> None:
        folder, dimensions, stages = self.what.folder, self.what.dimensions, Stages()
        if dimensions:
            with stages("VBench"):
                device = str(self.device)
                results = add_vbench(results, folder, dimensions=dimensions, device=device)
            write_results(results, folder)
        with stages("report"):
            write_report(results, folder)
        print_table(results, folder)

    def _merged(self) -> dict[str, Any]:
        what = self.what
        shared = {
            "protocol": what.protocol.describe(),
            "environment": environment(self.device),
            "published": list(PUBLISHED),
        }
        results = merge(self.measurements, Run(what.models, what.videos, what.metrics, shared))
        if len(results["bad_videos"]) == len(what.videos):
            raise UserError(
                f"none of {counted(what.videos, 'video')} can be measured; the first: "
                f"{next(iter(results['bad_videos'].values()))}"
            )
        return results

    def _write(self, results: dict[str, Any]) -> dict[str, Any]:
        """With VBench's scores of before."""
        earlier = read_json(self.what.folder / "results.json")
        results = keep_scores(results, earlier) if earlier else results
        write_results(results, self.what.folder)
        return results


def state_of(results: Mapping[str, Any], what: Evaluation) -> str:
    """A digest of all that a report shows but who made it, when, and with which command."""
    shown = {name: value for name, value in results.items() if name != "environment"}
    text = json.dumps([shown, sorted(what.dimensions)], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def environment(device: torch.device) -> dict[str, Any]:
    """What numbers and seconds depend on."""
    everything = describe_environment()
    packages = everything.pop("packages")
    return {
        **{key: value for key, value in everything.items() if key != "git_changes"},
        "command": shlex.join(everything["command"]),
        "device": str(device),
        "processor": cpu_name(),
        "threads": torch.get_num_threads(),
        "packages": {name: packages[name] for name in PACKAGES if name in packages},
    }
