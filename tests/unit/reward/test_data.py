"""Datasets are read strictly: what is wrong is named, and nothing is trained on that is not what it says."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from db.errors import UserError
from reward.data import check_pairs, load_dataset


def test_a_dataset_folder_is_read_whole(make_dataset: Callable[..., Path]) -> None:
    pairs = load_dataset(make_dataset(12))
    assert pairs.describe() == "24 labelled pairs (train 16, val 4, test 4; human 24)"
    assert len(pairs.select("train")) == 16
    assert len(check_pairs(pairs)) == 36
    assert all(row.image_a.exists() for row in pairs.rows)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"p_a": 1.5}, r"pairs.jsonl, line 1: p_a: .*less than or equal to 1"),
        ({"p_a": 0.5}, r"tie is False, but p_a is 0.5"),
        ({"extra": 1}, r"extra: Extra inputs are not permitted"),
        ({"image_a": "../outside.png"}, r"'../outside.png' lies outside the dataset"),
        ({"pair": "the same"}, r"pair the same is there 2 times"),
        ({"group": "one person"}, r"group 'one person' is in the splits train and val"),
        ({"origin": "robot"}, r"origin: Input should be 'human', 'svm' or 'constructed'"),
    ],
)
def test_a_malformed_dataset_is_named(make_dataset: Callable[..., Path], change: dict[str, Any], said: str) -> None:
    def apply(row: dict[str, Any]) -> None:
        row.update(change)

    with pytest.raises(UserError, match=said):
        load_dataset(make_dataset(6 if "group" in change else 1, change=apply))


def test_a_missing_damaged_or_changed_image_is_named_before_training(make_dataset: Callable[..., Path]) -> None:
    pairs = load_dataset(make_dataset(6))
    first = pairs.rows[0].image_a
    content = first.read_bytes()
    for spoilt in (content[: len(content) // 2], b"text", None):
        first.unlink(missing_ok=True)
        if spoilt is not None:
            first.write_bytes(spoilt)
        with pytest.raises(UserError, match=first.name):
            check_pairs(pairs)
    other = pairs.rows[-1].image_b
    first.write_bytes(other.read_bytes())
    with pytest.raises(UserError, match=first.name):
        check_pairs(pairs)


def test_no_dataset_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"is not a dataset.*python -m annotate export"):
        load_dataset(tmp_path)


def test_rows_that_an_editor_of_windows_saved_are_the_same(make_dataset: Callable[..., Path]) -> None:
    folder = make_dataset(6)
    before = load_dataset(folder).fingerprint
    file = folder / "pairs.jsonl"
    file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes().replace(b"\n", b"\r\n"))
    assert load_dataset(folder).fingerprint == before
