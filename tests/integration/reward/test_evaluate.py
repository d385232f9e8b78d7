"""`reward evaluate` and `score` by the commands, on datasets that the real `annotate export` wrote."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import combinations
from pathlib import Path
from uuid import uuid4

import numpy as np
import pandas as pd
import pytest
from PIL import Image as PilImage
from sqlalchemy import func, select

torch = pytest.importorskip("torch", reason="needs torch: `make install`")
pytest.importorskip("open_clip", reason="needs open_clip: `make install`")

from annotate.__main__ import main as annotate  # noqa: E402
from annotate.judging.judgments import Answer, record_judgment  # noqa: E402
from annotate.judging.pairs import make_pairs  # noqa: E402
from annotate.judging.people import add_person  # noqa: E402
from annotate.report.rewards import compute_mean_rewards  # noqa: E402
from db.images import add_image, probe_image  # noqa: E402
from db.models import Choice, Label, MetricValue, Origin, Pair, Person, Side, Source, Split  # noqa: E402
from db.project import ProjectSettings  # noqa: E402
from db.records import add_candidate, add_method, add_metric_value, add_source  # noqa: E402
from db.session import Database, open_database  # noqa: E402
from reward.__main__ import main as reward  # noqa: E402
from reward.model.checkpoint import build_model, save_model  # noqa: E402
from reward.model.config import load_model_config  # noqa: E402

NOISE = {"clean": 4.0, "soft": 14.0, "noisy": 30.0, "worst": 60.0}
"""Standard deviation of each method's noise, 0 … 255: what the planted people dislike."""
SIZE_PX = 40


def add_faces(database: Database, data: Path, folder: Path, n_sources: int, caption: str | None = None) -> None:
    """Photos of the test split, each with a noisy image by each method; one metric knows the noise, one is a coin."""
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True, exist_ok=True)
    with database.write() as session:
        for number in range(n_sources):
            source = add_source(session, f"face{number:03}", Split.test, caption=caption)
            smooth = np.kron(rng.integers(40, 215, (5, 5, 3)), np.ones((8, 8, 1)))
            for name, noise in NOISE.items():
                pixels = (smooth + rng.normal(0, noise, smooth.shape)).clip(0, 255).astype(np.uint8)
                file = folder / f"{number}-{name}.png"
                PilImage.fromarray(pixels).save(file)
                image = add_image(session, data, probe_image(file), file)
                add_candidate(session, source, add_method(session, name), image)
                values = {"noise_free": -noise + rng.normal(0, 6), "coin": rng.normal()}
                for metric, value in values.items():
                    add_metric_value(session, image, metric, "pyiqa 1", value=value, raw_value=-value)
        make_pairs(session, ProjectSettings())


def judge(
    database: Database, names: list[str], *, simulated: bool = False, seed: int = 1, most: int | None = None
) -> None:
    """Each person answers every pair, or the first so many: the less noisy image with logistic noise, or a tie."""
    rng = np.random.default_rng(seed)
    with database.write() as session:
        people = [add_person(session, name, simulated=simulated).id for name in names]
        for pair in session.scalars(select(Pair).order_by(Pair.key).limit(most)).all():
            odds = (NOISE[pair.b.method.name] - NOISE[pair.a.method.name]) / 12
            for person in people:
                felt = odds + rng.logistic()
                choice = Choice.tie if abs(felt) < 0.4 else Choice.a if felt > 0 else Choice.b
                side = Side.a if rng.random() < 0.5 else Side.b
                record_judgment(session, person, Answer(str(uuid4()), pair.id, 0, side, choice, 1.5))


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A tiny model with random weights."""
    torch.manual_seed(0)
    folder = tmp_path / "rewards" / "mine" / "best"
    save_model(build_model(load_model_config("tiny", image_size_px=56)), folder)
    return folder


@pytest.fixture
def project(database: Database, data: Path, tmp_path: Path) -> Callable[..., Path]:
    """`project(simulated=True)`: a judged project, exported."""

    def make(*options: str, simulated: bool = False, caption: str | None = None) -> Path:
        add_faces(database, data, tmp_path / "files", 12, caption)
        judge(database, ["ann", "bob", "cy"], simulated=simulated)
        out = tmp_path / "dataset"
        assert annotate(["export", "--out", str(out), *options, "--data", str(data)]) == 0
        return out

    return make


def test_constructed_pairs_stand_apart_and_a_set_is_a_scorer(
    project: Callable[..., Path], checkpoint: Path, data: Path, tmp_path: Path
) -> None:
    dataset, shared = project(), ["--data", str(data)]
    made = tmp_path / "made"
    kinds = ["--kinds", "colour_shift", "other_person"]
    assert reward(["construct", str(dataset), *kinds, "--out", str(made), *shared]) == 0
    combined = ["--model", f"one={checkpoint}", "--model", f"two={checkpoint}", "--dataset", str(dataset)]
    assert reward(["set", *combined, "--split", "test", "--out", str(tmp_path / "set"), *shared]) == 0
    scorers = ["--scorer", str(checkpoint), "--scorer", f"both={tmp_path / 'set'}", "--robustness-pairs", "0"]
    for number, folder in enumerate((dataset, made)):
        asked = ["evaluate", str(folder), *scorers, "--no-metrics", "--out", str(tmp_path / f"report{number}")]
        assert reward([*asked, *shared]) == 0
    plain, with_made = (json.loads((tmp_path / f"report{number}" / "summary.json").read_text()) for number in (0, 1))
    assert plain["labels"] == with_made["labels"]
    assert plain["scorers"] == with_made["scorers"]
    table = pd.read_csv(tmp_path / "report1" / "constructed.csv")
    assert set(zip(table["scorer"], table["kind"], strict=True)) == {
        (scorer, kind) for scorer in ("mine", "both") for kind in kinds[1:]
    }
    assert table["n"].tolist() == [12] * 4
    assert "judged by nobody" in (tmp_path / "report1" / "report.md").read_text()
    assert not (tmp_path / "report0" / "constructed.csv").exists()


def test_report_on_models_metrics_and_answers(
    project: Callable[..., Path], checkpoint: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dataset = project()
    pairs = [json.loads(line) for line in (dataset / "pairs.jsonl").read_text().splitlines()]
    judged = tmp_path / "judged.csv"
    pd.DataFrame({"pair": [row["pair"] for row in pairs], "machine_p_a": [0.9 * row["p_a"] for row in pairs]}).to_csv(
        judged
    )
    out = tmp_path / "report"
    options = ["--scorer", str(checkpoint), "--pair-scores", f"svm={judged}", "--robustness-pairs", "6"]
    assert reward(["evaluate", str(dataset), *options, "--out", str(out), "--data", str(data)]) == 0
    said = capsys.readouterr().out
    assert f"report: {out / 'report.md'}" in said
    assert "SIMULATED" not in said

    scorers = pd.read_csv(out / "scorers.csv").set_index("scorer")
    assert scorers["kind"].to_dict() == {
        "mine": "reward model",
        "svm": "pair predictor",
        "coin": "metric",
        "noise_free": "metric",
    }
    assert scorers.loc["noise_free", "low"] > 0.7
    assert scorers.loc["noise_free", "spearman"] == 1.0
    assert scorers.loc["coin", "low"] < 0.5 < scorers.loc["coin", "high"]
    assert scorers.loc["noise_free", "tie_auc"] > 0.6  # the closer two methods are, the more ties
    for name in ("accuracy", "calibration", "conditions", "method_pairs", "rankings", "robustness"):
        assert (out / f"{name}.png").stat().st_size > 5000, name
        assert (out / f"{name}.svg").exists(), name
    assert set(pd.read_csv(out / "method_pairs.csv")["methods"]) == {
        " vs ".join(sorted(two)) for two in combinations(NOISE, 2)
    }
    robust = pd.read_csv(out / "robustness.csv").set_index("condition")
    assert robust.loc[["as they are", "swapped, in other batches"], "same"].tolist() == [1.0, 1.0]
    summary = json.loads((out / "summary.json").read_text())
    assert summary["labels"]["n"] == 12 * 6
    assert summary["labels"]["people"] == 3
    assert 0.5 < summary["people"]["ceiling"]["value"] < 1
    assert summary["people"]["ceiling"]["value"] > summary["people"]["ceiling_with_ties"]["value"]
    report = (out / "report.md").read_text()
    for words in ("Human ceiling", "Always with the majority", "svm", "72 labels of 12 photos", "Spearman"):
        assert words in report, words
    card = (checkpoint / "README.md").read_text()
    assert "none, training started from random numbers" in card
    assert f"accuracy {scorers.loc['mine', 'accuracy']:.3f}" in card
    with open_database(data).read() as session:
        assert session.scalar(select(func.count()).select_from(Source)) == 12


def test_simulated_annotators_never_count_as_people(
    project: Callable[..., Path], data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dataset = project("--include-simulated", simulated=True)
    command = ["evaluate", str(dataset), "--data", str(data), "--out", str(tmp_path / "report")]
    assert reward(command) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert "no label by people to measure on in split test" in said
    assert "72 labels of simulated annotators are left out" in said
    assert said.count("\n") == 1
    assert reward([*command, "--include-simulated"]) == 0
    assert "SIMULATED" in capsys.readouterr().out
    report = (tmp_path / "report" / "report.md").read_text()
    assert "**Includes SIMULATED annotators" in report
    assert "by 0 people and 3 simulated annotators" in report
    assert "Human ceiling** not known" in report


def test_one_clear_line_each(
    project: Callable[..., Path], data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dataset = project()
    captioned = tmp_path / "captioned"
    torch.manual_seed(0)
    save_model(build_model(load_model_config("tiny", image_size_px=56, text_mode="caption")), captioned)

    def fails(*options: str) -> str:
        assert reward(["evaluate", str(dataset), *options, "--data", str(data)]) == 2
        said = capsys.readouterr().err
        assert said.splitlines()[-1].startswith("error: ")
        return said.splitlines()[-1]

    assert "no label by people to measure on in split val: none" in fails("--split", "val")
    assert "None of the 72 pairs has a caption" in fails("--scorer", str(captioned))
    assert "There is nothing to evaluate" in fails("--no-metrics")
    assert "There is no scorer 'gpt'" in fails("--scorer", "gpt")
    assert "There is no device 'tpu'" in fails("--device", "tpu")
    architecture = json.loads((captioned / "architecture.json").read_text())
    architecture["vision_cfg"]["width"] = 64
    (captioned / "architecture.json").write_text(json.dumps(architecture))
    assert "not the weights of this architecture" in fails("--scorer", str(captioned), "--use-prompt")
    wrong = tmp_path / "wrong.csv"
    wrong.write_text("pair,better\nx,1\n")
    assert "it needs pair and p_a or machine_p_a" in fails("--pair-scores", str(wrong))


def test_the_prompt_stands_in_for_single_captions_and_the_report_says_so(
    project: Callable[..., Path], data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dataset, out = project(), tmp_path / "report"
    torch.manual_seed(0)
    save_model(build_model(load_model_config("tiny", image_size_px=56, text_mode="caption")), tmp_path / "captioned")
    command = ["evaluate", str(dataset), "--scorer", str(tmp_path / "captioned"), "--no-metrics", "--data", str(data)]
    command += ["--robustness-pairs", "0", "--out", str(out)]
    said = (
        'captioned: {} of 72 pairs have no caption; the prompt "A sharp, natural photo of a person\'s face." stands in.'
    )
    file = dataset / "pairs.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    lines = [json.dumps(row | {"caption": "a man" if row["source"] == "face003" else None}) for row in rows]
    file.write_text("\n".join(lines) + "\n")
    assert reward(command) == 0
    assert said.format(66) in capsys.readouterr().out
    assert said.format(66) in (out / "report.md").read_text()


def test_laion_aesthetics_is_a_metric_whose_missing_weights_are_one_line(
    database: Database, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its weights are on no test machine: what they would give is planted."""
    add_faces(database, data, tmp_path / "files", 6)
    judge(database, ["ann"])
    metrics = tmp_path / "laion.toml"
    metrics.write_text('name = "laion"\nversion = "1"\ndescription = "x"\n[[metrics]]\nname = "laion_aes"\n')
    for name, value in (("HF_HUB_OFFLINE", "1"), ("HOME", str(tmp_path)), ("https_proxy", "http://127.0.0.1:9")):
        monkeypatch.setenv(name, value)
    assert annotate(["measure", "--metrics", str(metrics), "--workers", "1", "--data", str(data)]) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith("error: Weights are missing and HF_HUB_OFFLINE is set: laion_aes needs")
    with database.write() as session:
        for stored in session.scalars(select(MetricValue).where(MetricValue.metric == "noise_free")).all():
            stored.metric = "laion_aes"
    dataset, out = tmp_path / "dataset", tmp_path / "report"
    assert annotate(["export", "--out", str(dataset), "--data", str(data)]) == 0
    assert reward(["evaluate", str(dataset), "--out", str(out), "--data", str(data)]) == 0
    row = pd.read_csv(out / "scorers.csv").set_index("scorer").loc["laion_aes"]
    assert (row["kind"], row["n"] > 0, row["low"] > 0.5) == ("metric", True, True)
    assert {"spearman_low", "spearman_high", "kendall_low", "kendall_high"} <= set(row.dropna().index)


def test_rewards_are_stored_and_resumed(
    database: Database, data: Path, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    add_faces(database, data, tmp_path / "files", 3)

    def score(*options: str) -> str:
        assert reward(["score", *options, "--scorer", str(checkpoint), "--batch-size", "4"]) == 0
        return capsys.readouterr().out

    assert "12 images scored" in score(str(data))
    assert "0 images scored" in score("--data", str(data))
    with database.write() as session:
        stored = session.scalars(select(MetricValue).where(MetricValue.metric == "reward-mine")).all()
        assert len({value.value for value in stored}) == len(stored) == 12
        version = stored[0].version
        session.delete(stored[5])
    assert f'version "{version}"' in (said := score("--data", str(data)))
    assert "1 images scored" in said

    # a metric list may name them, and measuring leaves them alone
    metrics = tmp_path / "mine.toml"
    metrics.write_text(
        'name = "mine"\nversion = "1"\ndescription = "with a reward"\n[[metrics]]\nname = "sharpness"\n'
        f'[[metrics]]\nname = "reward-mine"\nversion = "{version}"\n'
    )
    assert annotate(["measure", "--metrics", str(metrics), "--workers", "1", "--data", str(data)]) == 0
    assert "12 values of 12 images" in capsys.readouterr().out
    judge(database, ["robot"])
    with database.read() as session:
        assert session.scalar(select(func.count()).select_from(Person)) == 1


def test_a_seeing_reward_is_a_column_from_scoring_to_labels_and_evaluation(
    database: Database, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.manual_seed(0)
    checkpoint = tmp_path / "rewards" / "mine" / "best"
    config = load_model_config("tiny", image_size_px=56, text_mode="input", members=2)
    save_model(build_model(config), checkpoint)
    add_faces(database, data, tmp_path / "files", 12)
    assert reward(["score", "--data", str(data), "--scorer", str(checkpoint)]) == 2
    assert "all 48 restored images lack it. mine needs it. Import the photos with lq" in capsys.readouterr().err
    with database.write() as session:
        for number, source in enumerate(session.scalars(select(Source).order_by(Source.id)).all()):
            file = tmp_path / f"lq{number}.png"
            PilImage.open(tmp_path / "files" / f"{number}-worst.png").resize((20, 20)).save(file)
            source.lq_image_id = add_image(session, data, probe_image(file), file).id
            source.split = Split.test if number % 4 == 3 else Split.train
    assert reward(["score", "--data", str(data), "--scorer", str(checkpoint)]) == 0
    said = capsys.readouterr().out
    assert "48 images scored" in said
    assert "mean spread over its members" in said
    version = said.partition('version "')[2].partition('"')[0]
    metrics = tmp_path / "mine.toml"
    metrics.write_text(
        'name = "mine"\nversion = "1"\ndescription = "with a reward that sees the input"\n'
        f'[[metrics]]\nname = "reward-mine"\nversion = "{version}"\nreferences = ["lq"]\n'
        '[[metrics]]\nname = "noise_free"\nversion = "pyiqa 1"\n'
    )
    judge(database, ["ann"], most=64)
    usual = ["--data", str(data)]
    assert annotate(["fit", "--metrics", str(metrics), "--kernel", "linear", "--quick", *usual]) == 0
    assert "SVM on 2 metrics" in capsys.readouterr().out
    assert annotate(["label", "--target-accuracy", "0.6", "--confidence", "0.51", *usual]) == 0
    with database.read() as session:
        assert session.scalar(select(func.count()).where(Label.origin == Origin.svm)) > 0
    dataset, out = tmp_path / "dataset", tmp_path / "report"
    assert annotate(["export", "--out", str(dataset), *usual]) == 0
    options = ["--scorer", f"again={checkpoint}", "--robustness-pairs", "0", "--out", str(out), *usual]
    assert reward(["evaluate", str(dataset), *options]) == 0
    scorers = pd.read_csv(out / "scorers.csv").set_index("scorer")
    assert set(scorers.index) == {"again", "reward-mine@lq", "noise_free", "coin"}  # and no spread
    assert scorers.loc["reward-mine@lq", "accuracy"] == scorers.loc["again", "accuracy"]
    with database.read() as session:
        assert compute_mean_rewards(session)["n_images"].tolist() == [12] * 4


def test_files_are_scored_and_a_cut_file_is_completed(
    checkpoint: Path, tmp_path: Path, make_photo: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    folder, out = tmp_path / "photos", tmp_path / "rewards.jsonl"
    for number in range(5):
        make_photo(folder / f"{number}.png", number, (30 + number, 20))
    (folder / "0.txt").write_text("a face\n")
    (folder / "broken.png").write_bytes(b"no image")
    command = ["score", str(folder), "--scorer", str(checkpoint), "--batch-size", "2", "--out", str(out)]
    assert reward(command) == 0
    said = capsys.readouterr().out
    assert "5 images scored" in said
    assert "unreadable: " in said
    whole = out.read_text().splitlines()
    first = json.loads(whole[0])
    assert first["caption"] == "a face"
    assert first["metric"] == "reward-mine"
    out.write_text("\n".join(whole[:3]) + "\n" + whole[3][:20])  # as a kill leaves it
    assert reward(command) == 0
    assert "2 images scored" in capsys.readouterr().out
    again = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["image"] for row in again] == [json.loads(line)["image"] for line in whole]
    assert [row["value"] for row in again] == pytest.approx([json.loads(line)["value"] for line in whole], abs=1e-6)
    (tmp_path / "other.jsonl").write_text("hello\n")
    assert reward([*command[:-1], str(tmp_path / "other.jsonl")]) == 2
    assert "is not a file of rewards" in capsys.readouterr().err
