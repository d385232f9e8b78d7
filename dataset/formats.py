"""Convert the rows of a dataset to other projects' formats, with their field names.

Each format is one function of the rows of `pairs.jsonl`, which also says what the dataset card tells `datasets` of its
files. Where a format shows two images as first and second, their order is that of their SHA-256: it says nothing of the
winner. Image bytes are the stored ones, never encoded anew.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from dataset.card_configs import ALL_SPLITS, Config
from dataset.files import Row, copy_images, read_image, write_jsonl
from dataset.tasks import TaskRow, ranks_of, read_choices
from db.errors import UserError

if TYPE_CHECKING:
    import pyarrow as pa

    from dataset.options import ExportOptions

BYTES_BATCH = 100
"""Rows whose image bytes are held at a time."""
SPLIT_FILES = {"train": "train", "val": "validation", "test": "test"}
"""Our splits under the names that `datasets` knows."""


TRL_QUESTION = "Two restorations of the same photo ({prompt}). Which one is better?"
TRL_ANSWERS = ("The first image.", "The second image.")


@dataclass(frozen=True)
class Content:
    """Content to write: rows of pairs.jsonl and judgments.jsonl, and the data folder that holds their images."""

    rows: list[Row]
    judgments: list[Row]
    tasks: dict[str, TaskRow]
    """By key."""
    data: Path
    options: ExportOptions


def write_format(
    folder: Path, rows: list[Row], judgments: list[Row], tasks: Iterable[Row], data: Path, options: ExportOptions
) -> tuple[dict[str, int], list[Config]]:
    """Write the rows in `options.format` into a folder.

    Returns:
        (rows written, and ties left out because the format has none; the card's description of the files).
    """
    writers: dict[str, Callable[[Path, Content], list[Config]]] = {
        "parquet": write_parquet,
        "hpdv2": write_hpdv2,
        "imagereward": write_imagereward,
        "pickapic": write_pickapic,
        "diffusion-dpo": write_diffusion_dpo,
        "trl": write_trl,
        "imagefolder": write_imagefolder,
    }
    kept = [row for row in rows if not (row["tie"] and _cannot_say_ties(row, options))]
    if not kept:
        raise UserError(f"All {len(rows):,} labels are ties, and {options.format} has no ties; take another format.")
    by_key = {row["task"]: TaskRow.model_validate(row) for row in tasks}
    configs = writers[options.format](folder, Content(kept, judgments, by_key, data, options))
    return {"written": len(kept), "ties_left_out": len(rows) - len(kept)}, configs


def _cannot_say_ties(row: Row, options: ExportOptions) -> bool:
    """Whether the format's own software would take a tie in this row's file for a win, or fail on it."""
    ranked = options.format == "hpdv2" and row["split"] == "test"
    return ranked or options.format in ("imagereward", "diffusion-dpo", "trl", "imagefolder")


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
    """Return how far a side is preferred: its probability where `soft`, else 1, 0, or 0.5 for a tie."""
    p = row["p_a"] if side == "a" else 1.0 - row["p_a"]
    # Rounded, so that read back with a and b the other way round it is the same number: 1 − (1 − 0.1) is not 0.1.
    return float(round(p, 12)) if soft or row["tie"] else float(p > 0.5)


def _winner(row: Row) -> tuple[str, str]:
    """(chosen side, rejected side) of a row that is not a tie."""
    return ("a", "b") if row["p_a"] > 0.5 else ("b", "a")


def _write_json(path: Path, records: Iterable[Row]) -> None:
    """A JSON list, as `json.dumps(…, indent=1)` writes it, with one record in memory at a time."""
    import json

    # Other letters as escapes, since those who read it open it in the encoding of their machine.
    with open(path, "w", encoding="ascii", newline="\n") as stream:
        for place, record in enumerate(records):
            stream.write((",\n " if place else "[\n ") + json.dumps(record, indent=1).replace("\n", "\n "))
        stream.write("\n]\n")


def _write_batches(path: Path, rows: list[Row], schema: pa.Schema, to_record: Callable[[Row], Row]) -> None:
    """A Parquet file in row groups of BYTES_BATCH, so that only theirs are in memory."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    path.parent.mkdir(parents=True, exist_ok=True)
    with pq.ParquetWriter(path, schema) as writer:
        for start in range(0, len(rows), BYTES_BATCH):
            records = [to_record(row) for row in rows[start : start + BYTES_BATCH]]
            writer.write_table(pa.Table.from_pylist(records, schema=schema))


def our_configs(suffix: str) -> list[Config]:
    """`pairs` and `judgments` with all their columns, for files of this suffix.

    Times are text, as written, but from JSON they come as times in UTC: its reader takes text that looks like a time
    for one, and turned back into text it would not be the same.
    """
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
            ("tasks", pa.list_(pa.string())),
        ]
    )
    made = pa.schema(
        [
            ("uuid", pa.string()),
            ("pair", pa.string()),
            ("task", pa.string()),
            ("person", pa.string()),
            ("simulated", pa.bool_()),
            ("choice", pa.string()),
            ("ranking", pa.string()),
            ("asked", pa.string()),
            ("skip_reason", pa.string()),
            ("reasons", pa.list_(pa.string())),
            ("shown_left", pa.string()),
            ("places", pa.string()),
            ("picked", pa.string()),
            ("view_mode", pa.string()),
            ("seconds", pa.float64()),
            ("server_seconds", pa.float64()),
            ("created_at", pa.string()),
            ("superseded_at", pa.string()),
            ("repeat_no", pa.int64()),
            ("gold", pa.string()),
            ("question_version", pa.string()),
        ]
    )
    for name in ("created_at", "superseded_at") if suffix == ".jsonl" else ():
        made = made.set(made.get_field_index(name), pa.field(name, pa.timestamp("us", tz="UTC")))
    tables = (("pairs", pairs), ("judgments", made))
    return [Config(name, {ALL_SPLITS: f"{name}{suffix}"}, schema) for name, schema in tables]


def write_parquet(folder: Path, content: Content) -> list[Config]:
    """`pairs.parquet` and `judgments.parquet` with the fields of our JSONL, and `images/`."""
    configs = our_configs(".parquet")
    for config, rows in zip(configs, (content.rows, content.judgments), strict=True):
        _write_batches(folder / f"{config.name}.parquet", rows, config.schema, lambda row: row)
    copy_images(folder, content.rows, content.data)
    return with_rows(configs, content.judgments)


def with_rows(configs: list[Config], judgments: list[Row]) -> list[Config]:
    """`our_configs` but for the judgments where there are none: `datasets` fails on a table without rows."""
    return configs if judgments else configs[:1]


def write_hpdv2(folder: Path, content: Content) -> list[Config]:
    """HPDv2: `train.json`, `val.json` as the first, `test.json` with every person's ranks, and `images/`.

    `human_preference` is [1, 0] or [0, 1], [0.5, 0.5] for a tie, and the two probabilities with `ties` soft; HPSv2's
    loss weighs by it as it stands. In `test.json`, rank 1 is the best. A tie is left out: HPSv2's accuracy counts
    it as right whatever the model says (`inversion_score` counts pairs in the wrong order); a person's may be.
    Source: huggingface.co/datasets/ymhao/HPDv2; HPSv2 src/training/data.py, train.py.
    """
    import pyarrow as pa

    choices = read_choices(content.judgments, content.tasks)
    people = {judgment["uuid"]: judgment["person"] for judgment in content.judgments}
    pairs: dict[str, str] = {}
    rankings: dict[str, str] = {}
    for split, chosen in _by_split(content.rows):
        records = (
            _hpdv2_test_record(row, [(choices[u][row["pair"]], people[u]) for u in row["judgments"]], content.options)
            if split == "test"
            else _hpdv2_record(row, content.options)
            for row in sorted(chosen, key=lambda row: _hpdv2_order(row, content.options))
        )
        _write_json(folder / f"{split}.json", records)
        (rankings if split == "test" else pairs)[SPLIT_FILES[split]] = f"{split}.json"
    copy_images(folder, content.rows, content.data)
    texts, ranks = pa.list_(pa.string()), pa.list_(pa.int64())
    annotations = pa.list_(pa.struct([("rank", ranks), ("user_hash", pa.string())]))
    pair_columns = [("prompt", pa.string()), ("file_path", texts), ("human_preference", pa.list_(pa.float64()))]
    ranking_columns = [
        ("prompt", pa.string()),
        ("image_path", texts),
        ("rank", ranks),
        ("raw_annotations", annotations),
    ]
    pair_columns += _tasks_field(content.rows)
    ranking_columns += _tasks_field(content.rows)
    tables = (("pairs", pairs, pair_columns), ("rankings", rankings, ranking_columns))
    return [Config(name, files, pa.schema(columns)) for name, files, columns in tables if files]


def _tasks_column(row: Row) -> Row:
    """Our column in others' formats: the tasks that a label derives from, so that it is not taken for independent."""
    return {"tasks": row.get("tasks")} if row.get("tasks") else {}


def _tasks_field(rows: list[Row]) -> list[tuple[str, pa.DataType]]:
    """The type of `_tasks_column`, where any row has it."""
    import pyarrow as pa

    return [("tasks", pa.list_(pa.string()))] if any(row.get("tasks") for row in rows) else []


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
        **_tasks_column(row),
    }


def _hpdv2_test_record(row: Row, votes: list[tuple[str, str]], options: ExportOptions) -> Row:
    sides = _in_order(row)
    return {
        "prompt": _prompt(row, options),
        "image_path": [row[f"image_{side}"] for side in sides],
        "rank": _ranks(sides, _winner(row)[0]),
        "raw_annotations": [{"rank": _ranks(sides, choice), "user_hash": person} for choice, person in votes],
        **_tasks_column(row),
    }


def _ranks(sides: tuple[str, str], choice: str) -> list[int]:
    return [1, 1] if choice == "tie" else [1 if side == choice else 2 for side in sides]


def write_imagereward(folder: Path, content: Content) -> list[Config]:
    """ImageReward: train.json, valid.json, test.json of `id, prompt, generations, ranking`, and `images/`.

    An item a pair that was judged as one, and an item an answer to a task, of all its candidates, with the task's key
    in `task`, a column of ours; rank 1 is the best. Candidates that are tied, or that the answer does not tell apart,
    have the same rank, and its loader makes no pair of them. Pairs have no ties: its loader passes over them, and
    HPSv2's count of such a file divides by zero at an item of nothing but ties.
    Source: THUDM/ImageReward train/src/rank_pair_dataset.py, make_dataset.py.
    """
    import pyarrow as pa

    files = {}
    for split, chosen in _by_split(content.rows):
        records = [*_imagereward_pairs(chosen, content), *_imagereward_tasks(chosen, content)]
        files[SPLIT_FILES[split]] = "valid.json" if split == "val" else f"{split}.json"
        _write_json(folder / files[SPLIT_FILES[split]], records)
    copy_images(folder, content.rows, content.data)
    lists = [("generations", pa.list_(pa.string())), ("ranking", pa.list_(pa.int64()))]
    ours = [("task", pa.string())] if content.tasks else []
    return [Config("pairs", files, pa.schema([("id", pa.string()), ("prompt", pa.string()), *lists, *ours]))]


def _imagereward_pairs(rows: list[Row], content: Content) -> Iterator[Row]:
    """An item a label of which not all judgments are answers to tasks."""
    of_tasks = {judgment["uuid"] for judgment in content.judgments if judgment.get("task")}
    for row in rows:
        if row["judgments"] and of_tasks.issuperset(row["judgments"]):
            continue
        yield {
            "id": row["pair"],
            "prompt": _prompt(row, content.options),
            "generations": [row[f"image_{side}"] for side in _in_order(row)],
            "ranking": _ranks(_in_order(row), _winner(row)[0]),
            **({"task": None} if content.tasks else {}),
        }


def _imagereward_tasks(rows: list[Row], content: Content) -> Iterator[Row]:
    """An item a ranking behind these labels, of the candidates that they show; oldest first."""
    prompts: dict[str, str] = {}
    shown: dict[str, set[str]] = {}
    for row in rows:
        for uuid in row["judgments"]:
            prompts[uuid] = _prompt(row, content.options)
            shown.setdefault(uuid, set()).update((row["image_a"], row["image_b"]))
    for judgment in content.judgments:
        if not judgment.get("ranking") or judgment["uuid"] not in prompts:
            continue
        candidates = content.tasks[judgment["task"]].candidates
        ranks = zip(candidates, ranks_of(judgment["ranking"], len(candidates)), strict=True)
        # By SHA-256, as everywhere: the order of the images says nothing of who won.
        kept = sorted((one.sha256, one.image, rank) for one, rank in ranks if one.image in shown[judgment["uuid"]])
        yield {
            "id": judgment["uuid"],
            "prompt": prompts[judgment["uuid"]],
            "generations": [image for _, image, _ in kept],
            "ranking": [rank for _, _, rank in kept],
            "task": judgment["task"],
        }


def write_pickapic(folder: Path, content: Content) -> list[Config]:
    """Pick-a-Pic v2's columns, a Parquet file per split in `data/`; `jpg_*` hold the stored bytes, of whatever format.

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
            *_tasks_field(content.rows),
        ]
    )
    files = {}
    first_made: dict[str, str] = {}
    choices = read_choices(content.judgments, content.tasks)
    for judgment in content.judgments:  # oldest first
        for pair in [judgment["pair"]] if judgment["pair"] else choices.get(judgment["uuid"], {}):
            first_made.setdefault(pair, judgment["created_at"])
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
                **_tasks_column(row),
            }
            for place, side in enumerate(_in_order(row)):
                record[f"image_{place}_uid"] = row[f"sha256_{side}"]
                record[f"image_{place}_url"] = row[f"image_{side}"]
                record[f"jpg_{place}"] = read_image(content.data, row[f"image_{side}"])
                record[f"label_{place}"] = _preference(row, side, content.options.ties == "soft")
                record[f"model_{place}"] = row[f"method_{side}"]
            return record

        files[SPLIT_FILES[split]] = f"data/{SPLIT_FILES[split]}.parquet"
        _write_batches(folder / files[SPLIT_FILES[split]], chosen, schema, to_record)
    return [Config("pairs", files, schema)]


def write_diffusion_dpo(folder: Path, content: Content) -> list[Config]:
    """Write for diffusers' Diffusion-DPO script: `jpg_0, jpg_1, label_0, caption`, a Parquet file per split.

    No ties: the script swaps the images only where label_0 is 0, so a tie would train as a win of the first.
    Source: diffusers examples/research_projects/diffusion_dpo/train_diffusion_dpo.py.
    """
    import pyarrow as pa

    schema = pa.schema(
        [
            *(("jpg_0", pa.binary()), ("jpg_1", pa.binary()), ("label_0", pa.int64()), ("caption", pa.string())),
            *_tasks_field(content.rows),
        ]
    )

    def to_record(row: Row) -> Row:
        first, second = _in_order(row)
        return {
            "jpg_0": read_image(content.data, row[f"image_{first}"]),
            "jpg_1": read_image(content.data, row[f"image_{second}"]),
            "label_0": int(_winner(row)[0] == first),
            "caption": _prompt(row, content.options),
            **_tasks_column(row),
        }

    return [_write_splits(folder, content.rows, schema, to_record)]


def _write_splits(folder: Path, rows: list[Row], schema: pa.Schema, to_record: Callable[[Row], Row]) -> Config:
    """`data/train.parquet`, `data/validation.parquet` and `data/test.parquet`, as far as there are rows."""
    files = {}
    for split, chosen in _by_split(rows):
        files[SPLIT_FILES[split]] = f"data/{SPLIT_FILES[split]}.parquet"
        _write_batches(folder / files[SPLIT_FILES[split]], chosen, schema, to_record)
    return Config("pairs", files, schema)


def write_trl(folder: Path, content: Content) -> list[Config]:
    """Write for TRL's DPOTrainer of a vision-language judge: `prompt, chosen, rejected` of messages, and `images`.

    TRL's images are those of the prompt, which chosen and rejected answers share, so a preference between two images is
    put as a question about both: the prompt shows the first and the second, the chosen answer names the better one. No
    ties. Source: TRL docs, dataset formats; `DataCollatorForVisionPreference`.
    """
    import pyarrow as pa

    image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    part = pa.struct([("type", pa.string()), ("text", pa.string())])
    messages = pa.list_(pa.struct([("role", pa.string()), ("content", pa.list_(part))]))
    names = ("prompt", "chosen", "rejected")
    schema = pa.schema([*((name, messages) for name in names), ("images", pa.list_(image))])

    def to_record(row: Row) -> Row:
        sides = _in_order(row)
        question = TRL_QUESTION.format(prompt=_prompt(row, content.options))
        shown = [{"type": "image"}, {"type": "image"}, {"type": "text", "text": question}]
        answers = [
            [{"role": "assistant", "content": [{"type": "text", "text": TRL_ANSWERS[sides.index(side)]}]}]
            for side in _winner(row)
        ]
        paths = [row[f"image_{side}"] for side in sides]
        return {
            "prompt": [{"role": "user", "content": shown}],
            "chosen": answers[0],
            "rejected": answers[1],
            "images": [{"bytes": read_image(content.data, path), "path": Path(path).name} for path in paths],
        }

    return [_write_splits(folder, content.rows, schema, to_record)]


def write_imagefolder(folder: Path, content: Content) -> list[Config]:
    """A folder that `datasets.load_dataset` reads as an "imagefolder": image columns chosen, rejected and lq.

    A folder per split with its images and `metadata.jsonl`, whose `*_file_name` columns become images. The lq column is
    there where every photo has an lq image. No ties.
    """
    import pyarrow as pa

    with_lq = all(row["lq"] for row in content.rows)
    image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    images = ("chosen", "rejected", "lq") if with_lq else ("chosen", "rejected")
    texts = ("pair", "source", "chosen_method", "rejected_method", "origin")
    schema = pa.schema(
        [
            *((name, image) for name in images),
            ("prompt", pa.string()),
            ("p_chosen", pa.float64()),
            *((name, pa.string()) for name in texts),
        ]
    )
    files = {}
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
        files[SPLIT_FILES[split]] = f"{SPLIT_FILES[split]}/**"
    return [Config("pairs", files, schema)]
