import torch

from diffusion.training.draws import Draws


def test_two_processes_draw_what_one_draws():
    like = torch.empty(4, 3, 2, 2)
    whole = Draws(seed=3, step=7, first=0, count=4)
    halves = [Draws(seed=3, step=7, first=first, count=2) for first in (0, 2)]
    assert torch.equal(whole.normal(like), torch.cat([d.normal(like[:2]) for d in halves]))
    assert torch.equal(whole.uniform(), torch.cat([d.uniform() for d in halves]))
    assert len({d.shared_uniform() for d in (whole, *halves)}) == 1
    assert len({d.shared_integers([9, 99]) for d in (whole, *halves)}) == 1


def test_steps_clips_and_seeds_draw_differently():
    like = torch.empty(2, 8)
    draws = [
        Draws(seed=s, step=t, first=2 * f, count=2) for s in (0, 1) for t in (0, 1) for f in (0, 1)
    ]
    rows = torch.cat([d.normal(like) for d in draws])
    assert len(rows.unique(dim=0)) == 16


def test_frames_of_a_clip_get_their_own_noise():
    draws = Draws(seed=0, step=0, first=0, count=2)
    frames = draws.normal(torch.empty(6, 4))  # two clips of three frames
    assert frames.shape == (6, 4)
    assert len(frames.unique(dim=0)) == 6


def test_shared_integers_reach_both_ends():
    drawn = {Draws(seed=0, step=i, first=0, count=1).shared_integers([2])[0] for i in range(60)}
    assert drawn == {0, 1, 2}


def test_a_seed_is_another_one_in_every_process_and_the_same_again():
    seeds = [Draws(seed=0, step=0, first=first, count=2).seed() for first in (0, 2, 0)]
    assert seeds[0] == seeds[2] != seeds[1]
    assert seeds[0] == int(2**31 * Draws(seed=0, step=0, first=0, count=2).uniform()[0])
