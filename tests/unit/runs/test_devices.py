from pathlib import Path

import pytest

from runs import devices
from runs.devices import is_device, list_devices, own_device, split_devices, visible_devices


@pytest.mark.parametrize(
    ("visible", "found"),
    [
        ("", ["cpu"]),
        ("0", ["cuda:0", "cpu"]),
        ("2, 3", ["cuda:2", "cuda:3", "cpu"]),
        ("1,-1,2", ["cuda:1", "cpu"]),
        ("-1", ["cpu"]),
        ("GPU-8f2a", ["cuda:GPU-8f2a", "cpu"]),
    ],
)
def test_devices_that_the_environment_names(visible: str, found: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert list_devices() == found
    assert all(is_device(name) for name in found)


def test_devices_that_the_driver_lists(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(devices, "NVIDIA", tmp_path / "gpus")
    monkeypatch.setattr(devices, "DEVICE_FILES", tmp_path / "dev")
    assert list_devices() == ["cpu"]
    for number in range(4):
        (tmp_path / "gpus" / f"0000:{number}").mkdir(parents=True)
    assert list_devices() == ["cpu"], "of the machine, not of this container"
    (tmp_path / "dev").mkdir()
    for name in ("nvidia0", "nvidia1", "nvidiactl", "nvidia-uvm"):
        (tmp_path / "dev" / name).touch()
    assert list_devices() == ["cuda:0", "cuda:1", "cpu"]


def test_how_devices_are_written() -> None:
    assert split_devices(None) == []
    assert split_devices("cuda:0,cuda:3") == ["cuda:0", "cuda:3"]
    assert (visible_devices("cuda:0,cuda:3"), visible_devices("cpu")) == ("0,3", "")
    for wrong in ("", "gpu", "cuda", "cuda:", "cpu,cuda:0", "cuda:0;ls", "cuda:0,", "cuda:0\n"):
        assert not is_device(wrong), wrong


def test_the_device_of_a_training_in_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,3")
    for name in ("LOCAL_WORLD_SIZE", "ACCELERATE_USE_CPU"):
        monkeypatch.delenv(name, raising=False)
    assert own_device("annotate measure", []) is None
    assert own_device("reward train", []) == "cuda:2"
    assert own_device("refl train", ["--device", "cpu"]) == own_device("refl train", ["--device=cpu"]) == "cpu"
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert own_device("refl ablate", []) == "cuda:2,cuda:3"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert own_device("refl pretrain", []) == "cpu"
