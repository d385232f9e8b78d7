"""Tables of an evaluation against hand-worked numbers and planted scorers."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from dataset.labelled import LabelledPair
from db.errors import UserError
from pixels.read import read_rgb
from reward.data import Pairs
from reward.evaluate.answers import Answers, answer_by_file, answer_by_metrics, answer_by_model
from reward.evaluate.compare import (
    Labels,
    calibrate_scorers,
    compare_by,
    compare_by_margin,
    compare_scorers,
    compare_ties,
    describe_people,
    name_agreement,
    name_method_pairs,
)
from reward.evaluate.people import choose_labels, read_judgments, select_votes
from reward.evaluate.plots import plot_robustness
from reward.evaluate.report import describe_robustness
from reward.evaluate.robustness import CONDITIONS, SHUFFLED, compress, measure_robustness, resize, shift, shuffle_inputs
from reward.model.checkpoint import compute_version
from reward.model.model import RewardModel
from reward.score.scorer import Scorer, check_scorer_captions, load_scorer, score_batch, split_name
from runs.tables import write_table
from training.device import choose_device


def make_pair(number: int, p_a: float, **fields: object) -> LabelledPair:
    """A label of a pair of its own photo; a is by `best`, b by `bad`."""
    values: dict[str, object] = {
        "pair": f"pair{number}",
        "image_a": Path(f"{number}a.png"),
        "image_b": Path(f"{number}b.png"),
        "sha256_a": f"{number}a",
        "sha256_b": f"{number}b",
        "p_a": p_a,
        "weight": 1.0,
        "origin": "human",
        "made_by": "majority",
        "agreement": max(p_a, 1 - p_a),
        "caption": None,
        "source": f"photo{number}",
        "group": f"photo{number}",
        "split": "test",
        "method_a": "best",
        "method_b": "bad",
        "lq": None,
        "hq": None,
    }
    return LabelledPair(**(values | fields))  # type: ignore[arg-type]


def make_labels(*p_a: float) -> Labels:
    return Labels(tuple(make_pair(number, p) for number, p in enumerate(p_a)), np.full(len(p_a), 3))


def predict(name: str, margin: list[float] | np.ndarray, p_a: np.ndarray | None = None) -> Answers:
    return Answers(name, "metric" if p_a is None else "reward model", np.asarray(margin, dtype=float), p_a)


def test_accuracy_by_hand() -> None:
    labels = make_labels(1.0, 0.75, 0.0, 0.5, 0.25)
    margin = [2.0, -1.0, 0.0, 9.0, np.nan]  # right, 0.25 of the answers, undecided, a tie left out, no answer
    row = compare_scorers([predict("mine", margin)], labels).iloc[0]
    assert row["accuracy"] == pytest.approx((1 + 0.25 + 0.5) / 3)
    assert (row["n"], row["unanswered"], row["undecided"]) == (3, 1, 1)
    assert row["a_share"] == pytest.approx((1 + 0 + 0.5) / 3)


def test_planted_scorers() -> None:
    rng = np.random.default_rng(0)
    p_a = rng.permutation(np.repeat([0.0, 1.0], 200))
    labels = make_labels(*p_a)
    truth = 2 * p_a - 1
    scorers = [
        predict("perfect", truth),
        predict("random", rng.normal(size=400)),
        predict("constant", np.zeros(400)),
        predict("left-biased", 0.2 * truth + 1.0),
        predict("upside down", -truth),
    ]
    table = compare_scorers(scorers, labels).set_index("scorer")
    low = 0.025 ** (1 / 400)  # all right by chance once in forty times, were it no better than that
    assert table.loc["perfect", ["accuracy", "low", "high"]].tolist() == pytest.approx([1.0, low, 1.0])
    assert table.loc["random", "low"] < 0.5 < table.loc["random", "high"]
    assert table.loc["constant", ["accuracy", "undecided", "a_share"]].tolist() == [0.5, 400, 0.5]
    assert table.loc["left-biased", ["a_share", "a_share_low"]].tolist() == pytest.approx([1.0, low])
    assert table.loc["left-biased", "low"] < 0.5 < table.loc["left-biased", "high"]
    assert table.loc["upside down", "accuracy"] == 0.0
    assert table.loc["upside down", "first_ahead"] == 1.0
    assert table.loc["perfect", "first_ahead"] == 0.0


def test_the_difference_is_taken_on_pairs_that_both_answer() -> None:
    labels = make_labels(1.0, 1.0, 1.0, 1.0)
    first, second = predict("first", [1, 1, -1, -1]), predict("second", [1, 1, np.nan, np.nan])
    table = compare_scorers([first, second], labels).set_index("scorer")
    assert table.loc["first", "accuracy"] == 0.5
    assert table.loc["second", ["accuracy", "first_ahead"]].tolist() == [1.0, 0.0]


def test_calibration_only_of_probabilities() -> None:
    labels = make_labels(*[1.0] * 6, *[0.0] * 2)
    sure = predict("sure", np.full(8, 1.0), np.full(8, 0.75))
    curves, errors = calibrate_scorers([sure, predict("metric", np.ones(8))], labels)
    assert set(curves["scorer"]) == {"sure"}
    assert errors["brier"].iloc[0] == pytest.approx((6 * 0.0625 + 2 * 0.5625) / 8)


def test_groups_and_margins() -> None:
    labels = make_labels(1.0, 1.0, 2 / 3, 0.0)
    labels = Labels(labels.pairs, np.array([3, 1, 3, 0]))
    assert name_agreement(labels) == ["all agree", "one answer", "split", "not known"]
    assert name_method_pairs(labels) == ["bad vs best"] * 4
    mine = predict("mine", [1.0, 4.0, -2.0, 3.0])
    table = compare_by([mine], labels, name_agreement(labels), "agreement").set_index("agreement")
    assert table["accuracy"].to_dict() == pytest.approx(
        {"all agree": 1.0, "one answer": 1.0, "split": 1 / 3, "not known": 0.0}
    )
    by_margin = compare_by_margin([mine], labels)
    assert by_margin["margin_from"].tolist() == [1.0, 2.0, 3.0, 4.0]
    assert by_margin["accuracy"].tolist() == pytest.approx([1.0, 1 / 3, 0.0, 1.0])


def test_ties_are_close() -> None:
    labels = make_labels(1.0, 0.0, 0.5, 0.5)
    table = compare_ties([predict("knows", [5, -5, 0.1, 0]), predict("not", [1, -1, 1, -1])], labels)
    assert table["ties"].tolist() == [2, 2]
    assert table["tie_auc"].tolist() == [1.0, 0.5]
    assert np.isnan(compare_ties([predict("x", [1.0])], make_labels(1.0))["tie_auc"].iloc[0])


def write_judgments(folder: Path, rows: list[dict[str, object]]) -> None:
    usual = {"simulated": False, "picked": "random", "superseded_at": None, "repeat_no": 0, "gold": None}
    text = "".join(json.dumps(usual | row) + "\n" for row in rows)
    (folder / "judgments.jsonl").write_text(text)


def test_only_fair_answers_of_people_count(tmp_path: Path) -> None:
    rows = (
        make_pair(0, 1.0),
        make_pair(1, 1.0, made_by="majority with simulated annotators"),
        make_pair(2, 1.0),
        make_pair(3, 1.0, origin="svm"),
        make_pair(4, 1.0, split="train"),
        make_pair(5, 1.0, made_by="imported:csv"),
    )
    write_judgments(
        tmp_path,
        [
            {"pair": "pair0", "person": "ann", "choice": "a"},
            {"pair": "pair0", "person": "ann", "choice": "b", "superseded_at": "2026-01-01"},
            {"pair": "pair0", "person": "ann", "choice": "b", "repeat_no": 1},
            {"pair": "pair0", "person": "bob", "choice": "skip"},
            {"pair": "pair0", "person": "robot", "choice": "b", "simulated": True},
            {"pair": "pair1", "person": "robot", "choice": "a", "simulated": True},
            {"pair": "pair2", "person": "bob", "choice": "a", "picked": "uncertain"},
        ],
    )
    judgments = read_judgments(tmp_path)
    pairs = Pairs(tmp_path, rows)
    labels, votes, notes = choose_labels(pairs, "test", judgments, include_simulated=False)
    assert [row.pair for row in labels.pairs] == ["pair0", "pair5"]
    assert labels.answers.tolist() == [1, 0]
    assert votes[["pair", "person", "choice"]].to_numpy().tolist() == [["pair0", "ann", "a"]]
    assert len(notes) == 2
    labels, votes, _ = choose_labels(pairs, "test", judgments, include_simulated=True)
    assert [row.pair for row in labels.pairs] == ["pair0", "pair1", "pair5"]
    assert votes["simulated"].sum() == 2
    with pytest.raises(UserError, match="no label by people to measure on in split val: none"):
        choose_labels(pairs, "val", judgments, include_simulated=False)
    same = Pairs(tmp_path, (make_pair(0, 1.0, method_b="best"),))
    with pytest.raises(UserError, match="are of one method, best: nothing to compare"):
        choose_labels(same, "test", judgments, include_simulated=False)
    ties = Pairs(tmp_path, (make_pair(0, 0.5),))
    with pytest.raises(UserError, match="only 1 ties"):
        choose_labels(ties, "test", judgments, include_simulated=False)


def test_the_ceiling_leaves_out_ties_and_programs(tmp_path: Path) -> None:
    rows = []
    for number in range(6):
        for person, choice in (("ann", "a"), ("bob", "a"), ("cy", "tie"), ("robot", "b")):
            rows.append({"pair": f"pair{number}", "person": person, "choice": choice, "simulated": person == "robot"})
    write_judgments(tmp_path, rows)
    labels = make_labels(*[5 / 6] * 6)
    votes = select_votes(read_judgments(tmp_path), labels.pairs, include_simulated=True)
    people = describe_people(labels, votes)
    assert people["ceiling"]["value"] == 1.0
    assert people["ceiling"]["n"] == 12
    # cy's ties differ from the others' answer; ann's others are one a and one tie, which is no majority
    assert people["ceiling_with_ties"]["n"] < 10
    assert people["majority"]["value"] == pytest.approx(5 / 6)


def test_stored_metrics_answer_with_their_references(tmp_path: Path) -> None:
    pairs = (make_pair(0, 1.0, lq=Path("images/lq0.png")), make_pair(1, 0.0, lq=Path("images/lq1.png")))
    table = pd.DataFrame(
        [
            ("0a", "niqe", "1", "", 3.0),
            ("0b", "niqe", "1", "", 1.0),
            ("0a", "ssim", "1", "lq0", 0.5),
            ("0b", "ssim", "1", "lq0", 0.9),
            ("1a", "ssim", "1", "another", 0.5),
            ("1b", "ssim", "1", "lq1", 0.9),
            ("0a", "aes", "1", "", 1.0),
            ("0b", "aes", "1", "", 2.0),
            ("0a", "aes", "2", "", 2.0),
            ("0b", "aes", "2", "", 1.0),
        ],
        columns=["sha256", "metric", "version", "reference", "value"],
    )
    assert answer_by_metrics(tmp_path, pairs) == []
    table.to_parquet(tmp_path / "scores.parquet")
    found = {answers.name: answers.margin for answers in answer_by_metrics(tmp_path, pairs)}
    assert list(found) == ["aes (1)", "aes (2)", "niqe", "ssim@lq"]
    np.testing.assert_allclose(found["niqe"], [2.0, np.nan])
    np.testing.assert_allclose(found["ssim@lq"], [-0.4, np.nan])


def test_a_file_of_answers(tmp_path: Path) -> None:
    pairs = (make_pair(0, 1.0), make_pair(1, 1.0))
    file = tmp_path / "judged.csv"
    file.write_text("pair,machine_p_a\npair0,0.75\nelsewhere,0.5\n")
    answers = answer_by_file(f"svm={file}", pairs)
    assert (answers.name, answer_by_file(str(file), pairs).name) == ("svm", "judged")
    np.testing.assert_allclose(answers.margin, [0.25, np.nan])
    write_table(file, pd.DataFrame({"pair": ["-0", "pair1"], "p_a": [0.25, 1.0]}))
    renamed = (replace(pairs[0], pair="-0"), pairs[1])
    np.testing.assert_allclose(answer_by_file(str(file), renamed).margin, [-0.25, 0.5])
    for text, message in (
        ("pair,p_a\npair0,1.5\n", "p_a is a probability, 0 to 1; found 1.5"),
        ("pair,p_a\npair0,1\npair0,0\n", "pair pair0 is there twice"),
        ("pair,p_a\nx,1\n", "answers none of the 2 pairs"),
        ("id,p_a\nx,1\n", "it needs pair and p_a or machine_p_a"),
    ):
        file.write_text(text)
        with pytest.raises(UserError, match=message):
            answer_by_file(str(file), pairs)
    with pytest.raises(UserError, match="cannot be read as CSV"):
        answer_by_file(str(tmp_path / "absent.csv"), pairs)


@pytest.fixture
def scorer(make_model: Callable[..., RewardModel]) -> Scorer:
    model = make_model(text_mode="learned")
    return Scorer("tiny", None, model, compute_version(model))


@pytest.fixture
def photos(tmp_path: Path, make_photo: Callable[..., Path]) -> Labels:
    """Three pairs of image files of different sizes."""
    rows = []
    for number in range(3):
        a, b = (
            make_photo(tmp_path / f"{number}{side}.png", 10 * number + at, (40 + number, 36))
            for at, side in enumerate("ab")
        )
        rows.append(make_pair(number, 1.0, image_a=a, image_b=b))
    return Labels(tuple(rows), np.ones(3, dtype=int))


def test_a_models_answers(scorer: Scorer, photos: Labels) -> None:
    answers = answer_by_model(scorer, photos.pairs, 4)
    other = answer_by_model(scorer, photos.pairs, 1, backwards=True)
    np.testing.assert_allclose(answers.margin, other.margin, atol=1e-4)
    assert answers.p_a is not None
    np.testing.assert_allclose(answers.p_a, 1 / (1 + np.exp(-answers.margin)))
    swapped = [make_pair(n, 0.0, image_a=row.image_b, image_b=row.image_a) for n, row in enumerate(photos.pairs)]
    np.testing.assert_allclose(answer_by_model(scorer, swapped, 4).margin, -answers.margin, atol=1e-4)


def test_robustness_of_a_model(scorer: Scorer, photos: Labels) -> None:
    table = measure_robustness(scorer, photos, 2, 4).set_index("condition")
    assert table["n"].eq(2).all()
    assert table.loc["as they are", ["same", "change"]].tolist() == [1.0, 0.0]
    assert table.loc["swapped, in other batches", "same"] == 1.0
    assert table.loc["JPEG, quality 50", "change"] > 0
    assert table.loc[SHUFFLED, ["same", "change"]].tolist() == [1.0, 0.0]  # it sees none
    assert table.loc[SHUFFLED, "accuracy"] == table.loc["as they are", "accuracy"]


@pytest.fixture
def seeing(make_model: Callable[..., RewardModel]) -> Scorer:
    model = make_model(text_mode="input")
    return Scorer("seeing", None, model, compute_version(model))


@pytest.fixture
def seen_photos(photos: Labels, tmp_path: Path, make_photo: Callable[..., Path]) -> Labels:
    """The same pairs with the photos that were restored, of other sizes; the first two of one person."""
    rows = []
    for number, row in enumerate(photos.pairs):
        lq = make_photo(tmp_path / f"lq{number}.png", 50 + number, (20, 24 + number))
        rows.append(replace(row, lq=lq, group=str(number // 2)))
    return Labels(tuple(rows), photos.answers)


def test_a_seeing_models_answers_are_of_each_pairs_own_photo(seeing: Scorer, seen_photos: Labels) -> None:
    answers = answer_by_model(seeing, seen_photos.pairs, 4)
    scale = float(seeing.model.logit_scale.detach())
    for row, margin in zip(seen_photos.pairs, answers.margin, strict=True):
        assert row.lq is not None
        images = [read_rgb(path) for path in (row.image_a, row.image_b)]
        a, b = score_batch(seeing, images, [None, None], [read_rgb(row.lq)] * 2)
        assert margin == pytest.approx((a - b) * scale, abs=1e-4)
    # one image of two photos has two rewards
    one, other = seen_photos.pairs[0], seen_photos.pairs[1]
    both = [one, replace(one, pair="again", lq=other.lq)]
    first, second = answer_by_model(seeing, both, 4).margin
    assert abs(first - second) > 1e-4


def test_robustness_against_another_persons_photo(
    seeing: Scorer, seen_photos: Labels, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = {name: CONDITIONS[name] for name in ("as they are", SHUFFLED)}
    monkeypatch.setattr("reward.evaluate.robustness.CONDITIONS", kept)
    table = measure_robustness(seeing, seen_photos, 3, 4).set_index("condition")
    assert table.loc["as they are", "change"] == 0
    assert table.loc[SHUFFLED, "change"] > 0


def test_shuffled_photos_are_of_other_people_where_there_are_any(seen_photos: Labels) -> None:
    pairs = [*seen_photos.pairs, replace(seen_photos.pairs[0], pair="again")]
    owner = {row.lq: row for row in pairs}
    for seed in range(5):
        shuffled = shuffle_inputs(pairs, pairs, "lq", seed)
        assert shuffled is not None
        assert shuffled == shuffle_inputs(pairs, pairs, "lq", seed)
        assert shuffled[0].lq == shuffled[3].lq  # pairs of one photo stay so
        for before, after in zip(pairs, shuffled, strict=True):
            assert owner[after.lq].group != before.group
            assert replace(after, lq=before.lq) == before
    alike = [replace(row, group="one") for row in pairs]
    shuffled = shuffle_inputs(alike, alike, "lq", 0)
    assert shuffled is not None
    assert all(before.lq != after.lq for before, after in zip(alike, shuffled, strict=True))
    assert shuffle_inputs(pairs[:1], pairs[:1], "lq", 0) is None


def test_the_report_is_written_where_a_model_has_no_shuffled_photos(
    scorer: Scorer, seeing: Scorer, seen_photos: Labels, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = Labels(seen_photos.pairs[:1], seen_photos.answers[:1])
    kept = {name: CONDITIONS[name] for name in ("as they are", SHUFFLED)}
    monkeypatch.setattr("reward.evaluate.robustness.CONDITIONS", kept)
    tables = [measure_robustness(one, few, 3, 4) for one in (scorer, seeing)]
    assert SHUFFLED not in set(tables[1]["condition"])
    robustness = pd.concat(tables)
    assert plot_robustness(robustness, ["tiny", "seeing"]).axes
    assert "the photo of another person" in "\n".join(describe_robustness(robustness))


def test_stored_rewards_of_a_photo_are_answers_and_spreads_are_none(tmp_path: Path) -> None:
    pairs = (make_pair(0, 1.0, sha256_a="a", sha256_b="b", lq=Path("images/photo.png")),)
    rows = [
        (image, f"{kind}-mine", "reward 1", photo, value)
        for kind in ("reward", "spread")
        for image, photo, value in (("a", "photo", 0.75), ("b", "photo", 0.5), ("a", "other", 0.0), ("b", "other", 1.0))
    ]
    table = pd.DataFrame(rows, columns=["sha256", "metric", "version", "reference", "value"])
    table.to_parquet(tmp_path / "scores.parquet")
    (answers,) = answer_by_metrics(tmp_path, pairs)
    assert answers.name == "reward-mine@lq"
    np.testing.assert_allclose(answers.margin, [0.25])


def test_what_is_done_to_images() -> None:
    image = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    moved = shift(image, 0.1)
    np.testing.assert_array_equal(moved[3:, 3:], image[:-3, :-3])
    np.testing.assert_array_equal(moved[0, 0], image[0, 0])
    flat = np.full((20, 30, 3), 128, dtype=np.uint8)
    for change in (lambda x: compress(x, 50), lambda x: resize(x, 0.5), lambda x: shift(x, 1 / 32)):
        np.testing.assert_array_equal(change(flat), flat)
        assert change(image).shape == image.shape


def test_the_version_is_of_all_that_a_reward_depends_on(make_model: Callable[..., RewardModel]) -> None:
    first = compute_version(make_model())
    assert first == compute_version(make_model(unlocked_image_groups=1))
    assert first != compute_version(make_model(interpolation="bilinear"))
    changed = make_model()
    changed.clip.visual.proj.data[0, 0] += 1e-6
    assert first != compute_version(changed)
    assert first.startswith("reward ")


def test_a_scorer_may_be_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rate=0.1").mkdir()
    for asked, found in (
        ("tiny", ("", "tiny")),
        ("mine=runs/a=b/best", ("mine", "runs/a=b/best")),
        ("rate=0.1", ("", "rate=0.1")),
        ("low=rate=0.1", ("low", "rate=0.1")),
    ):
        assert split_name(asked) == found


def test_messages(scorer: Scorer, make_model: Callable[..., RewardModel], monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="There is no device 'tpu'"):
        choose_device("tpu")
    with pytest.raises(UserError, match="There is no scorer 'gpt'"):
        load_scorer("gpt", "cpu")
    captioned = Scorer("captioned", None, make_model(text_mode="caption", prompt="A face."), "")
    with pytest.raises(UserError, match=r"None of the 3 pairs has a caption.*let captioned compare.*'A face\.'"):
        check_scorer_captions(captioned, 3, 3, "pairs", use_prompt=False)

    def run_out(*_: object) -> None:
        raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes.")

    monkeypatch.setattr(scorer.model, "encode_pixels", run_out)
    image = np.zeros((8, 8, 3), dtype=np.uint8)
    with pytest.raises(UserError, match="lower --batch-size to 2"):
        score_batch(scorer, [image] * 4, [None] * 4)
    with pytest.raises(UserError, match="give --device cpu"):
        score_batch(scorer, [image], [None])
