"""Weight files are read by their content under any name, and what else lies there is named with what to do."""

from __future__ import annotations

import argparse
import io
import json
import os
import pickle
import re
import shlex
import sys
import tarfile
import zipfile
from collections import OrderedDict, defaultdict
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs torch: `make install`")
from safetensors.torch import save_file  # noqa: E402

from db.errors import UserError  # noqa: E402
from training.weights import (  # noqa: E402
    check_strictly,
    list_candidates,
    map_weights,
    read_checkpoint,
    read_weights,
    save_tensors,
    strip_prefix,
)

CASES = Path(__file__).resolve().parents[4] / "shared" / "cases" / "weights"
STATE = {"a.bias": torch.tensor([1.0, 2.0]), "a.weight": torch.arange(6.0).reshape(2, 3)}


def write(path: Path, content) -> Path:
    torch.save(content, path)
    return path


def is_state(found) -> bool:
    return set(found) == set(STATE) and all(torch.equal(found[name], value) for name, value in STATE.items())


def refusal(path: Path) -> str:
    with pytest.raises(UserError) as caught:
        map_weights(path)
    said = str(caught.value)
    assert said.startswith(f"{path}: ")
    assert "\n" not in said
    assert "weights_only=True" not in said
    return said


@pytest.mark.skipif(not CASES.is_dir(), reason="needs ../shared/cases/weights, which is absent")
@pytest.mark.parametrize("name", ["safetensors_named.pth", "UPPER.SAFETENSORS", "np_scalar.pth", "orig_mod.pth"])
def test_the_case_is_a_restorer(name):
    pytest.importorskip("spandrel", reason="needs spandrel: `make install`")
    from refl.restorers.feedforward import read_descriptor

    assert read_descriptor(CASES / name).architecture.name == "NAFNet"


@pytest.mark.skipif(not CASES.is_dir(), reason="needs ../shared/cases/weights, which is absent")
@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("lfs.pth", "Git LFS pointer.*git lfs pull"),
        ("html.pth", "web page.*browser"),
        ("empty.pth", "is empty; get it again"),
        ("trunc.pth", "cut off.*get it again"),
        ("text.pt", "a text .hello world."),
    ],
)
def test_the_case_is_told(name, said):
    with pytest.raises(UserError, match=said):
        map_weights(CASES / name)


def test_every_case_is_tried():
    if not CASES.is_dir():
        pytest.skip("needs ../shared/cases/weights, which is absent")
    read = {"safetensors_named.pth", "UPPER.SAFETENSORS", "np_scalar.pth", "orig_mod.pth"}
    told = {"lfs.pth", "html.pth", "empty.pth", "trunc.pth", "text.pt"}
    assert {path.name for path in CASES.iterdir()} == read | told


def save(path: Path, form: str) -> None:
    if form == "safetensors":
        save_file(STATE, path)
    else:
        torch.save(STATE, path, _use_new_zipfile_serialization=form == "zip")


@pytest.mark.parametrize("name", ["w.safetensors", "W.SAFETENSORS", "w.pth", "w.ckpt", "weights", "w.safetensors.1"])
@pytest.mark.parametrize("form", ["safetensors", "zip", "legacy"])
def test_the_name_says_nothing(tmp_path, name, form):
    path = tmp_path / name
    save(path, form)
    assert is_state(map_weights(path))
    assert is_state(read_weights(path))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64, torch.float8_e4m3fn])
@pytest.mark.parametrize("form", ["safetensors", "torch"])
def test_any_floating_numbers_become_the_wanted_ones(tmp_path, dtype, form):
    state = {name: value.to(dtype) for name, value in STATE.items()}
    path = tmp_path / "w"
    save_file(state, path) if form == "safetensors" else torch.save(state, path)
    assert is_state(read_weights(path))


@pytest.mark.parametrize("core", ["numpy.core", "numpy._core"])
def test_numpys_numbers_and_arrays_are_read(tmp_path, core):
    content = {
        "state_dict": {name: value.numpy() for name, value in STATE.items()},
        "epoch": np.int64(3),
        "best": np.float64(2.5),
        "done": np.bool_(True),
        "random": ("MT19937", np.arange(4, dtype=np.uint32), 4, 0, 0.0),
        "swapped": np.arange(3, dtype=">f4"),
        "columns": np.asfortranarray(np.arange(6).reshape(2, 3)),
        "none": np.zeros((0, 3)),
        "zero": np.array(7),
        "names": np.array(["left", "right"]),
    }
    path = write(tmp_path / "w.pth", content)
    rename_in_zip(path, b"numpy._core", core.encode())
    found = read_checkpoint(path)
    assert is_state(map_weights(path))
    assert (found["epoch"], found["best"], found["done"]) == (3, 2.5, True)
    assert type(found["epoch"]) is int
    assert found["random"][1].tolist() == [0, 1, 2, 3]
    assert found["swapped"].tolist() == [0, 1, 2]
    assert found["columns"].tolist() == [[0, 1, 2], [3, 4, 5]]
    assert found["none"].shape == (0, 3)
    assert found["zero"].item() == 7
    assert found["names"] == ["left", "right"]


def rename_in_zip(path: Path, old: bytes, new: bytes) -> None:
    """Replace bytes in the pickle of a torch file, as another numpy would have written it."""
    with zipfile.ZipFile(path) as archive:
        members = {info.filename: archive.read(info) for info in archive.infolist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name, content in members.items():
            archive.writestr(name, content.replace(old, new) if name.endswith("data.pkl") else content)


def test_arrays_of_small_floats_are_read(tmp_path):
    ml_dtypes = pytest.importorskip("ml_dtypes", reason="needs ml_dtypes")
    path = write(tmp_path / "w.pth", {name: v.numpy().astype(ml_dtypes.bfloat16) for name, v in STATE.items()})
    assert map_weights(path)["a.bias"].dtype == torch.bfloat16
    assert is_state(read_weights(path))


class Dangerous:
    def __reduce__(self):
        return os.mkdir, ("made-by-a-pickle",)


class LyingArray:
    """An array of objects that says it is one of bytes: numpy itself would take the bytes for addresses."""

    def __reduce__(self):
        from numpy._core.multiarray import _reconstruct

        return _reconstruct, (np.ndarray, (0,), b"b"), (1, (1,), np.dtype("O"), False, b"AAAAAAAA")


@pytest.mark.parametrize("legacy", [False, True])
def test_nothing_is_run(tmp_path, monkeypatch, legacy):
    monkeypatch.chdir(tmp_path)
    for content in (Dangerous(), {"a": STATE["a.bias"], "b": Dangerous()}):
        torch.save(content, tmp_path / "w.pth", _use_new_zipfile_serialization=not legacy)
        assert "mkdir" in refusal(tmp_path / "w.pth")
    assert not (tmp_path / "made-by-a-pickle").exists()


def test_an_array_of_objects_is_refused(tmp_path):
    assert "not of numbers" in refusal(write(tmp_path / "w.pth", {"a": LyingArray()}))
    assert "not of numbers" in refusal(write(tmp_path / "w.pth", {"a": np.array([{}, None])}))
    assert "not of numbers" in refusal(write(tmp_path / "w.pth", {"a": np.zeros(2, dtype=[("x", "f4")])}))


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize(
    ("content", "named"),
    [
        ({"state_dict": STATE, "args": argparse.Namespace(lr=1)}, "argparse.Namespace"),
        ({"params": STATE, "where": Path("x")}, "pathlib"),
        ({"params": STATE, "notes": np.array([{}, None])}, "numpy.ndarray"),
        ({"params": STATE, "notes": np.zeros(2, dtype=[("x", "f4")])}, "numpy.ndarray"),
        ({"params": STATE, "notes": np.datetime64("2020-01-01")}, "numpy.ndarray"),
        ({"params": defaultdict(int, STATE)}, "collections.defaultdict"),
        (torch.nn.Sequential(OrderedDict(a=torch.nn.Linear(3, 2))), "torch.nn.modules.linear.Linear"),
        ({"model": torch.nn.Sequential(OrderedDict(a=torch.nn.Linear(3, 2)))}, "torch.nn.modules"),
    ],
)
def test_other_objects_are_named_with_a_way_to_convert_that_works(tmp_path, content, named, legacy):
    path = tmp_path / "my weights.pth"
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    said = refusal(path)
    assert named in said
    assert "trust" in said
    convert(said)


def test_a_torchscript_archive_is_told_with_a_way_to_convert_that_works(tmp_path):
    module = torch.nn.Sequential(OrderedDict(a=torch.nn.Linear(3, 2)))
    torch.jit.trace(module, torch.zeros(1, 3)).save(str(tmp_path / "w.pt"))
    said = refusal(tmp_path / "w.pt")
    assert "TorchScript" in said
    convert(said)


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_a_pickle_of_another_kind_is_told_with_a_way_to_convert_that_works(tmp_path, protocol):
    path = tmp_path / "w.pkl"
    path.write_bytes(pickle.dumps({name: value.numpy() for name, value in STATE.items()}, protocol=protocol))
    said = refusal(path)
    assert "a Python pickle that torch did not write" in said
    convert(said)
    if protocol > 2:
        torch.save(STATE, path, pickle_protocol=protocol)
        convert(refusal(path))


def convert(said: str) -> None:
    """Do what the command of a refusal does, here where torch is loaded; check that what it writes is read."""
    program, code, *arguments = shlex.split(said[said.index("python -c") :].removesuffix("."))[1:]
    assert program == "-c"
    with patch.object(sys, "argv", [program, *arguments]):
        exec(code, {"__name__": "__main__"})
    assert set(map_weights(Path(arguments[-1]))) == set(STATE)


def zip_of(**members: bytes) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return stream.getvalue()


def tar_of(name: str, content: bytes) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        info = tarfile.TarInfo(name)
        info.size = len(content)
        archive.addfile(info, io.BytesIO(content))
    return stream.getvalue()


LFS = "version https://git-lfs.github.com/spec/v1\r\noid sha256:00\r\nsize 1234567\r\n"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is empty"),
        (LFS.encode(), "Git LFS pointer, not the file of 1,234,567 bytes"),
        (b"\xef\xbb\xbf" + LFS.encode(), "Git LFS pointer"),
        (b"\n\n  <HTML><head><title>Sign\nin</title>", r"web page \(Sign in\)"),
        (b"<!doctype html>" + b"x" * 9000, "web page"),
        ("<!DOCTYPE html><p>größer".encode("utf-16"), "web page"),
        (b"<?xml version='1.0'?><Error><Message>Access Denied</Message>", r"web page \(Access Denied\)"),
        (b'{"error": "Repository not found"}', "in JSON .*Repository not found"),
        (b'[{"error": 1}]', "in JSON"),
        (b"Access to model x is restricted.", "text .*restricted"),
        (b"\0" * 5000, "begins with zeros"),
        (b"\x00\x05\x16\x07\x00\x02\x00\x00Mac OS X", "companion that macOS wrote"),
        (zip_of(**{"a/b.png": b"x"}), r"zip archive of other things \(a/b.png\)"),
        (tar_of("w.pth", b"x"), "tar archive"),
        (b"\x1f\x8b\x08rest", "gzip"),
        (b"\x89HDF\r\n\x1a\n", "HDF5"),
        (b"GGUF\x03", "GGUF"),
        (np.lib.format.magic(1, 0) + b"rest", "numpy array"),
        (bytes(range(128, 256)), "neither safetensors nor torch"),
        (b"\x08\x07\x12\x07pytorch", "neither safetensors nor torch"),
    ],
)
def test_what_lies_there_instead_is_told(tmp_path, content, said):
    (tmp_path / "w.pth").write_bytes(content)
    assert re.search(said, refusal(tmp_path / "w.pth"))


@pytest.mark.parametrize("form", ["safetensors", "zip", "legacy"])
def test_a_file_cut_anywhere_is_told(tmp_path, form):
    path, cut = tmp_path / "w", tmp_path / "cut.pth"
    save(path, form)
    content = path.read_bytes()
    for at in {1, 4, 9, 100, *range(50, len(content), len(content) // 23), len(content) - 1}:
        cut.write_bytes(content[:at])
        said = refusal(cut)
        assert "cut off" in said or at < 60
        assert "weights_only" not in said
    if form == "safetensors":
        cut.write_bytes(content + b"more")
        assert "is damaged" in refusal(cut)
        cut.write_bytes(content[:8] + b"{" + b"\0" * (len(content) - 9))
        assert "is damaged" in refusal(cut)


def test_a_folder_or_no_file_is_told(tmp_path):
    assert "Give the file in this folder" in refusal(tmp_path)
    assert "No such file" in refusal(tmp_path / "absent.pth")
    with pytest.raises(UserError, match="No such file"):
        read_weights(tmp_path / "absent.pth")


def test_a_file_of_the_other_byte_order_is_read(tmp_path):
    path = tmp_path / "w.pth"
    torch.save(STATE, path)
    with zipfile.ZipFile(path) as archive:
        members = {info.filename: archive.read(info) for info in archive.infolist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name, content in members.items():
            if "/data/" in name:
                content = np.frombuffer(content, "<f4").astype(">f4").tobytes()
            archive.writestr(name, b"big" if name.endswith("byteorder") else content)
    assert is_state(read_weights(path))


def test_a_file_in_parts_is_read_by_its_index(tmp_path):
    parts = {name: f"model-0000{place}-of-00002.safetensors" for place, name in enumerate(STATE)}
    for name, file in parts.items():
        save_file({name: STATE[name]}, tmp_path / file)
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": parts}, indent=2))
    assert is_state(map_weights(index))
    assert is_state(read_weights(index))
    (tmp_path / parts["a.bias"]).unlink()
    assert "model-00000-of-00002.safetensors must lie beside it" in refusal(index)
    index.write_text(json.dumps({"weight_map": {"a.bias": "../w.safetensors"}}))
    assert "must lie beside it" in refusal(index)


OTHER = {name: value + 1 for name, value in STATE.items()}


@pytest.mark.parametrize(
    "content",
    [
        {"state_dict": STATE},
        {"params": OTHER, "params_ema": STATE},
        {"generator": STATE, "discriminator": OTHER, "optimizer": {"state": {0: {"exp_avg": torch.ones(1)}}}},
        {"model": {"state_dict": STATE}, "epoch": 3},
        {"state_dict": STATE, "global_step": torch.tensor(3), "callbacks": {"EMA": STATE}, "hyper_parameters": {}},
        {"module": STATE, "buffer_names": [], "param_shapes": [{"a.weight": torch.Size([2, 3])}], "optimizer": None},
        {"state_dict": OTHER, "state_dict_ema": STATE},
        {"whatever": STATE, "optimizer_states": [{"state": {}}], "lr_scheduler": {"x": torch.ones(1)}},
        {"epoch": torch.tensor(3), "weights": STATE},
        STATE | {"epoch": 3, "name": "mine", "none": None},
        {f"_orig_mod.{name}": value for name, value in STATE.items()},
        {name.replace("a.", "a._orig_mod."): value for name, value in STATE.items()},
        {f"_fsdp_wrapped_module.{name}": torch.nn.Parameter(value) for name, value in STATE.items()},
    ],
)
def test_the_table_is_found(tmp_path, content):
    assert is_state(map_weights(write(tmp_path / "w.pth", content)))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"first": STATE, "second": OTHER}, "several tables of tensors .first; second"),
        ({"epoch": 3, "lr": 0.1}, "no tensors by name, but a table of epoch; lr"),
        ([torch.ones(1)], "but a list"),
        (torch.ones(1), "but a Tensor"),
        ({}, "but a dict"),
        ({"a": torch.ones(1, device="meta")}, "a has no numbers"),
        ({"a": torch.ones(2, 2).to_sparse()}, "a is torch.sparse_coo"),
        ({"a": torch.ones(1), "_orig_mod.a": torch.ones(1)}, "twice"),
    ],
)
def test_what_is_no_table_of_weights_is_told(tmp_path, content, said):
    assert re.search(said, refusal(write(tmp_path / "w.pth", content)))


@pytest.mark.parametrize("prefix", ["", "module.", "model.", "net_g.", "model.module.", "params_ema.", "any.thing."])
def test_any_prefix_comes_off(prefix):
    state = {f"{prefix}{name}": value for name, value in STATE.items()}
    others = {"loss.weight": torch.ones(1)} if prefix else {}
    assert is_state(strip_prefix(state | others, STATE, "w.pth"))


def test_an_averages_prefix_comes_first_and_doubt_is_told():
    def below(prefix, state):
        return {f"{prefix}.{name}": value for name, value in state.items()}

    assert is_state(strip_prefix(below("online_model", OTHER) | below("ema_model", STATE), STATE, "w.pth"))
    assert is_state(strip_prefix(OTHER | below("ema", STATE), STATE, "w.pth"))
    with pytest.raises(UserError, match=r"w\.pth: holds the same names below student\.; teacher\."):
        strip_prefix(below("student", STATE) | below("teacher", OTHER), STATE, "w.pth")


def test_an_architecture_is_sought_below_known_prefixes():
    found = list(list_candidates({"model.net.x": torch.ones(1), "loss.y": torch.ones(1)}))
    assert [list(state) for state in found] == [["model.net.x", "loss.y"], ["net.x"], ["x"]]


def test_after_unwrapping_it_is_strict():
    expected = {"a": torch.zeros(2), "b": torch.zeros(1), "n": torch.zeros((), dtype=torch.int64)}
    check_strictly(expected, expected | {"a": torch.zeros(2, dtype=torch.float16)}, "w.pth", "it")
    for found, said in (
        ({"b": expected["b"], "n": expected["n"]}, "a is missing"),
        (expected | {"c": torch.ones(1)}, "c is unknown"),
        (expected | {"a": torch.zeros(3)}, r"a is \[3\], not \[2\]"),
        (expected | {"a": torch.zeros(2, dtype=torch.int8)}, r"a holds whole numbers \(torch.int8\), not floating"),
        (expected | {"n": torch.zeros(())}, r"n holds floating-point numbers \(torch.float32\), not whole"),
        (expected | {"a": torch.zeros(2, dtype=torch.complex64)}, "a holds complex numbers"),
    ):
        with pytest.raises(UserError, match=rf"w\.pth: not the weights of it: {said}"):
            check_strictly(expected, found, "w.pth", "it")


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o002, 0o664), (0o077, 0o600)])
def test_what_is_saved_obeys_the_umask(tmp_path, umask, mode):
    before = os.umask(umask)
    try:
        for _ in range(2):
            save_tensors(STATE, tmp_path / "w.safetensors")
    finally:
        os.umask(before)
    assert (tmp_path / "w.safetensors").stat().st_mode & 0o777 == mode
    assert [path.name for path in tmp_path.iterdir()] == ["w.safetensors"]
    assert is_state(map_weights(tmp_path / "w.safetensors"))
