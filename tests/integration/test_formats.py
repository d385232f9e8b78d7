"""Every foreign format, read again as its own readers read it."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from PIL import Image as PilImage
from sqlalchemy import select

from annotate.export import ExportOptions, export_dataset
from annotate.judgments import Answer, record_judgment
from annotate.pairs import make_pairs
from annotate.people import add_person
from annotate.project import load_settings
from db.images import add_image, probe_image
from db.models import Choice, Pair, Side, Split
from db.records import add_candidate, add_method, add_source
from db.session import Database

SPLITS = (Split.train, Split.train, Split.val, Split.test)
CHOICES = ("a", "b", "tie")


@pytest.fixture
def export(
    database: Database, data: Path, make_photo: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., tuple[Path, dict[str, dict[str, Any]]]]:
    """Exports 12 judged pairs of four sources, a third of them ties; gives the folder and the rows by pair."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    with database.write() as session:
        for number, split in enumerate(SPLITS):
            paths = [make_photo(tmp_path / f"{number}-{at}.png", 10 * number + at) for at in range(4)]
            lq, *restored = [add_image(session, data, probe_image(path), path) for path in paths]
            caption = f"portrait {number}" if number else None
            source = add_source(session, f"face{number}", split, caption=caption, lq=lq)
            for name, image in zip(("bicubic", "gfpgan", "codeformer"), restored, strict=True):
                add_candidate(session, source, add_method(session, name), image)
        make_pairs(session, load_settings(session))
        ada, ben = add_person(session, "ada"), add_person(session, "ben")
        for place, pair in enumerate(session.scalars(select(Pair).order_by(Pair.id))):
            for person in (ada, ben):
                answer = Answer(
                    uuid=str(uuid.UUID(int=100 * pair.id + person.id)),
                    pair_id=pair.id,
                    repeat_no=0,
                    shown_left=Side.a,
                    choice=Choice(CHOICES[place % 3]),
                    seconds=1.0,
                )
                record_judgment(session, person.id, answer)

    def run(format: str, **options: Any) -> tuple[Path, dict[str, dict[str, Any]]]:
        reference = tmp_path / "rows"
        if not reference.exists():
            export_dataset(database, data, reference, ExportOptions(format="jsonl"))
        lines = (reference / "pairs.jsonl").read_text(encoding="utf-8").splitlines()
        out = tmp_path / format
        export_dataset(database, data, out, ExportOptions.model_validate({"format": format, **options}))
        return out, {row["pair"]: row for row in map(json.loads, lines)}

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
    assert len(test) == 3
    for item in test:
        row, a, b = find(rows, *item["image_path"])
        expected = (
            [1, 1]
            if row["tie"]
            else [1 if row["p_a"] == float(a == "a") else 2, 1 if row["p_a"] == float(b == "a") else 2]
        )
        assert item["rank"] == expected
        assert [annotation["rank"] for annotation in item["raw_annotations"]] == [expected, expected]
        assert len({annotation["user_hash"] for annotation in item["raw_annotations"]}) == 2


def test_hpdv2_without_ties(export: Callable[..., Any]) -> None:
    out, rows = export("hpdv2", ties="drop")
    assert len(hpdv2_items(out)) == sum(row["split"] == "train" and not row["tie"] for row in rows.values())
    assert all(sorted(preference) == [0, 1] for _, _, preference in hpdv2_items(out))


def test_imagereward(export: Callable[..., Any]) -> None:
    """As ImageReward's rank_pair_dataset makes pairs: the lower rank is better, equal ranks are passed over."""
    out, rows = export("imagereward")
    items = json.loads((out / "train.json").read_text(encoding="utf-8"))
    decided = 0
    for item in items:
        row = rows[item["id"]]
        _, a, b = find(rows, *item["generations"])
        first, second = item["ranking"]
        if first == second:
            assert row["tie"]
            continue
        decided += 1
        better = a if first < second else b
        assert row["p_a"] == float(better == "a")
    assert (len(items), decided) == (6, 4)


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
    from datasets import Image, load_dataset

    out, rows = export("trl")
    loaded = load_dataset(str(out), split="train", cache_dir=str(tmp_path / "cache"))
    assert loaded.column_names == ["prompt", "chosen", "rejected", "margin"]
    assert isinstance(loaded.features["chosen"], Image)
    assert loaded[0]["chosen"].size == (24, 32)
    raw = pq.read_table(out / "data" / "train.parquet").to_pylist()
    assert len(raw) == 4
    for item in raw:
        row, chosen, rejected = find(rows, item["chosen"]["path"], item["rejected"]["path"])
        assert row["p_a"] == float(chosen == "a")
        assert item["chosen"]["bytes"] == stored(out, row, chosen)
        assert item["rejected"]["bytes"] == stored(out, row, rejected)
        assert item["margin"] == 1.0


def test_imagefolder(export: Callable[..., Any], tmp_path: Path) -> None:
    from datasets import load_dataset

    out, rows = export("imagefolder")
    loaded = load_dataset("imagefolder", data_dir=str(out), cache_dir=str(tmp_path / "cache"))
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
    lines = (out.parent / "rows" / "judgments.jsonl").read_text(encoding="utf-8").splitlines()
    assert judgments == [json.loads(line) for line in lines]
    for row in rows.values():
        assert (out / row["image_a"]).read_bytes() == stored(out, row, "a")
