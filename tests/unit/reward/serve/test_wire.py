"""What goes over the wire comes out as it went in; whatever else comes is refused, and nothing of it is unpacked."""

from __future__ import annotations

import io
import json
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reward.serve.contract import JSON, NPZ, Answer, Limits, Refusal
from reward.serve.wire import pack_answer, pack_request, read_request
from tests.unit.reward.serve.conftest import BAD, LIMITS, draw_faces, encode, make_npy, save_npz, zip_members

QUICK = settings(max_examples=150, deadline=None)
GOOD = {
    NPZ: save_npz(images=draw_faces(2), inputs=draw_faces(2, 8), captions=np.array(["a", ""])),
    JSON: json.dumps(
        {
            "images": [encode(face, kind) for face, kind in zip(draw_faces(3), ("PNG", "JPEG", "WEBP"), strict=True)],
            "captions": ["a", None, "ü"],
        }
    ).encode(),
}


def test_arrays_come_out_as_they_went_in() -> None:
    images, inputs = draw_faces(3), draw_faces(3, 8, seed=1)
    body = pack_request(images, inputs, ["ein Gesicht", None, "顔"])
    read = read_request(body, NPZ, LIMITS)
    assert np.array_equal(read.images, images)
    assert read.inputs is not None
    assert np.array_equal(read.inputs, inputs)
    assert read.captions == ["ein Gesicht", None, "顔"]
    alone = read_request(pack_request(images, None, [None, "", None]), NPZ, LIMITS)
    assert (alone.inputs, alone.captions) == (None, [None, None, None])


@pytest.mark.parametrize("order", ["C", "F"])
def test_arrays_of_either_order_and_packed_ones_are_read(order: str) -> None:
    images = np.asarray(draw_faces(2), order=order)  # type: ignore[call-overload]
    assert np.array_equal(read_request(save_npz(images=images), NPZ, LIMITS).images, images)


def test_images_of_several_sizes_go_as_json() -> None:
    sizes = [draw_faces(1, side)[0] for side in (8, 40, 17)]
    body = json.dumps({"images": [encode(image) for image in sizes], "inputs": None, "captions": ["", "b", None]})
    read = read_request(body.encode(), JSON, LIMITS)
    assert all(np.array_equal(*pair) for pair in zip(read.images, sizes, strict=True))
    assert (read.inputs, read.captions) == (None, ["", "b", None])


def test_an_answer_as_npz_has_the_numbers() -> None:
    answer = Answer(name="frm", version="reward 1", rewards=[0.1, -2.0], spread=[0.5, 0.25])
    with np.load(io.BytesIO(pack_answer(answer)), allow_pickle=False) as arrays:
        assert arrays["rewards"].dtype == np.float32
        assert np.array_equal(arrays["rewards"], np.float32([0.1, -2.0]))
        assert arrays["spread"].tolist() == [0.5, 0.25]
        assert (str(arrays["name"]), str(arrays["version"])) == ("frm", "reward 1")


@pytest.mark.parametrize("what", [name for name, bad in BAD.items() if bad[0] in (JSON, NPZ) and name != "too large"])
def test_what_is_wrong_is_said(what: str) -> None:
    kind, body, status, words = BAD[what]
    with pytest.raises(Refusal) as refused:
        read_request(body, kind, LIMITS)
    assert words in str(refused.value)
    assert "\n" not in str(refused.value)
    assert refused.value.status == status


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        (NPZ, zip_members(images=make_npy("'|u1'", "(1, 40, 40, 3)", bytes(60_000_000)))),
        (NPZ, zip_members(images=make_npy("'|u1'", "(1, 2, 2, 3)", bytes(12), version=2, padding=60_000_000))),
        (NPZ, zip_members(images=make_npy("'|u1'", "(4, 999999, 999999, 3)"))),
        (JSON, json.dumps({"images": [encode(np.zeros((7000, 7000, 3), np.uint8))]}).encode()),
        (JSON, b'{"images": [' + b"[]," * 3_000_000 + b"[]]}"),
    ],
    ids=["bomb", "bomb of a header", "terabytes", "147 MB of black", "many lists"],
)
def test_a_small_body_cannot_become_a_large_one(kind: str, body: bytes) -> None:
    tracemalloc.start()
    with pytest.raises(Refusal):
        read_request(body, kind, Limits())
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 3 * len(body) + 2_000_000


@QUICK
@given(body=st.binary(max_size=2_000), kind=st.sampled_from([JSON, NPZ]))
def test_random_bytes_are_refused(body: bytes, kind: str) -> None:
    with pytest.raises(Refusal) as refused:
        read_request(body, kind, LIMITS)
    assert 400 <= refused.value.status < 500


@QUICK
@given(kind=st.sampled_from([JSON, NPZ]), places=st.data())
def test_damaged_bodies_are_read_or_refused(kind: str, places: st.DataObject) -> None:
    body = bytearray(GOOD[kind])
    for _ in range(places.draw(st.integers(1, 4))):
        body[places.draw(st.integers(0, len(body) - 1))] = places.draw(st.integers(0, 255))
    if places.draw(st.booleans()):
        del body[places.draw(st.integers(0, len(body) - 1)) :]
    status = 200
    try:
        read_request(bytes(body), kind, LIMITS)
    except Refusal as refused:
        status = refused.status
    assert 200 <= status < 500
