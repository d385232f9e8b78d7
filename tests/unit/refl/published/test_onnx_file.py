"""What an ONNX file takes, gives and needs is read from its table, without onnxruntime."""

from __future__ import annotations

import numpy as np
import pytest

from db.errors import UserError
from refl.published.onnx_file import TensorType, read_onnx_file
from tests import onnx_files
from tests.onnx_files import DOUBLE, FLOAT, face_model, field, model, node, tensor, value_info


def test_inputs_and_outputs_are_read(tmp_path):
    found = read_onnx_file(onnx_files.write(tmp_path / "a.onnx", face_model(512, weight=DOUBLE, batch="n")))
    assert found.inputs == [TensorType("x", "float32", ("n", 3, 512, 512)), TensorType("w", "float64", (1,))]
    assert [one.name for one in found.outputs] == ["y", "besides"]
    assert found.others == set()
    assert found.operators == set()
    assert str(found).startswith("takes x float32[n, 3, 512, 512], w float64[1] and gives y float32")


def test_numbers_that_old_files_list_as_inputs_are_none(tmp_path):
    inputs = [value_info("x", FLOAT, (1,)), value_info("scale", FLOAT, None)]
    stored = [tensor("scale", np.ones(1, "float32"))]
    content = model([node("Mul", ["x", "scale"], "y")], inputs, [value_info("y", FLOAT, (1,))], stored)
    assert [one.name for one in read_onnx_file(onnx_files.write(tmp_path / "a.onnx", content)).inputs] == ["x"]


def test_files_and_operators_are_found_in_graphs_in_graphs(tmp_path):
    far = tensor("far", np.ones(1, "float32"), location="../far.bin")
    inner = field(1, node("Odd", ["x"], "z", domain="their.own")) + field(5, far)
    branch = field(5, field(1, "then_branch") + field(6, inner) + field(20, 5))
    constant = field(5, field(1, "value") + field(5, tensor("near", np.ones(1, "float32"), location="near.bin")))
    nodes = [node("If", ["c"], "y", attributes=branch), node("Constant", [], "k", attributes=constant)]
    found = read_onnx_file(onnx_files.write(tmp_path / "a.onnx", model(nodes, [], [], [])))
    assert found.others == {"../far.bin", "near.bin"}
    assert found.operators == {("their.own", "Odd")}


def test_an_operator_written_out_in_the_file_is_known(tmp_path):
    function = field(1, "Gelu2") + field(10, "pkg") + field(7, node("Relu", ["x"], "y"))
    content = model([node("Gelu2", ["x"], "y", domain="pkg")], [], [], []) + field(25, function)
    assert read_onnx_file(onnx_files.write(tmp_path / "a.onnx", content)).operators == set()


@pytest.mark.parametrize("length", [1, 9, 40, 120])
def test_what_is_cut_off_is_refused(tmp_path, length):
    path = onnx_files.write(tmp_path / "a.onnx", face_model()[:length])
    with pytest.raises(UserError, match="is no ONNX file, or one that is cut off"):
        read_onnx_file(path)


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"", "is empty"),
        (b"version https://git-lfs.github.com/spec/v1\nsize 340256690\n", "Git LFS pointer"),
        (bytes(range(256)) * 20, "is no ONNX file"),
        (b"\x80\x02}q\x00." * 50, "is no ONNX file"),
        (field(1, 8), "there is no graph in it"),
        (field(7, 3), "a number stands where a table should"),
    ],
)
def test_other_files_are_called_what_they_are(tmp_path, content, what):
    with pytest.raises(UserError, match=what):
        read_onnx_file(onnx_files.write(tmp_path / "a.onnx", content))
