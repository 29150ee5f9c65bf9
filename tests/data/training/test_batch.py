import pytest
import torch

from diffusion.data.training.batch import Batch, LatentBatch, global_samples
from diffusion.data.transforms import to_float, to_uint8


def test_levels_become_the_models_numbers_on_the_device():
    levels = torch.arange(256, dtype=torch.uint8).view(1, 1, 1, 16, 16).expand(2, 3, 4, 16, 16)
    batch = Batch(levels, ["a", "b"])
    assert batch.nbytes == 2 * 3 * 4 * 256  # what goes from process to process
    seen = batch.to("cpu")
    assert seen.video.dtype == torch.float32
    assert (seen.video.min(), seen.video.max()) == (-1, 1)
    frames = to_uint8(seen.video[0])
    assert torch.equal(to_float(frames), seen.video[0])
    assert (seen.sources, len(seen)) == (["a", "b"], 2)
    assert torch.equal(seen.to("cpu").video, seen.video)  # once is enough


@pytest.mark.parametrize("stored", [torch.float16, torch.bfloat16, torch.float32])
def test_latents_travel_as_they_are_stored(stored):
    target, semantic = torch.randn(2, 4, 3, 8, 8), torch.randn(2, 16, 3, 2, 2)
    for base in (None, torch.randn(2, 4, 3, 8, 8).to(stored)):
        batch = LatentBatch(target.to(stored), semantic.to(stored), base, ["a", "b"])
        seen = batch.to("cpu")
        assert {t.dtype for t in seen.tensors().values()} == {torch.float32}
        assert torch.equal(seen.target, target.to(stored).float())
        assert (seen.base is None) == (base is None)


def test_the_places_of_a_process():
    assert [*global_samples(2, 1, 3)] == [2, 3]
    for wrong, problem in (((0, 0, 1), "batch_size is 0"), ((2, 3, 3), "rank 3 is not below")):
        with pytest.raises(ValueError, match=problem):
            global_samples(*wrong)
