import json
import re

import numpy as np
import pytest
from PIL import Image

from diffusion.app.training.training_plot import (
    COLORS,
    Curve,
    limits,
    panels,
    read_curves,
    smoothed,
)


def write_run(folder, values, **others):
    """A run whose loss is `values` at steps 20, 40, ..., with a validation at the last one."""
    folder.mkdir()
    records = [
        {"step": 20 * i, "loss": value, "pixels": value, "latents": 0.0, "lr": 1e-4, **others}
        for i, value in enumerate(values, 1)
    ]
    records.append({"step": 20 * len(values), "validation/psnr": 30.0})
    (folder / "scalars.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    return folder


@pytest.fixture
def run(tmp_path):
    return write_run(tmp_path / "run", np.linspace(1, 0.5, 50))


def pixels(path):
    with Image.open(path) as picture:
        return np.array(picture.convert("RGB"))


def share_of(color, image):
    wanted = [int(color[i : i + 2], 16) for i in (1, 3, 5)]
    return (image == wanted).all(2).mean()


def test_draws_a_run_into_its_folder(commands, run):
    result = commands.ok("plot_training", run)
    assert result.out.strip() == str(run / "training.png")
    image = pixels(run / "training.png")
    assert image.shape[1] == 1500
    assert share_of(COLORS[0], image) > 3e-4
    assert share_of(COLORS[1], image) == 0


def test_several_runs_in_colours_of_their_own(commands, run, tmp_path):
    other = write_run(tmp_path / "other", np.linspace(0.9, 0.4, 50), grad_norm=1.0)
    output = tmp_path / "new" / "both.png"
    commands.ok("plot_training", run, other, "-o", output)
    image = pixels(output)
    assert min(share_of(color, image) for color in COLORS[:2]) > 3e-4
    assert share_of(COLORS[2], image) == 0
    assert not (run / "training.png").exists()


def test_a_run_that_is_being_written_can_be_drawn(commands, run):
    whole = read_curves(run)
    with (run / "scalars.jsonl").open("a") as file:
        file.write('{"step": 1040, "lo')
    commands.ok("plot_training", run)
    assert read_curves(run)["loss"].steps.tolist() == whole["loss"].steps.tolist()


def test_curves_are_sorted_finite_and_have_one_value_for_a_step(tmp_path):
    folder = write_run(tmp_path / "run", [3.0, float("nan"), 1.0])
    with (folder / "scalars.jsonl").open("a") as file:
        file.write('{"step": 10, "loss": 4.0}\n{"step": 20, "loss": 2.0}\n')
    loss = read_curves(folder)["loss"]
    assert (loss.steps.tolist(), loss.values.tolist()) == ([10, 20, 60], [4, 2, 1])


def test_a_single_record_is_drawn(commands, tmp_path):
    commands.ok("plot_training", write_run(tmp_path / "run", [0.0]))


def test_order_of_the_panels():
    curve = Curve(np.array([1]), np.array([1.0]))
    first = dict.fromkeys(["lr", "loss", "pixels"], curve)
    second = dict.fromkeys(["validation/psnr", "loss", "latents"], curve)
    assert panels([first, second]) == ["loss", "pixels", "latents", "validation/psnr", "lr"]
    # a single term is the loss itself
    assert panels([first]) == ["loss", "lr"]


def test_smoothing_keeps_lines_and_lessens_noise():
    line = np.arange(50.0)
    assert smoothed(line, 4)[4:-4] == pytest.approx(line[4:-4])
    noise = np.random.default_rng(0).normal(size=1000)
    assert smoothed(noise, 20).std() < 0.3 * noise.std()
    assert smoothed(noise, 0) == pytest.approx(noise)
    assert smoothed(noise, 2)[0] == pytest.approx(noise[:3].mean())


def test_spikes_do_not_hide_the_curve():
    values = np.linspace(1, 2, 1000)
    assert limits(values)[0] < 1 < 2 < limits(values)[1] < 2.2
    assert limits(np.append(values, 1000.0))[1] < 2.2
    assert limits(np.append(values, 3.0))[1] > 3  # near enough to be shown
    low, high = limits(np.zeros(3))
    assert low < 0 < high


def test_errors(commands, run, tmp_path):
    def line(*arguments):
        return commands.refused("plot_training", *arguments)

    assert "absent: no such folder; pass the --work-dir of a training run" in line(
        tmp_path / "absent"
    )
    (tmp_path / "empty").mkdir()
    assert re.search(r"empty/scalars\.jsonl: holds no scalars yet", line(tmp_path / "empty"))
    (tmp_path / "empty" / "scalars.jsonl").write_text('{"st')
    assert "holds no scalars yet" in line(tmp_path / "empty")
    (tmp_path / "empty" / "scalars.jsonl").write_text('loss 3\n{"step": 1, "loss": 1.0}\n')
    assert "scalars.jsonl: line 1 holds no scalars; delete it" in line(tmp_path / "empty")
    assert "curves.jpg: must end in .png" in line(run, "-o", tmp_path / "curves.jpg")
    (tmp_path / "x.png").mkdir()
    assert "x.png: cannot be written" in line(run, "-o", tmp_path / "x.png")
    assert not (run / "training.png").exists()
