"""What a run used is recorded, inherited by what is made from it, and refused where commercial use is wanted."""

from __future__ import annotations

from pathlib import Path

import pytest
from sqlalchemy import func, select

import annotate.__main__
import refl.__main__
import runs.__main__
from annotate.measure.command import MEASURE
from db.errors import UserError
from db.models import MetricValue, Run
from db.project import save_settings
from db.session import Database
from licences.terms import COMMERCIAL_VARIABLE, Licensed, Terms, from_json
from metrics.lists import MetricError, columns, load_metric_list
from refl.restore.choices import NEEDS
from runs.launch import start
from runs.licences import FILE, find_known, find_licences, list_weights, read_recorded, write_recorded
from tests.making import add_candidates, fetch, make_project

NOTHING = Path("/nowhere")


@pytest.fixture(autouse=True)
def _not_commercial(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(COMMERCIAL_VARIABLE, "0")  # what sets it is undone at the test's end


def names(kind: str, value: str) -> dict[str, Terms]:
    return {one.name: one.terms for one in find_known(kind, value, NOTHING)}


def test_what_inputs_need_is_known_by_their_names():
    assert names("restorer", "feedforward:codeformer") == {"codeformer": Terms.non_commercial}
    assert names("restorer", "osediff") == {"sd-2.1-base": Terms.own_terms, "osediff-face": Terms.permissive}
    replaced = names("tunable", "diffbir-v1:lrpo-fidelity")
    assert replaced.keys() == {"sd-2.1-base", "diffbir-swinir-face", "lrpo-fidelity"}
    assert names("restorer", "tiny") == {"tiny": Terms.non_commercial}
    assert names("judge", "metric:dists") == names("metric", "dists") != {}
    assert names("judge", "metric:psnr") == names("judge", "people") == {}
    assert names("judge", "http://rewards.example/") == {"http://rewards.example/": Terms.unknown}
    assert names("judge", "face-reward-model") == names("reward", "face-reward-model") != {}
    assert names("restorer", "pmrf") == {"pmrf": Terms.non_commercial}  # SwinIR's
    assert names("restorer", "onnx:gpen-512-onnx") == {"gpen-512-onnx": Terms.non_commercial}
    assert names("restorer", "onnx:restoreformer-pp-onnx") == {"restoreformer-pp-onnx": Terms.permissive}
    assert names("restorer", "feedforward:/x/own.pth") == {"own.pth": Terms.unknown}
    assert names("reward", "hps-v2.1") == {"hps-v2.1": Terms.permissive}
    assert names("weights", "laion2b_s32b_b79k") == {"laion2b_s32b_b79k": Terms.permissive}
    assert set(names("metrics", "face").values()) >= {Terms.non_commercial, Terms.unknown}
    assert set(names("metrics", "permissive").values()) == {Terms.permissive}
    assert Terms.non_commercial in names("metrics", "identity").values()  # the 68 landmarks
    assert names("faces", "/x/mine") == {"mine": Terms.unknown}
    assert names("phase", "vae") == {}


def test_every_restorer_that_is_offered_has_its_files_in_the_ledger():
    known = {one.name for one in list_weights(NOTHING)}
    assert {name for groups in NEEDS.values() for group in groups for name in group} <= known


def test_what_was_recorded_beside_a_thing_is_inherited(tmp_path):
    made = tmp_path / "rewards" / "mine" / "best"
    made.mkdir(parents=True)
    own = Licensed("weights", "hps-v2", "Apache-2.0")
    write_recorded(made.parent, [own])
    assert read_recorded(made) == [own]
    assert find_licences([{"kind": "reward", "value": str(made)}], tmp_path) == [own]
    (made.parent / FILE).write_text("[")
    assert read_recorded(made) == []


def test_the_ledger_lists_what_needs_care_first(data, capsys):
    assert runs.__main__.main(["licences", "--kind", "weights", "--data", str(data)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("\t")[0] for line in lines] == sorted((line.split("\t")[0] for line in lines), key=order)
    assert any(line.startswith("non-commercial\tweights\tcodeformer\tNTU S-Lab") for line in lines)
    assert lines[-1].startswith("permissive\t")
    assert not data.exists()
    assert runs.__main__.main(["licences", "--all", "--data", str(data)]) == 0
    assert "permissive\tcode\tFaceReward\tApache-2.0" in capsys.readouterr().out


def order(words: str) -> int:
    return -next(terms for terms in Terms if terms.words == words)


def test_a_run_records_what_it_used(data: Path, database: Database, tmp_path: Path) -> None:
    with database.write() as session:
        make_project(session, data, tmp_path / "photos", 1, ("m1", "m2"), (104, 104), data_licence="CC-BY-NC-4.0")
    assert annotate.__main__.main(["measure", "--metrics", "permissive", "--workers", "1", "--data", str(data)]) == 0
    recorded = from_json((data / "runs" / "1" / FILE).read_text())
    assert [(one.kind, one.name.split()[0]) for one in recorded] == [("data", "the"), ("code", "scikit-video")]
    assert recorded[0].licence == "CC-BY-NC-4.0"


def test_commercial_use_refuses_by_name_before_anything_is_written(data: Path, database: Database, capsys) -> None:
    with database.write() as session:
        add_candidates(session, "face", ["m1", "m2"])
    assert annotate.__main__.main(["measure", "--commercial", "--data", str(data)]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: Commercial use is forbidden by the licence of pyiqa 0.1")
    assert "Instead: measure with --metrics permissive" in said
    assert said.count("\n") == 1
    assert (
        refl.__main__.main(["restore", "--method", "feedforward:codeformer", "--commercial", "--data", str(data)]) == 2
    )
    assert "the licence of codeformer (NTU S-Lab License 1.0: non-commercial)" in capsys.readouterr().err
    assert fetch(database, select(func.count()).select_from(Run)) == [0]
    assert fetch(database, select(func.count()).select_from(MetricValue)) == [0]


def test_the_projects_setting_refuses_as_the_flag_does(data: Path, database: Database, capsys) -> None:
    with database.write() as session:
        add_candidates(session, "face", ["m1", "m2"])
        save_settings(session, {"commercial": True})
    assert annotate.__main__.main(["fit", "--data", str(data)]) == 2
    assert "Commercial use is forbidden by the licence of pyiqa" in capsys.readouterr().err
    with pytest.raises(UserError, match="Commercial use is forbidden by the licence of pyiqa"):
        start(database, data, MEASURE, MEASURE.make({"metrics": "face"}))
    assert fetch(database, select(func.count()).select_from(Run)) == [0]
    with database.write() as session:
        save_settings(session, {"data_licence": "CC-BY-NC-4.0"})
    assert annotate.__main__.main(["measure", "--metrics", "permissive", "--data", str(data)]) == 2
    assert "the licence of the project's photos (CC-BY-NC-4.0)" in capsys.readouterr().err


def test_what_a_process_loads_of_itself_is_forbidden_too(monkeypatch):
    monkeypatch.setenv(COMMERCIAL_VARIABLE, "1")
    with pytest.raises(MetricError, match="nlpd needs pyiqa, whose licence forbids commercial use: measure with"):
        columns(load_metric_list("offline"))
    assert len(columns(load_metric_list("permissive"))) == 16
