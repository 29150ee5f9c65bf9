import weakref

import pytest
import torch
from einops import rearrange

from diffusion.noise.samplers import SAMPLERS, Trajectory, build_sampler, frame_generators
from diffusion.pipelines.blending import Spans, blended_spans, chunk_spans, published_windows
from diffusion.pipelines.streams import NoisySegment, denoise_stream, recut

CUTS = {
    "blended": lambda length: blended_spans(length, 8, 2),
    "half overlap": lambda length: blended_spans(length, 8, 4),
    "mostly overlap": lambda length: blended_spans(length, 8, 6),
    "no overlap": lambda length: blended_spans(length, 8, 0),
    "moved back": lambda length: chunk_spans(length, 8, 4),
    "published": lambda length: published_windows(length, 8),
}
SEED, SIDES = 3, (2, 3)


def network(x_t: torch.Tensor, condition: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """Every frame's result depends on all frames of the window and on its place there."""
    place = torch.linspace(0.5, 1.5, x_t.shape[2])[:, None, None]
    return 0.3 * x_t + place * torch.tanh(x_t + condition + t / 1000).mean(2, keepdim=True)


def noise(frames: range) -> tuple[torch.Tensor, list[torch.Generator]]:
    generators = frame_generators(SEED, frames)
    return torch.stack([torch.randn(4, *SIDES, generator=g) for g in generators]), generators


# Of x_t, which begins with a standard deviation of 157: sums are not rounded alike.
TOLERANCE = {"rtol": 0, "atol": 1e-4}


def whole_clip(sampler, spans: Spans, condition: torch.Tensor) -> torch.Tensor:
    """The definition: in every step all windows of the whole clip, then one step of all frames."""
    length = condition.shape[2]
    trajectory = Trajectory(sampler, *noise(range(length)))
    for t in sampler.timesteps:
        x = rearrange(trajectory.model_input(), "f c h w -> 1 c f h w")
        out = torch.zeros_like(x)
        for span, weights in zip(spans.slices, spans.weights, strict=True):
            out[:, :, span] += weights[:, None, None] * network(
                x[:, :, span], condition[:, :, span], t
            )
        trajectory.step(rearrange(out, "1 c f h w -> f c h w"))
    return rearrange(trajectory.x, "f c h w -> 1 c f h w")


def segments(sampler, spans: Spans, condition: torch.Tensor, chunk: int):
    pieces = ((piece,) for piece in condition.split(chunk, dim=2))
    lengths = (stop - start for start, stop in spans.segments)
    for (start, stop), part in zip(spans.segments, recut(pieces, lengths), strict=True):
        yield NoisySegment(start, stop, part, Trajectory(sampler, *noise(range(start, stop))))


def predict(windows, t):
    return [network(x, condition, t) for x, condition in windows]


def streamed(sampler, spans, condition, chunk=5, group=1) -> torch.Tensor:
    noisy = segments(sampler, spans, condition, chunk)
    done = denoise_stream(noisy, spans, predict, sampler.timesteps, group)
    return torch.cat([segment.x for segment in done], dim=2)


@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("length", [1, 7, 8, 9, 13, 16, 29, 50])
def test_streaming_is_blending_the_whole_clip_at_every_step(cut, length):
    spans, sampler = CUTS[cut](length), build_sampler("euler_a", num_inference_steps=4)
    condition = torch.randn(1, 4, length, *SIDES)
    wanted = whole_clip(sampler, spans, condition)
    torch.testing.assert_close(streamed(sampler, spans, condition), wanted, **TOLERANCE)


@pytest.mark.parametrize("prediction_type", ["epsilon", "flow_prediction"])
@pytest.mark.parametrize("name", SAMPLERS)
def test_with_every_sampler(name, prediction_type):
    """Some draw noise in every step, some remember predictions."""
    if prediction_type == "flow_prediction" and name not in ("euler", "dpmpp"):
        pytest.skip("no sampler of flows")
    spans = blended_spans(29, 8, 2)
    sampler = build_sampler(name, num_inference_steps=5, prediction_type=prediction_type)
    condition = torch.randn(1, 4, 29, *SIDES)
    wanted = whole_clip(sampler, spans, condition)
    torch.testing.assert_close(streamed(sampler, spans, condition), wanted, **TOLERANCE)


@pytest.mark.parametrize("chunk", [1, 2, 7, 8, 29])
@pytest.mark.parametrize("group", [1, 2, 3])
def test_the_result_does_not_depend_on_how_frames_arrive(chunk, group):
    spans, sampler = blended_spans(29, 8, 2), build_sampler("euler_a", num_inference_steps=3)
    condition = torch.randn(1, 4, 29, *SIDES)
    wanted = streamed(sampler, spans, condition)
    assert torch.equal(streamed(sampler, spans, condition, chunk, group), wanted)


@pytest.mark.parametrize("length", [100, 400])
def test_what_is_held_does_not_grow_with_the_clip(length):
    steps = 4
    spans, sampler = blended_spans(length, 8, 2), build_sampler("ddim", num_inference_steps=steps)
    alive: list[weakref.ref] = []
    most = 0

    def watched():
        for segment in segments(sampler, spans, torch.zeros(1, 4, length, *SIDES), 8):
            alive.append(weakref.ref(segment))
            yield segment
            del segment

    for done in denoise_stream(watched(), spans, predict, sampler.timesteps):
        del done
        alive[:] = [ref for ref in alive if ref() is not None]
        most = max(most, len(alive))
    assert most <= steps + 2


def test_a_thousand_steps_are_no_recursion():
    sampler = build_sampler("ddim", num_inference_steps=1000)
    out = streamed(sampler, blended_spans(9, 8, 2), torch.zeros(1, 4, 9, *SIDES))
    assert out.isfinite().all()


def test_noise_is_a_function_of_seed_and_frame():
    whole, _ = noise(range(20))
    part, _ = noise(range(7, 12))
    assert torch.equal(whole[7:12], part)
    assert len({tuple(frame.flatten().tolist()) for frame in whole}) == 20
    first, second = (torch.randn(4, generator=g) for g in frame_generators(SEED, range(1), 2))
    assert not torch.equal(first, second)  # two videos of one batch
    assert abs(whole.std() - 1) < 0.1


@pytest.mark.parametrize("chunk", [1, 3, 10])
def test_recut(chunk):
    x = torch.arange(10.0).view(1, 1, 10, 1, 1)
    pieces = ((part, 2 * part) for part in x.split(chunk, dim=2))
    parts = list(recut(pieces, [4, 0, 1, 3]))
    assert [part.shape[2] for part, _ in parts] == [4, 0, 1, 3]
    assert torch.equal(torch.cat([part for part, _ in parts], dim=2), x[:, :, :8])
    assert all(torch.equal(double, 2 * part) for part, double in parts)


def test_a_stream_that_ends_early_is_an_error():
    with pytest.raises(ValueError, match="ended before its last frame"):
        list(recut([(torch.zeros(1, 1, 3, 1, 1),)], [2, 2]))
