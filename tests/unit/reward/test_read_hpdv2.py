"""HPDv2's own files: pairs, rankings, images beside the file or in the split's folder; what is malformed is named."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from db.errors import UserError
from reward.data import load_dataset

TRAIN = [
    {"prompt": "a man", "file_path": ["1.jpg", "2.jpg"], "human_preference": [1, 0], "user_hash": "x"},
    {"prompt": "a man", "file_path": ["2.jpg", "3.jpg"], "human_preference": [0, 1]},
    {"prompt": "a woman", "file_path": ["1.jpg", "4.jpg"], "human_preference": [0.5, 0.5]},
    {"prompt": "", "file_path": ["5.jpg", "6.jpg"], "human_preference": [3, 1]},
]
TEST = [
    {
        "prompt": "a child",
        "image_path": ["a.jpg", "b.jpg", "c.jpg"],
        "rank": [2, 1, 2],
        "raw_annotations": [{"rank": [2, 1, 3]}, {"rank": [3, 1, 2]}, {"rank": [3, 2, 1]}],
    }
]


def write(folder: Path, **splits: object) -> Path:
    folder.mkdir(exist_ok=True)
    for split, items in splits.items():
        (folder / f"{split}.json").write_text(json.dumps(items))
    return folder


def test_pairs_are_read_as_they_stand(tmp_path: Path) -> None:
    pairs = load_dataset(write(tmp_path, train=TRAIN))
    assert [row.p_a for row in pairs.rows] == [1.0, 0.0, 0.5, 0.75]
    assert [row.caption for row in pairs.rows] == ["a man", "a man", "a woman", None]
    assert [row.pair for row in pairs.rows] == [f"hpdv2-train-{number}" for number in range(4)]
    assert {(row.split, row.origin, row.made_by, row.weight) for row in pairs.rows} == {
        ("train", "human", "imported:hpdv2", 1.0)
    }
    assert pairs.rows[0].image_a == tmp_path / "1.jpg"
    # images of one prompt that pairs connect are one source; 1.jpg under another prompt is another
    first, second, third, fourth = (row.source for row in pairs.rows)
    assert first == second
    assert len({first, third, fourth}) == 3


def test_a_ranking_is_all_its_pairs(tmp_path: Path) -> None:
    """b is best and a ties with c; of three people two have b before c, two c before a, all b before a."""
    pairs = load_dataset(write(tmp_path, test=TEST))
    found = {(row.image_a.stem, row.image_b.stem): (row.p_a, row.agreement) for row in pairs.rows}
    assert found == {
        ("a", "b"): (0.0, 1.0),
        ("a", "c"): (0.5, pytest.approx(2 / 3)),
        ("b", "c"): (1.0, pytest.approx(2 / 3)),
    }
    assert {row.split for row in pairs.rows} == {"test"}
    assert len({row.source for row in pairs.rows}) == 1


def test_all_splits_of_a_folder_or_one_file(tmp_path: Path) -> None:
    folder = write(tmp_path, train=TRAIN[:1], val=TRAIN[2:3], test=TEST)
    assert load_dataset(folder).describe() == "5 labelled pairs (train 1, val 1, test 3; human 5)"
    assert load_dataset(folder / "val.json").describe() == "1 labelled pairs (val 1; human 1)"


def test_images_may_lie_in_the_splits_folder(tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "1.jpg").touch()
    (tmp_path / "2.jpg").touch()
    (row,) = load_dataset(write(tmp_path, train=TRAIN[:1])).rows
    assert (row.image_a, row.image_b) == (tmp_path / "train" / "1.jpg", tmp_path / "2.jpg")


@pytest.mark.parametrize(
    ("split", "items", "said"),
    [
        ("train", {"prompt": "x"}, "train.json: is not a list of pairs"),
        ("train", [TRAIN[0], {"prompt": "x"}], r"train.json, item 1: file_path: Field required"),
        ("train", [TRAIN[0] | {"human_preference": [0, 0]}], r"item 0: human_preference must .* not \[0.0, 0.0\]"),
        ("train", [TRAIN[0] | {"human_preference": [2, -1]}], r"item 0: human_preference must be numbers"),
        ("train", [TRAIN[0] | {"file_path": ["1.jpg", "1.jpg"]}], r"1.jpg is compared with itself"),
        ("train", [TRAIN[0] | {"file_path": ["../1.jpg", "2.jpg"]}], r"'../1.jpg' lies outside the dataset"),
        ("test", [TEST[0] | {"rank": [1, 2]}], r"test.json, item 0: a rank of 2 for 3 images"),
        ("test", [TEST[0] | {"image_path": ["a.jpg"]}], r"item 0: image_path: List should have at least 2 items"),
    ],
)
def test_what_is_malformed_is_named(tmp_path: Path, split: str, items: object, said: str) -> None:
    with pytest.raises(UserError, match=said):
        load_dataset(write(tmp_path, **{split: items}))


def test_what_is_no_json_or_another_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "train.json").write_text("[{")
    with pytest.raises(UserError, match=r"train\.json: cannot be read as JSON"):
        load_dataset(tmp_path)
    (tmp_path / "mine.json").write_text("[]")
    with pytest.raises(UserError, match=r"mine\.json is not a dataset"):
        load_dataset(tmp_path / "mine.json")
