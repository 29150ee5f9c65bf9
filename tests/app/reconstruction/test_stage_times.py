"""Whose seconds are whose: on a device that works later than it is told to, and in threads."""

import threading
from dataclasses import dataclass

import pytest
import torch

from diffusion.app.reconstruction import stage_times
from diffusion.app.reconstruction.stage_times import Stages

CUDA = torch.device("cuda", 1)


@dataclass
class Queue:
    """A device with a queue, and the time: both only move when they are told to."""

    now: float = 0.0
    done_at: float = 0.0

    def clock(self) -> float:
        return self.now

    def host_works(self, seconds: float) -> None:
        self.now += seconds

    def give(self, seconds: float) -> None:
        """Work for the device; the host goes on at once."""
        self.done_at = max(self.now, self.done_at) + seconds

    def synchronize(self, device: torch.device) -> None:
        assert device == CUDA  # no other one
        self.now = max(self.now, self.done_at)


@pytest.fixture
def queue(monkeypatch):
    queue = Queue()
    monkeypatch.setattr(stage_times, "perf_counter", queue.clock)
    monkeypatch.setattr(stage_times, "synchronize", queue.synchronize)
    return queue


def test_a_stage_counts_what_it_gave_the_device(queue):
    stages = Stages(CUDA)
    with stages("encode"):
        queue.give(5)
    with stages("preview"):
        queue.give(2)
    queue.give(1)  # of nobody
    with stages("write"):
        queue.host_works(3)
    assert stages.seconds() == {"encode": 5, "preview": 2, "write": 3, "total": 11}


def test_a_stage_within_another_one_does_not_count_the_outer_ones_queue(queue):
    stages = Stages(CUDA)
    with stages("denoise"):
        queue.give(4)
        with stages("encode"):
            queue.give(1)
            queue.host_works(0.5)
        queue.give(2)
    assert stages.seconds() == {"denoise": 6, "encode": 1, "total": 7}


def test_streams_that_pull_one_another(queue):
    stages = Stages(CUDA)

    def read():
        for i in range(3):
            queue.host_works(1)
            yield i

    def network(items, seconds):
        for item in items:
            queue.give(seconds)
            yield item

    items = network(stages.each("read", read()), 10)
    items = network(stages.each("denoise", items), 2)
    assert list(stages.each("decode", items)) == [0, 1, 2]
    assert stages.seconds() == {"read": 3, "denoise": 30, "decode": 6, "total": 39}


def test_an_error_leaves_clocks_right(queue):
    stages = Stages(CUDA)

    def broken():
        with stages("encode"):
            queue.give(1)
            raise ValueError("bad")

    for _ in range(2):
        with pytest.raises(ValueError, match="bad"):
            broken()
    assert stages.seconds() == {"encode": 2, "total": 2}


def test_other_threads_count_their_own_work_and_wait_for_no_device(queue):
    """Writing for 2 s while the device computes for 5: their sum exceeds the whole time."""
    stages = Stages(CUDA)

    def write():
        with stages("write"):
            queue.host_works(2)

    with stages("denoise"):
        queue.give(5)
        thread = threading.Thread(target=write)
        thread.start()
        thread.join()
        assert queue.now == 2
    assert stages.seconds() == {"write": 2, "denoise": 5, "total": 5}


def test_a_thread_that_waits_for_its_items_counts_nothing(queue):
    stages = Stages(CUDA)

    def slow():
        for i in range(2):
            queue.host_works(10)
            yield i

    with stages("write"):
        for _ in stages.idle(slow()):
            queue.host_works(1)
    assert stages.seconds() == {"write": 2, "total": 20 + 2}
