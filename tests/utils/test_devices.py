"""Which card a process takes: asked of torch as on a machine with two of them."""

from contextlib import contextmanager

import pytest
import torch

from diffusion.utils.devices import choose_device, choose_dtype, own_device
from diffusion.utils.errors import UserError


class Cards:
    """What torch says of CUDA cards, of which the first only emulates bf16."""

    has_bf16 = (False, True)
    current = 0

    def device_count(self):
        return len(self.has_bf16)

    def is_available(self):
        return True

    def set_device(self, device):
        self.current = torch.device(device).index

    @contextmanager
    def device(self, device):
        before, index = self.current, torch.device(device).index
        self.current = before if index is None else index
        yield
        self.current = before

    def is_bf16_supported(self, including_emulation=True):
        return including_emulation or self.has_bf16[self.current]


@pytest.fixture
def cards(monkeypatch):
    cards = Cards()
    for name in ("device_count", "is_available", "set_device", "device", "is_bf16_supported"):
        monkeypatch.setattr(torch.cuda, name, getattr(cards, name))
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    return cards


def test_bf16_is_chosen_where_the_card_that_was_asked_for_computes_it(cards):
    assert choose_dtype("auto", torch.device("cuda:0")) == torch.float16
    assert choose_dtype("auto", torch.device("cuda:1")) == torch.bfloat16
    cards.current = 1
    assert choose_dtype("auto", torch.device("cuda:0")) == torch.float16
    assert cards.current == 1
    assert choose_dtype("bf16", torch.device("cuda:0")) == torch.bfloat16  # who asks gets it


@pytest.mark.parametrize(("name", "index"), [("auto", 0), ("cuda", 0), ("cuda:1", 1)])
def test_the_chosen_card_is_the_current_one(cards, name, index):
    cards.current = 1 - index
    device = own_device(choose_device(name))
    assert device == torch.device("cuda", index)
    assert cards.current == index


def test_every_process_of_torchrun_has_a_card_of_its_own(cards, monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert own_device(choose_device("auto")) == torch.device("cuda:1")
    assert cards.current == 1
    assert own_device(choose_device("cuda:0")) == torch.device("cuda:0")
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(UserError, match="process 3 of this machine has no GPU: there are 2"):
        own_device(choose_device("auto"))


def test_parts_share_the_cards_where_there_are_few(cards):
    assert [own_device(choose_device("auto"), n).index for n in range(4)] == [0, 1, 0, 1]


def test_cards_that_are_not_there(cards):
    with pytest.raises(UserError, match="there are only 2 CUDA devices"):
        choose_device("cuda:2")
    with pytest.raises(UserError, match="is unknown"):
        choose_device("gpu")


def test_a_cpu_is_asked_itself(cards):
    assert own_device(torch.device("cpu")) == torch.device("cpu")
    assert choose_dtype("auto", torch.device("cpu")) in (torch.bfloat16, torch.float32)
