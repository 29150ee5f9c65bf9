"""One dimension of VBench over a folder of videos; its scores as JSON.

Runs in VBench's environment and imports nothing of ours: vbench.py starts it as
`python -I vbench_driver.py DIMENSION VIDEOS OUTPUT DEVICE`.
"""

import json
import sys
import tempfile
from pathlib import Path

import torch
import vbench


def main(dimension: str, videos: str, output: str, device: str) -> None:
    prompts = Path(vbench.__file__).with_name("VBench_full_info.json")
    with tempfile.TemporaryDirectory() as folder:
        # custom_input: any videos, not those of VBench's own prompts.
        benchmark = vbench.VBench(torch.device(device), str(prompts), folder)
        benchmark.evaluate(videos, "run", dimension_list=[dimension], mode="custom_input")
        scores = json.loads((Path(folder) / "run_eval_results.json").read_text())
    mean, per_video = scores[dimension]
    values = {Path(entry["video_path"]).name: entry["video_results"] for entry in per_video}
    Path(output).write_text(json.dumps({"mean": mean, "videos": values}))


if __name__ == "__main__":
    main(*sys.argv[1:])
