"""Every foreign format, read again as its own readers read it."""

from __future__ import annotations

import itertools
import json
import uuid
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, get_args

import pyarrow.parquet as pq
import pytest
from PIL import Image as PilImage
from sqlalchemy import select

from annotate.exchange.export import export_dataset, write_dataset
from annotate.judging.pairs import make_pairs
from annotate.judging.people import add_person
from dataset.files import Row
from dataset.formats import TRL_ANSWERS
from dataset.options import ExportOptions, Format
from db.models import Pair, Split
from db.project import load_settings
from db.session import Database
from tests.making import add_face, add_photos, judge, read_lines

SPLITS = (Split.train, Split.train, Split.val, Split.test)
CHOICES = ("a", "b", "tie")


@pytest.fixture
def export(
    database: Database, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., tuple[Path, dict[str, dict[str, Any]]]]:
    """Exports 12 judged pairs of four sources, a third of them ties; gives the folder and the rows by pair."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    with database.write() as session:
        for number, split in enumerate(SPLITS):
            images = add_photos(session, data, tmp_path, range(10 * number, 10 * number + 4))
            caption = f"portrait {number}" if number else None
            add_face(
                session, f"face{number}", ("bicubic", "gfpgan", "codeformer"), *images, split=split, caption=caption
            )
        make_pairs(session, load_settings(session))
        ada, ben = add_person(session, "ada"), add_person(session, "ben")
        for place, pair in enumerate(session.scalars(select(Pair).order_by(Pair.id))):
            for person in (ada, ben):
                number = str(uuid.UUID(int=100 * pair.id + person.id))
                judge(session, person.id, pair.id, CHOICES[place % 3], uuid=number)

    def run(format: str, **options: Any) -> tuple[Path, dict[str, dict[str, Any]]]:
        reference = tmp_path / "rows"
        if not reference.exists():
            export_dataset(database, data, reference, ExportOptions(format="jsonl"))
        out = tmp_path / format
        export_dataset(database, data, out, ExportOptions.model_validate({"format": format, **options}))
        return out, {row["pair"]: row for row in read_lines(reference / "pairs.jsonl")}

    return run


def stored(out: Path, row: dict[str, Any], side: str) -> bytes:
    return (out.parent / "rows" / row[f"image_{side}"]).read_bytes()


def find(rows: dict[str, dict[str, Any]], first: str, second: str) -> tuple[dict[str, Any], str, str]:
    """(row, side of the first file, side of the second) by the files' names or SHA-256."""
    for row in rows.values():
        for a, b in (("a", "b"), ("b", "a")):
            if row[f"sha256_{a}"] in first and row[f"sha256_{b}"] in second:
                return row, a, b
    raise AssertionError(f"no row has {first} and {second}")


def hpdv2_items(folder: Path) -> list[tuple[str, list[Path], list[float]]]:
    """As HPSv2's HPDDataset reads train.json: prompt, the two images under the folder, human_preference."""
    items = json.loads((folder / "train.json").read_text(encoding="utf-8"))
    return [(item["prompt"], [folder / path for path in item["file_path"]], item["human_preference"]) for item in items]


def test_hpdv2(export: Callable[..., Any]) -> None:
    out, rows = export("hpdv2")
    items = hpdv2_items(out)
    assert len(items) == 6
    for prompt, (first, second), preference in items:
        row, a, b = find(rows, first.name, second.name)
        p = {a: row["p_a"] if a == "a" else 1 - row["p_a"], b: row["p_a"] if b == "a" else 1 - row["p_a"]}
        assert preference == [p[a], p[b]]
        assert prompt == (row["caption"] or "a high-quality photo of a face")
        assert PilImage.open(first).size == PilImage.open(second).size
        assert first.name < second.name  # content-derived, so the place says nothing of the winner
    test = json.loads((out / "test.json").read_text(encoding="utf-8"))
    assert len(test) == 2
    for item in test:
        row, a, b = find(rows, *item["image_path"])
        expected = [1 if row["p_a"] == float(a == "a") else 2, 1 if row["p_a"] == float(b == "a") else 2]
        assert item["rank"] == expected
        assert [annotation["rank"] for annotation in item["raw_annotations"]] == [expected, expected]
        assert len({annotation["user_hash"] for annotation in item["raw_annotations"]}) == 2


def test_hpdv2_without_ties(export: Callable[..., Any]) -> None:
    out, rows = export("hpdv2", ties="drop")
    assert len(hpdv2_items(out)) == sum(row["split"] == "train" and not row["tie"] for row in rows.values())
    assert all(sorted(preference) == [0, 1] for _, _, preference in hpdv2_items(out))


def inversion_score(predicted: list[float], ranks: list[int]) -> float:
    """As HPSv2 counts its accuracy on test.json (src/training/train.py): 1 less the share of pairs in wrong order."""
    pairs = list(itertools.combinations(range(len(ranks)), 2))
    wrong = [(predicted[i] - predicted[j]) * (ranks[i] - ranks[j]) < 0 for i, j in pairs]
    return 1 - sum(wrong) / len(pairs)


def test_a_model_that_is_always_wrong_gets_no_point_by_the_count_of_hpsv2(export: Callable[..., Any]) -> None:
    out, _ = export("hpdv2")
    items = json.loads((out / "test.json").read_text(encoding="ascii"))
    assert [inversion_score([-rank for rank in item["rank"]], item["rank"]) for item in items] == [0.0, 0.0]
    assert "counts a tie as right" in (out / "README.md").read_text(encoding="utf-8")


def test_imagereward(export: Callable[..., Any]) -> None:
    """As ImageReward's make_dataset reads train, valid and test: the lower rank is better."""
    out, rows = export("imagereward")
    decided = {}
    for name in ("train", "valid", "test"):
        items = json.loads((out / f"{name}.json").read_text(encoding="ascii"))
        for item in items:
            _, a, b = find(rows, *item["generations"])
            first, second = item["ranking"]
            assert first != second  # HPSv2's calc_ImageReward divides by the number of pairs that are no tie
            assert rows[item["id"]]["p_a"] == float((a if first < second else b) == "a")
        decided[name] = len(items)
    assert decided == {"train": 4, "valid": 2, "test": 2}
    assert sorted(path.name for path in out.glob("*.json") if path.name != "licences.json") == [
        *("test.json", "train.json", "valid.json")
    ]


def test_pickapic(export: Callable[..., Any], tmp_path: Path) -> None:
    from datasets import load_dataset

    out, rows = export("pickapic")
    loaded = load_dataset(str(out), cache_dir=str(tmp_path / "cache"))
    assert {split: len(part) for split, part in loaded.items()} == {"train": 6, "validation": 3, "test": 3}
    published = {
        "are_different", "best_image_uid", "caption", "created_at", "has_label", "image_0_uid", "image_0_url",
        "image_1_uid", "image_1_url", "jpg_0", "jpg_1", "label_0", "label_1", "model_0", "model_1", "ranking_id",
        "user_id", "num_example_per_prompt",
    }  # fmt: skip
    assert set(loaded["train"].column_names) == published
    for item in loaded["train"]:
        row, a, b = find(rows, item["image_0_uid"], item["image_1_uid"])
        assert item["label_0"] + item["label_1"] == 1.0
        assert item["label_0"] == (row["p_a"] if a == "a" else 1 - row["p_a"])
        assert (item["jpg_0"], item["jpg_1"]) == (stored(out, row, a), stored(out, row, b))
        assert (item["model_0"], item["model_1"]) == (row[f"method_{a}"], row[f"method_{b}"])


def test_diffusion_dpo_has_no_ties(export: Callable[..., Any]) -> None:
    """As the script prepares a batch: the images are swapped where label_0 is 0, and the first is the preferred one."""
    out, rows = export("diffusion-dpo")
    items = pq.read_table(out / "data" / "train.parquet").to_pylist()
    assert set(items[0]) == {"jpg_0", "jpg_1", "label_0", "caption"}
    assert len(items) == 4
    for item in items:
        images = [item["jpg_0"], item["jpg_1"]]
        if not item["label_0"]:
            images = images[::-1]
        winners = [
            (stored(out, row, "a"), stored(out, row, "b"))[:: 1 if row["p_a"] == 1 else -1]
            for row in rows.values()
            if not row["tie"]
        ]
        assert tuple(images) in winners
    assert {item["label_0"] for item in items} <= {0, 1}


def test_trl(export: Callable[..., Any], tmp_path: Path) -> None:
    """As TRL's DataCollatorForVisionPreference takes rows: a place for each image in the prompt, answers of text."""
    from datasets import load_dataset

    out, rows = export("trl")
    loaded = load_dataset(str(out), split="train", cache_dir=str(tmp_path / "cache"))
    assert loaded.column_names == ["prompt", "chosen", "rejected", "images"]
    answers = [[{"role": "assistant", "content": [{"type": "text", "text": text}]}] for text in TRL_ANSWERS]
    raw = pq.read_table(out / "data" / "train.parquet").to_pylist()
    assert len(raw) == len(loaded) == 4
    for item, stored_item in zip(loaded, raw, strict=True):
        row, *sides = find(rows, *(image["path"] for image in stored_item["images"]))
        assert [image["bytes"] for image in stored_item["images"]] == [stored(out, row, side) for side in sides]
        assert [image.size for image in item["images"]] == [(24, 32)] * 2
        (message,) = item["prompt"]
        assert (message["role"], [part["type"] for part in message["content"]]) == ("user", ["image", "image", "text"])
        assert (row["caption"] or "a high-quality photo of a face") in message["content"][2]["text"]
        chosen = sides.index("a" if row["p_a"] == 1 else "b")
        assert (item["chosen"], item["rejected"]) == (answers[chosen], answers[1 - chosen])
    assert {item["chosen"][0]["content"][0]["text"] for item in raw} == set(TRL_ANSWERS)


def test_imagefolder(export: Callable[..., Any], tmp_path: Path) -> None:
    from datasets import load_dataset

    out, rows = export("imagefolder")
    loaded = load_dataset(str(out), cache_dir=str(tmp_path / "cache"))
    by_name = load_dataset("imagefolder", data_dir=str(out), cache_dir=str(tmp_path / "cache-2"))
    assert by_name["train"]["pair"][:] == loaded["train"]["pair"][:]
    assert {split: len(part) for split, part in loaded.items()} == {"train": 4, "validation": 2, "test": 2}
    for item in loaded["train"]:
        row = rows[item["pair"]]
        winner, loser = ("a", "b") if row["p_a"] == 1 else ("b", "a")
        for column, name in (
            ("chosen", row[f"image_{winner}"]),
            ("rejected", row[f"image_{loser}"]),
            ("lq", row["lq"]),
        ):
            with PilImage.open(out.parent / "rows" / name) as original:
                assert item[column].tobytes() == original.convert("RGB").tobytes(), column


def test_parquet_has_the_fields_of_our_jsonl(export: Callable[..., Any]) -> None:
    out, rows = export("parquet")
    assert {row["pair"]: row for row in pq.read_table(out / "pairs.parquet").to_pylist()} == rows
    judgments = pq.read_table(out / "judgments.parquet").to_pylist()
    assert judgments == read_lines(out.parent / "rows" / "judgments.jsonl")
    for row in rows.values():
        assert (out / row["image_a"]).read_bytes() == stored(out, row, "a")


LATE = 8
"""Rows of `late_rows` that have what all rows before them lack."""


def late_rows(names: list[str], filler: str, count: int) -> tuple[list[Row], list[Row]]:
    """(pairs, judgments) whose optional columns are empty but in the last LATE of `count` rows, some in each split."""
    rows: list[Row] = []
    judgments: list[Row] = []
    for number in range(count):
        late = number >= count - LATE
        key = f"{number:032x}"
        a, b, lq, hq = names if late else (*names[:2], None, None)
        files = {"image_a": a, "image_b": b, "lq": lq, "hq": hq}
        hashes = {f"sha256_{field[-2:].lstrip('_')}": name and Path(name).stem for field, name in files.items()}
        p_a = (0.5, 0.25, 1.0)[number // 3 % 3] if late else float(number % 2)
        rows.append(
            {
                "pair": key,
                "source": f"face {number}",
                "split": ("train", "val", "test")[number % 3],
                "group": filler,
                "caption": f"z{filler}" if late else None,  # sorted after the others' prompt, as HPDv2's are
                **files,
                **hashes,
                "method_a": filler,
                "method_b": "b",
                "seed_a": 0,
                "seed_b": 0,
                "p_a": p_a,
                "tie": p_a == 0.5,
                "origin": "human" if late else "svm",
                "made_by": "majority",
                "weight": 1.0,
                "agreement": 0.75 if late else None,
                "judgments": [key] if late else [],
                "tasks": [],
            }
        )
        judgments.append(
            {
                "uuid": key,
                "pair": key,
                "task": None,
                "person": filler,
                "simulated": False,
                "choice": "tie" if late else "a",
                "ranking": None,
                "asked": "pair",
                "skip_reason": "bad" if late else None,
                "reasons": ["eyes"] if late else [],
                "shown_left": "a",
                "places": None,
                "picked": "random",
                "view_mode": "fit",
                "seconds": 1.0,
                "server_seconds": 1.5 if late else None,
                "question_version": "f" * 16 if late else None,
                # Blocks of whole seconds, of microseconds, and of both.
                "created_at": datetime(2026, 1, 1, 1, 2, 3, number // 600 * number, tzinfo=UTC).isoformat(),
                "superseded_at": "2026-01-02T00:00:00+00:00" if late else None,
                "repeat_no": 0,
                "gold": "a" if late else None,
            }
        )
    return rows, judgments


@pytest.mark.parametrize("form", ["jsonl", "parquet"])
def test_a_dataset_without_judgments_is_loaded(form: str, database: Database, data: Path, tmp_path: Path) -> None:
    from datasets import get_dataset_config_names, load_dataset

    with database.write() as session:
        images = add_photos(session, data, tmp_path, range(4))
        names = [f"images/{image.sha256}{image.suffix}" for image in images]
    options = ExportOptions.model_validate({"format": form})
    rows, _ = late_rows(names, "g", 12)
    write_dataset(tmp_path / "out", rows, [], [], [], data, options, {}, options.model_dump(mode="json"))
    assert get_dataset_config_names(str(tmp_path / "out")) == ["pairs"]
    assert list(load_dataset(str(tmp_path / "out"), cache_dir=str(tmp_path / "cache"))["all_splits"]) == rows


@pytest.mark.parametrize("form", get_args(Format))
def test_load_dataset_gives_the_labels_where_columns_are_empty_for_10_mb(
    form: str, database: Database, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every table of every format, with no more than `load_dataset(folder, table)`; README names its types."""
    from datasets import get_dataset_config_names, load_dataset

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with database.write() as session:
        images = add_photos(session, data, tmp_path, range(4))
        names = [f"images/{image.sha256}{image.suffix}" for image in images]
    options = ExportOptions.model_validate({"format": form, "ties": "soft", "prompt": "p" * 20_000})
    rows, judgments = late_rows(names, "g" * 20_000, 1_700)
    counts = write_dataset(
        tmp_path / "out", rows, judgments, [], [], data, options, {}, options.model_dump(mode="json")
    )
    tables = get_dataset_config_names(str(tmp_path / "out"))
    loaded = {}
    for table in tables:
        parts = load_dataset(str(tmp_path / "out"), table, cache_dir=str(tmp_path / "cache"))
        loaded |= {(table, split): part for split, part in parts.items()}
        assert set(parts) == {"all_splits"} or set(parts) <= {"train", "validation", "test"}
    first = load_dataset(str(tmp_path / "out"), cache_dir=str(tmp_path / "cache"))
    assert {(tables[0], split) for split in first} == {key for key in loaded if key[0] == tables[0]}
    labels = [part for (table, _), part in loaded.items() if table != "judgments"]
    assert sum(len(part) for part in labels) == counts.get("written", len(rows))
    if form in ("jsonl", "parquet"):
        assert list(loaded["pairs", "all_splits"]) == rows
        found = [
            {name: value.isoformat() if isinstance(value, datetime) else value for name, value in row.items()}
            for row in loaded["judgments", "all_splits"]
        ]
        assert found == judgments
    if form == "hpdv2":
        late = loaded["pairs", "train"][-3:]["human_preference"]
        assert sorted(min(shares) for shares in late) == [0.0, 0.25, 0.5]
        assert loaded["rankings", "test"][-1]["raw_annotations"] == [{"rank": [1, 1], "user_hash": "g" * 20_000}]
