"""The rows of a dataset in everybody else's formats, with their field names.

Each format is one function of the rows of `pairs.jsonl`. Where a format shows two images as first and second, their
order is that of their SHA-256: it says nothing of the winner. Image bytes are the stored ones, never encoded anew.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from annotate.dataset_files import Row, copy_images, read_stored, write_jsonl

if TYPE_CHECKING:
    import pyarrow as pa

    from annotate.export import ExportOptions

BYTES_BATCH = 100
"""Rows whose image bytes are held at a time."""
SPLIT_FILES = {"train": "train", "val": "validation", "test": "test"}
"""Our splits under the names that `datasets` knows."""


@dataclass(frozen=True)
class Content:
    """What is to be written: rows of pairs.jsonl and judgments.jsonl, and the data folder that holds their images."""

    rows: list[Row]
    judgments: list[Row]
    data: Path
    options: ExportOptions


def write_format(
    folder: Path, rows: list[Row], judgments: list[Row], data: Path, options: ExportOptions
) -> dict[str, int]:
    """Write the rows in `options.format` into a folder.

    Returns:
        rows written, and ties left out because the format cannot say them.
    """
    writers: dict[str, Callable[[Path, Content], None]] = {
        "parquet": write_parquet,
        "hpdv2": write_hpdv2,
        "imagereward": write_imagereward,
        "pickapic": write_pickapic,
        "diffusion-dpo": write_diffusion_dpo,
        "trl": write_trl,
        "imagefolder": write_imagefolder,
    }
    decided_only = options.format in ("diffusion-dpo", "trl", "imagefolder")
    kept = [row for row in rows if not (decided_only and row["tie"])]
    writers[options.format](folder, Content(kept, judgments, data, options))
    return {"written": len(kept), "ties_left_out": len(rows) - len(kept)}


def _by_split(rows: list[Row]) -> Iterator[tuple[str, list[Row]]]:
    for split in SPLIT_FILES:
        chosen = [row for row in rows if row["split"] == split]
        if chosen:
            yield split, chosen


def _prompt(row: Row, options: ExportOptions) -> str:
    return str(row["caption"] if row["caption"] is not None else options.prompt)


def _in_order(row: Row) -> tuple[str, str]:
    """('a', 'b') or ('b', 'a'): the candidates by the SHA-256 of their files."""
    return ("a", "b") if row["sha256_a"] < row["sha256_b"] else ("b", "a")


def _preference(row: Row, side: str, soft: bool) -> float:
    """How far a side is preferred: its probability where `soft`, else 1, 0, or 0.5 for a tie."""
    p = row["p_a"] if side == "a" else 1.0 - row["p_a"]
    # Rounded, so that read back with a and b the other way round it is the same number: 1 − (1 − 0.1) is not 0.1.
    return float(round(p, 12)) if soft or row["tie"] else float(p > 0.5)


def _winner(row: Row) -> tuple[str, str]:
    """(chosen side, rejected side) of a row that is no tie."""
    return ("a", "b") if row["p_a"] > 0.5 else ("b", "a")


def _write_json(path: Path, rows: list[Row]) -> None:
    import json

    path.write_text(json.dumps(rows, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


def _write_batches(path: Path, rows: list[Row], schema: pa.Schema, to_record: Callable[[Row], Row]) -> None:
    """A Parquet file in row groups of BYTES_BATCH, so that only theirs are in memory."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    path.parent.mkdir(parents=True, exist_ok=True)
    with pq.ParquetWriter(path, schema) as writer:
        for start in range(0, len(rows), BYTES_BATCH):
            records = [to_record(row) for row in rows[start : start + BYTES_BATCH]]
            writer.write_table(pa.Table.from_pylist(records, schema=schema))


def write_parquet(folder: Path, content: Content) -> None:
    """`pairs.parquet` and `judgments.parquet` with the fields of our JSONL, and `images/`."""
    import pyarrow as pa

    texts = ("pair", "source", "split", "group", "caption", "image_a", "image_b", "lq", "hq", "sha256_a", "sha256_b")
    more = ("sha256_lq", "sha256_hq", "method_a", "method_b")
    pairs = pa.schema(
        [
            *((name, pa.string()) for name in (*texts, *more)),
            ("seed_a", pa.int64()),
            ("seed_b", pa.int64()),
            ("p_a", pa.float64()),
            ("tie", pa.bool_()),
            ("origin", pa.string()),
            ("made_by", pa.string()),
            ("weight", pa.float64()),
            ("agreement", pa.float64()),
            ("judgments", pa.list_(pa.string())),
        ]
    )
    _write_batches(folder / "pairs.parquet", content.rows, pairs, lambda row: row)
    made = pa.schema(
        [
            ("uuid", pa.string()),
            ("pair", pa.string()),
            ("person", pa.string()),
            ("simulated", pa.bool_()),
            ("choice", pa.string()),
            ("skip_reason", pa.string()),
            ("reasons", pa.list_(pa.string())),
            ("shown_left", pa.string()),
            ("picked", pa.string()),
            ("view_mode", pa.string()),
            ("seconds", pa.float64()),
            ("created_at", pa.string()),
            ("superseded_at", pa.string()),
            ("repeat_no", pa.int64()),
            ("gold", pa.string()),
            ("question_version", pa.string()),
        ]
    )
    _write_batches(folder / "judgments.parquet", content.judgments, made, lambda row: row)
    copy_images(folder, content.rows, content.data)


def write_hpdv2(folder: Path, content: Content) -> None:
    """HPDv2: `train.json`, `val.json` as the first, `test.json` with every person's ranks, and `images/`.

    `human_preference` is [1, 0] or [0, 1], [0.5, 0.5] for a tie, and the two probabilities with `ties` soft; HPSv2's
    loss weighs by it as it stands. In `test.json`, rank 1 is the best and equal ranks are a tie.
    Source: huggingface.co/datasets/ymhao/HPDv2; HPSv2 src/training/data.py.
    """
    votes: dict[str, list[Row]] = {}
    for judgment in content.judgments:
        votes.setdefault(judgment["pair"], []).append(judgment)
    for split, chosen in _by_split(content.rows):
        records = [
            _hpdv2_test_record(row, votes.get(row["pair"], []), content.options)
            if split == "test"
            else _hpdv2_record(row, content.options)
            for row in sorted(chosen, key=lambda row: _hpdv2_order(row, content.options))
        ]
        _write_json(folder / f"{split}.json", records)
    copy_images(folder, content.rows, content.data)


def _hpdv2_order(row: Row, options: ExportOptions) -> tuple[str, str, str, float]:
    first, second = _in_order(row)
    shown = _preference(row, first, options.ties == "soft")  # for two pairs that show the same images
    return _prompt(row, options), row[f"sha256_{first}"], row[f"sha256_{second}"], shown


def _hpdv2_record(row: Row, options: ExportOptions) -> Row:
    sides = _in_order(row)
    shares = [_preference(row, side, options.ties == "soft") for side in sides]
    return {
        "prompt": _prompt(row, options),
        "file_path": [row[f"image_{side}"] for side in sides],
        "human_preference": [int(share) if share in (0.0, 1.0) else share for share in shares],
    }


def _hpdv2_test_record(row: Row, judgments: list[Row], options: ExportOptions) -> Row:
    sides = _in_order(row)
    counted = [vote for vote in judgments if vote["uuid"] in row["judgments"]]
    return {
        "prompt": _prompt(row, options),
        "image_path": [row[f"image_{side}"] for side in sides],
        "rank": _ranks(sides, "tie" if row["tie"] else _winner(row)[0]),
        "raw_annotations": [{"rank": _ranks(sides, vote["choice"]), "user_hash": vote["person"]} for vote in counted],
    }


def _ranks(sides: tuple[str, str], choice: str) -> list[int]:
    return [1, 1] if choice == "tie" else [1 if side == choice else 2 for side in sides]


def write_imagereward(folder: Path, content: Content) -> None:
    """ImageReward: a JSON file a split of `id, prompt, generations, ranking`, and `images/`; an item a pair.

    Rank 1 is the best; equal ranks are a tie, which its loader passes over.
    Source: THUDM/ImageReward train/src/rank_pair_dataset.py.
    """
    for split, chosen in _by_split(content.rows):
        records = [
            {
                "id": row["pair"],
                "prompt": _prompt(row, content.options),
                "generations": [row[f"image_{side}"] for side in _in_order(row)],
                "ranking": _ranks(_in_order(row), "tie" if row["tie"] else _winner(row)[0]),
            }
            for row in chosen
        ]
        _write_json(folder / f"{split}.json", records)
    copy_images(folder, content.rows, content.data)


def write_pickapic(folder: Path, content: Content) -> None:
    """Pick-a-Pic v2's columns, a Parquet file a split in `data/`; `jpg_*` hold the stored bytes, of whatever format.

    A row is a label, not one person's answer: `user_id` is null, `ranking_id` counts rows. `label_*` are 0.5 for a tie,
    probabilities with `ties` soft. Source: huggingface.co/datasets/yuvalkirstain/pickapic_v2.
    """
    import pyarrow as pa

    texts = ("best_image_uid", "caption", "created_at", "image_0_uid", "image_0_url", "image_1_uid", "image_1_url")
    schema = pa.schema(
        [
            ("are_different", pa.bool_()),
            ("has_label", pa.bool_()),
            *((name, pa.string()) for name in texts),
            ("jpg_0", pa.binary()),
            ("jpg_1", pa.binary()),
            ("label_0", pa.float64()),
            ("label_1", pa.float64()),
            ("model_0", pa.string()),
            ("model_1", pa.string()),
            ("ranking_id", pa.int64()),
            ("user_id", pa.int64()),
            ("num_example_per_prompt", pa.int64()),
        ]
    )
    first_made: dict[str, str] = {}
    for judgment in content.judgments:  # oldest first
        first_made.setdefault(judgment["pair"], judgment["created_at"])
    for split, chosen in _by_split(content.rows):
        same_prompt = Counter(_prompt(row, content.options) for row in chosen)
        numbers = itertools.count()

        def to_record(row: Row, same_prompt: Counter[str] = same_prompt, numbers: Iterable[int] = numbers) -> Row:
            record: Row = {
                "are_different": True,
                "has_label": True,
                "best_image_uid": "tie" if row["tie"] else row[f"sha256_{_winner(row)[0]}"],
                "caption": _prompt(row, content.options),
                "created_at": first_made.get(row["pair"]),
                "ranking_id": next(iter(numbers)),
                "user_id": None,
                "num_example_per_prompt": same_prompt[_prompt(row, content.options)],
            }
            for place, side in enumerate(_in_order(row)):
                record[f"image_{place}_uid"] = row[f"sha256_{side}"]
                record[f"image_{place}_url"] = row[f"image_{side}"]
                record[f"jpg_{place}"] = read_stored(content.data, row[f"image_{side}"])
                record[f"label_{place}"] = _preference(row, side, content.options.ties == "soft")
                record[f"model_{place}"] = row[f"method_{side}"]
            return record

        _write_batches(folder / "data" / f"{SPLIT_FILES[split]}.parquet", chosen, schema, to_record)


def write_diffusion_dpo(folder: Path, content: Content) -> None:
    """What diffusers' Diffusion-DPO script reads: `jpg_0, jpg_1, label_0, caption`, a Parquet file a split.

    No ties: the script swaps the images only where label_0 is 0, so a tie would train as a win of the first.
    Source: diffusers examples/research_projects/diffusion_dpo/train_diffusion_dpo.py.
    """
    import pyarrow as pa

    schema = pa.schema(
        [("jpg_0", pa.binary()), ("jpg_1", pa.binary()), ("label_0", pa.int64()), ("caption", pa.string())]
    )

    def to_record(row: Row) -> Row:
        first, second = _in_order(row)
        return {
            "jpg_0": read_stored(content.data, row[f"image_{first}"]),
            "jpg_1": read_stored(content.data, row[f"image_{second}"]),
            "label_0": int(_winner(row)[0] == first),
            "caption": _prompt(row, content.options),
        }

    for split, chosen in _by_split(content.rows):
        _write_batches(folder / "data" / f"{SPLIT_FILES[split]}.parquet", chosen, schema, to_record)


def write_trl(folder: Path, content: Content) -> None:
    """TRL's preference columns `prompt, chosen, rejected, margin`, chosen and rejected being images.

    TRL's own `images` column is shared by chosen and rejected answers; here one image is preferred to another, so they
    stand in the two columns themselves. `margin` is |2 p_a − 1|. No ties. Source: TRL docs, dataset formats.
    """
    from datasets import Features, Value
    from datasets import Image as ImageFeature

    features = Features(prompt=Value("string"), chosen=ImageFeature(), rejected=ImageFeature(), margin=Value("float64"))

    def to_record(row: Row) -> Row:
        chosen, rejected = (row[f"image_{side}"] for side in _winner(row))
        return {
            "prompt": _prompt(row, content.options),
            "chosen": {"bytes": read_stored(content.data, chosen), "path": Path(chosen).name},
            "rejected": {"bytes": read_stored(content.data, rejected), "path": Path(rejected).name},
            "margin": abs(2.0 * row["p_a"] - 1.0),
        }

    for split, chosen in _by_split(content.rows):
        path = folder / "data" / f"{SPLIT_FILES[split]}.parquet"
        _write_batches(path, chosen, features.arrow_schema, to_record)


def write_imagefolder(folder: Path, content: Content) -> None:
    """A folder that `datasets.load_dataset("imagefolder", data_dir=…)` reads: image columns chosen, rejected and lq.

    One folder a split with its images and `metadata.jsonl`, whose `*_file_name` columns become images. The lq column is
    there where every photo has an lq image. No ties.
    """
    with_lq = all(row["lq"] for row in content.rows)
    for split, chosen in _by_split(content.rows):
        records = []
        for row in chosen:
            winner, loser = _winner(row)
            record = {"chosen_file_name": row[f"image_{winner}"], "rejected_file_name": row[f"image_{loser}"]}
            if with_lq:
                record["lq_file_name"] = row["lq"]
            record |= {
                "prompt": _prompt(row, content.options),
                "p_chosen": max(row["p_a"], 1.0 - row["p_a"]),
                "pair": row["pair"],
                "source": row["source"],
                "chosen_method": row[f"method_{winner}"],
                "rejected_method": row[f"method_{loser}"],
                "origin": row["origin"],
            }
            records.append(record)
        target = folder / SPLIT_FILES[split]
        target.mkdir()
        write_jsonl(target / "metadata.jsonl", records)
        without_truth = [row | {"hq": None, "lq": row["lq"] if with_lq else None} for row in chosen]
        copy_images(target, without_truth, content.data)
