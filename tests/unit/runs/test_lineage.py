"""What came from what, by the paths and labelers that configs name, and how many judgments lie behind it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from db.models import Run, RunState
from db.session import Database
from runs.lineage import _to_json, ancestors, find_folders, find_parents, load_lineage, make_nodes
from runs.lineage_judgments import Judgments, hash_all
from runs.store import artifact_of, run_folder


def make_run(data: Path, number: int, kind: str, config: dict[str, Any], **more: Any) -> Run:
    """A finished run whose folder is there; `result` goes into its result.json."""
    folder = run_folder(data, number)
    folder.mkdir(parents=True)
    if result := more.pop("result", None):
        (folder / "result.json").write_text(json.dumps(result))
    values = {"state": RunState.finished, "arguments": [], "after": [], "launcher": {}, "code_version": "1", **more}
    return Run(id=number, kind=kind, config=config, **values)


def parents_of(runs: list[Run], data: Path) -> list[set[int]]:
    folders = find_folders(runs, {run.id: artifact_of(data, run) for run in runs}, data)
    return [find_parents(run, folders) for run in runs]


def write_dataset(folder: Path, human: list[str], simulated: list[str]) -> None:
    folder.mkdir(parents=True)
    rows = [{"uuid": uuid, "simulated": False} for uuid in human] + [
        {"uuid": uuid, "simulated": True} for uuid in simulated
    ]
    (folder / "judgments.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def write_labeler(folder: Path, judgments: list[list[str]], *, simulated: bool) -> None:
    rows = [["pair", 1.0, 1.0, 0, uuids] for uuids in judgments]
    (folder / "labeler.json").write_text(json.dumps({"provenance": {"trained_on": rows}}))
    (folder / "summary.json").write_text(json.dumps({"n_train": len(rows), "simulated": simulated}))


@pytest.fixture
def chain(data: Path) -> list[Run]:
    """A whole round: labeler of 3 judgments, dataset of 5 (2 of the same), reward model, restorer, its images."""
    out = data / "rounds" / "1"
    runs = [
        make_run(data, 1, "annotate fit", {}, result={"out": str(run_folder(data, 1)), "labeler": "svm-1-0a1b2c3d"}),
        make_run(data, 2, "annotate label", {"labeler": "svm-1-0a1b2c3d"}),
        make_run(
            data,
            3,
            "annotate export",
            {"name": "faces", "out": str(out / "dataset")},
            result={
                "out": str(out / "dataset"),
                "origins": {"human": 4, "svm": 6},
                "made_by": {"majority": 4, "svm-1-0a1b2c3d": 6},
                "methods": {"tiny": 20},
                "judgments": 5,
                "simulated_annotators": 1,
            },
        ),
        make_run(data, 4, "reward train", {"dataset": str(out / "dataset"), "out": str(out / "reward")}),
        make_run(
            data, 5, "refl train", {"reward": f"{out}/reward/best", "restorer": "tiny", "out": str(out / "tuned")}
        ),
        make_run(
            data,
            6,
            "refl restore",
            {"methods": [f"new={out}/tuned/tuned", "tiny"]},
            result={"methods": ["new", "tiny"], "restored": 2},
        ),
        make_run(data, 7, "annotate measure", {"metrics": "offline"}),
    ]
    write_labeler(run_folder(data, 1), [["u1", "u2"], ["u3"]], simulated=False)
    write_dataset(out / "dataset", ["u2", "u3", "u4", "u5"], ["s1"])
    return runs


def test_parents_are_the_runs_whose_folders_are_named(data: Path, chain: list[Run]) -> None:
    nodes = make_nodes(chain, data)
    assert {node.id: (node.group, node.parents) for node in nodes.values()} == {
        "run-1": ("labeler", []),
        "run-2": ("use", ["run-1"]),
        "run-3": ("dataset", ["run-1"]),
        "run-4": ("reward", ["run-3"]),
        "run-5": ("restorer", ["run-4"]),
        "run-6": ("use", ["run-5"]),
    }
    assert [node.id for node in ancestors(nodes["run-6"], nodes)] == ["run-5", "run-4", "run-3", "run-1"]


def test_judgments_are_counted_once_and_programs_apart(data: Path, chain: list[Run], database: Database) -> None:
    with database.write() as session:
        session.add_all(chain)
    with database.read() as session:
        nodes = {node["id"]: node for node in load_lineage(session, data)["nodes"]}
    assert nodes["run-1"]["judgments"] == {"human": 3, "simulated": 0}
    # u1 … u5: the labeler's u1, u2, u3 and the dataset's u2 … u5
    for node in ("run-3", "run-4", "run-5"):
        assert nodes[node]["judgments"] == {"human": 5, "simulated": 1}
        assert nodes[node]["labels"] == {"human": 4, "svm": 6}
        assert nodes[node]["simulated"]
    assert (nodes["run-1"]["labels"], nodes["run-1"]["simulated"]) == ({"human": 2}, False)
    assert nodes["run-3"]["note"] == "tiny"


def test_a_methods_parent_is_the_run_of_its_weights(data: Path, chain: list[Run], database: Database) -> None:
    from db.records import add_method

    with database.write() as session:
        session.add_all(chain)
        session.flush()
        add_method(session, "new", {}, 6)
        add_method(session, "tiny", {}, 6)
    with database.read() as session:
        nodes = {node["title"]: node for node in load_lineage(session, data)["nodes"] if node["group"] == "method"}
    assert nodes["new"]["parents"] == ["run-5"]
    assert nodes["new"]["judgments"] == {"human": 5, "simulated": 1}
    assert nodes["tiny"]["parents"] == []


def test_arguments_options_and_relative_paths_name_runs_too(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "models" / "m"
    runs = [
        make_run(data, 1, "reward train", {"out": str(out)}),
        make_run(data, 2, "reward score", {}, arguments=["--scorer=mine=models/m/best"], cwd=str(tmp_path)),
        make_run(data, 3, "reward score", {}, arguments=["--scorer", f"{out}/../m"]),
        make_run(data, 4, "reward score", {}, arguments=["--scorer", f"{out}x/best", "a\0/b"]),
    ]
    assert parents_of(runs, data) == [set(), {1}, {1}, set()]


def test_what_a_run_recorded_is_what_it_is_made_from_and_nothing_that_it_mentions(data: Path, tmp_path: Path) -> None:
    out = str(tmp_path / "models" / "m")
    inputs = [{"option": "scorer", "kind": "reward", "value": f"{out}/best"}]
    preset = {"preset": f"{out}/config.json", "note": out}
    runs = [
        make_run(data, 1, "reward train", {"out": out}),
        make_run(data, 2, "reward evaluate", preset, arguments=[f"--config={out}/config.json"], inputs=[], outputs=[]),
        make_run(data, 3, "reward evaluate", preset, inputs=inputs, outputs=[]),
        make_run(data, 4, "reward evaluate", {}, inputs=[{**inputs[0], "value": "hps-v2.1"}], outputs=[]),
        make_run(data, 5, "reward evaluate", preset),  # of an older version
    ]
    assert parents_of(runs, data) == [set(), set(), {1}, set(), {1}]


def test_a_labeler_is_the_parent_of_labels_whatever_it_was_called(data: Path) -> None:
    fit = make_run(data, 1, "annotate fit", {}, result={"labeler": "svm-1-0a1b2c3d"})
    named = [{"option": "labeler", "kind": "labeler", "value": "latest"}]
    latest = make_run(
        data, 2, "annotate label", {"labeler": "latest"}, inputs=named, result={"labeler": "svm-1-0a1b2c3d"}
    )
    assert make_nodes([fit, latest], data)["run-2"].parents == ["run-1"]


def test_a_folder_of_several_runs_is_of_the_last_one_before(data: Path) -> None:
    out = str(data / "rewards" / "a")
    runs = [make_run(data, number, "reward train", {"out": out}) for number in (1, 2)]
    runs.append(make_run(data, 3, "reward score", {"scorer": f"{out}/best"}))
    runs.append(make_run(data, 4, "reward train", {"out": out}))
    assert parents_of(runs, data) == [set(), set(), {2}, set()]


def test_a_run_that_wrote_around_the_data_folder_is_not_everybodys_parent(data: Path) -> None:
    runs = [
        make_run(data, 1, "refl restore", {"out": str(data.parent)}),
        make_run(data, 2, "reward train", {"dataset": str(data / "d")}),
    ]
    assert parents_of(runs, data) == [set(), set()]


def test_without_the_datasets_folder_its_numbers_stay(data: Path) -> None:
    result = {"out": str(data / "gone"), "origins": {"human": 3}, "judgments": 7, "simulated_annotators": 0}
    runs = [make_run(data, 1, "annotate export", {}, result=result)]
    assert make_nodes(runs, data)["run-1"].own.count() == {"human": 7, "simulated": 0}
    result["simulated_annotators"] = 1
    (run_folder(data, 1) / "result.json").write_text(json.dumps(result) + "\n\n")
    assert make_nodes(runs, data)["run-1"].own.count() == {"human": 0, "simulated": 7}, "never as people"


def test_a_labelers_judgments_are_told_apart_by_who_made_them(data: Path) -> None:
    runs = [make_run(data, 1, "annotate fit", {}, result={"labeler": "svm-1-0a1b2c3d"})]
    write_labeler(run_folder(data, 1), [["u1", "s1"], ["s2"]], simulated=True)
    node = make_nodes(runs, data, hash_all(["s1", "s2", "s3"]))["run-1"]
    assert node.own.count() == {"human": 1, "simulated": 2}
    assert node.simulated


def test_joined_judgments() -> None:
    one, other = Judgments(hash_all(["a", "b"]), hash_all(["x"])), Judgments(hash_all(["b", "c"]), at_least=(1, 4))
    assert one.join(other).count() == {"human": 3, "simulated": 4}
    assert np.array_equal(hash_all(["b", "a", "a"]), hash_all(["a", "b"]))


def test_labels_of_a_dataset_and_of_its_copy_with_constructed_pairs_are_counted_once(data: Path) -> None:
    first, second, model = (str(data / name) for name in ("dataset", "constructed", "model"))
    of_people = {"origins": {"human": 7}, "made_by": {"majority": 7}}
    both = {"origins": {"human": 7, "constructed": 4}, "made_by": {"majority": 7, "blurred_eye": 4}}
    runs = [
        make_run(data, 1, "annotate export", {"out": first}, result={"out": first, **of_people}),
        make_run(data, 2, "reward construct", {"dataset": first, "out": second}, result={"out": second, **both}),
        make_run(data, 3, "reward train", {"dataset": second, "out": model}),
        make_run(data, 4, "reward set", {"model": [model], "dataset": first, "out": f"{model} set"}),
    ]
    nodes = make_nodes(runs, data)
    assert [node.group for node in nodes.values()] == ["dataset", "dataset", "reward", "reward"]
    assert [nodes[f"run-{number}"].parents for number in (3, 4)] == [["run-2"], ["run-1", "run-3"]]
    assert _to_json(nodes["run-3"], nodes)["labels"] == {"human": 7, "constructed": 4}
