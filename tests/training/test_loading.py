import ctypes
import multiprocessing
import os
import resource
import signal
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path

import pytest
import torch
from pretend_cuda import pretend_cuda
from trainings import numbered

from diffusion.data.training.batch import Batch, LatentBatch
from diffusion.training.loading import fetch
from diffusion.utils.cli import one_line
from diffusion.utils.errors import UserError

MEGABYTE = 2**20
CLONE_NEWUSER, CLONE_NEWNS = 0x10000000, 0x00020000


def test_workers_load_the_same_batches():
    alone, ahead = (list(fetch(numbered, range(3, 8), workers)) for workers in (0, 2))
    assert [batch.sources for batch in ahead] == [[f"clip{step}.mp4"] for step in range(3, 8)]
    assert all(torch.equal(a.video, b.video) for a, b in zip(alone, ahead, strict=True))
    assert torch.equal(alone[0].video, numbered(3).video)


def broken(step):
    raise UserError(f"clip{step}.mp4: cannot be read")


@pytest.mark.parametrize("workers", [0, 1])
def test_what_a_worker_says_is_one_line(workers):
    with pytest.raises(UserError, match=r"^clip4\.mp4: cannot be read$"):
        list(fetch(broken, range(4, 8), workers))


def small_tmpfs() -> None:
    """An own /dev/shm of one MB, as containers have one of 64."""
    libc = ctypes.CDLL(None, use_errno=True)
    user, group = os.getuid(), os.getgid()
    if libc.unshare(CLONE_NEWUSER | CLONE_NEWNS):
        raise OSError(ctypes.get_errno(), "no mounts of one's own")
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"0 {user} 1")
    Path("/proc/self/gid_map").write_text(f"0 {group} 1")
    if libc.mount(b"tmpfs", b"/dev/shm", b"tmpfs", 0, b"size=1m"):
        raise OSError(ctypes.get_errno(), "no file system of one's own")


def small_files() -> None:
    """No file of more than one MB, which is refused at the same place."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (MEGABYTE, MEGABYTE))


def bytes_of(size: int, step: int) -> Batch:
    return Batch(torch.zeros(1, 1, 1, 1, size, dtype=torch.uint8), [str(step)])


def load(limit, size: int, answer: Connection) -> None:
    """What `fetch` says where shared memory is small."""
    try:
        limit()
        answer.send(f"{len(list(fetch(partial(bytes_of, size), range(3), 1)))} batches")
    except UserError as error:
        answer.send(str(error))
    except OSError as error:
        answer.send(f"not allowed: {error}")
    os._exit(0)  # what it inherited is not its to clean up


@pytest.mark.parametrize("limit", [small_tmpfs, small_files])
def test_shared_memory_that_is_too_small(limit):
    for size, expected in ((MEGABYTE // 8, "3 batches"), (2 * MEGABYTE, "a batch of 2 MB does")):
        answer, end = multiprocessing.Pipe()
        # as fetch makes its workers; one thread, so that it may have mounts of its own
        process = multiprocessing.get_context("fork").Process(target=load, args=(limit, size, end))
        process.start()
        said = answer.recv() if answer.poll(60) else "nothing"
        process.join(10)
        process.kill()
        if "not allowed" in said:
            pytest.skip(said)
        assert said.startswith(expected)
    assert "train.loop.num_workers=0" in said
    assert "--shm-size" in said
    if limit is small_tmpfs:
        assert "of 1 MB are free" in said


def killed(step):
    os.kill(os.getpid(), signal.SIGKILL)  # as the system does where memory ends


def test_a_worker_that_is_killed_is_one_line():
    with pytest.raises(RuntimeError) as caught:
        list(fetch(killed, range(2), 1))
    line = one_line(caught.value)
    assert "a process that loads data ended" in line
    assert "lower train.loop.num_workers" in line


def latents_of(step: int) -> LatentBatch:
    target, semantic = (torch.full((1, 4, 2, side, side), step).half() for side in (8, 2))
    return LatentBatch(target, semantic, None, [str(step)])


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("batches", [partial(bytes_of, 12), latents_of])
def test_a_gpu_gets_its_batches_without_waiting(monkeypatch, batches, workers):
    """Through pinned memory, in the bytes they are stored in, and widened over there."""
    device = torch.device("cuda", 0)
    for name, answer in (
        ("is_available", True),
        ("current_accelerator", device),
        ("current_device_index", 0),
        ("set_device_index", None),  # of the thread that pins
    ):
        monkeypatch.setattr(torch.accelerator, name, lambda *_, answer=answer: answer)
    with pretend_cuda() as pretended:
        arrived = [batch.to("cuda") for batch in fetch(batches, range(3), workers, pin_memory=True)]
        assert pretended.stalls == []
        assert all(batch.sources == [str(step)] for step, batch in enumerate(arrived))
        for step, batch in enumerate(arrived):
            for name, tensor in batch.tensors().items():
                assert (tensor.device, tensor.dtype) == (device, torch.float32)
                assert torch.equal(tensor.cpu(), batches(step).to("cpu").tensors()[name])
        back = arrived[0].to("cpu")  # which nobody may read before it is there
        assert {stall.kind for stall in pretended.stalls} == {"to host"}
        assert back.tensors().keys() == arrived[0].tensors().keys()
