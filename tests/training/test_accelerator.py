"""The device that was asked for is the one that trains, its number included."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState, PartialState

from mmrec.assembly import choose_device
from mmrec.commands import train as command
from mmrec.errors import ConfigError
from mmrec.training import accelerator as accelerator_module
from mmrec.training.accelerator import open_accelerator
from tests.tiny_run import TinyEncoders, TinyFeed, tiny_config


@pytest.fixture
def cards(monkeypatch: pytest.MonkeyPatch) -> list[torch.device]:
    """Three cards, as far as torch says; remembers which was made current.  accelerate knows nothing yet."""
    current: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    monkeypatch.setattr(torch.cuda, "set_device", current.append)
    for state in (PartialState, AcceleratorState):
        monkeypatch.setattr(state, "_shared_state", {})
    monkeypatch.delenv("ACCELERATE_TORCH_DEVICE", raising=False)
    return current


def test_a_card_by_number(cards: list[torch.device]) -> None:
    accelerator = open_accelerator(choose_device("cuda:2"))
    assert accelerator.device == torch.device("cuda:2")
    assert accelerator.num_processes == 1
    assert cards == [torch.device("cuda:2")]
    assert "ACCELERATE_TORCH_DEVICE" not in os.environ


def test_a_training_puts_its_model_there(
    cards: list[torch.device],
    tiny_encoders: TinyEncoders,
    tiny_feed: TinyFeed,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Stopped(BaseException):
        """Raised where the model would be made."""

    def assemble(*_: object, device: torch.device, **__: object) -> object:
        raise Stopped(str(device))

    monkeypatch.setattr(command, "assemble", assemble)
    with pytest.raises(Stopped, match="cuda:1"):
        command.train_run(tiny_config(tiny_encoders), feed=tiny_feed.prepared, out=tmp_path / "run", device="cuda:1")


@pytest.mark.parametrize("name", ["cuda", "auto"])
def test_any_card(cards: list[torch.device], name: str) -> None:
    assert open_accelerator(choose_device(name)).device == torch.device("cuda")
    assert cards == []


def test_the_cpu_beside_cards(cards: list[torch.device]) -> None:
    assert open_accelerator(choose_device("cpu")).device == torch.device("cpu")
    assert cards == []


@pytest.mark.parametrize("second", ["cuda:0", "cuda:1", "cuda", "cpu"])
@pytest.mark.parametrize("first", ["cuda:1", "cpu"])
def test_every_training_of_a_process_gets_its_own_device(cards: list[torch.device], first: str, second: str) -> None:
    open_accelerator(choose_device(first))
    assert open_accelerator(choose_device(second)).device == torch.device(second)


def test_processes_that_trained_elsewhere_are_refused(
    cards: list[torch.device], monkeypatch: pytest.MonkeyPatch
) -> None:
    open_accelerator(choose_device("cpu"))
    monkeypatch.setattr(accelerator_module, "launched_processes", lambda: 2)
    with pytest.raises(ConfigError, match=r"trains on cuda alone, got one that has trained on cpu.*--device"):
        open_accelerator(choose_device("cuda"))


def test_a_card_that_is_not_there(cards: list[torch.device]) -> None:
    with pytest.raises(ConfigError, match=r"auto, cpu, cuda:0, cuda:1, cuda:2.*got 'cuda:3'"):
        choose_device("cuda:3")


def test_one_card_is_not_for_several_processes(cards: list[torch.device], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "4")
    with pytest.raises(ConfigError, match=r"one process on one card, got 4 processes on cuda:1.*a card of its own"):
        open_accelerator(choose_device("cuda:1"))
    assert cards == []
