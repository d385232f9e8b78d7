"""An ablation trains each other method for what the full variant cost, and its report says what each cost."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import torch  # noqa: F401  # so that the folder's tests are left out together where it is not installed

import refl.tune.ablate
from db.errors import UserError
from refl.restorers.record import takes_many_steps
from refl.tune.ablate import ABLATE, AblateOptions, choose_budget, choose_variants, run_ablate
from refl.tune.command import TRAIN
from runs.options import Place, read_words

WORDS = ["--restorer=tiny", "--reward=frm", "--out=o"]


def names(preset: str, *words: str) -> list[str]:
    return [variant.name for variant in choose_variants(read_words(ABLATE, [preset, *WORDS, *words]))]


def test_each_method_is_a_variant_where_it_can_be(tmp_path: Path) -> None:
    assert names("tiny-refl")[:4] == ["full", "gdpo", "grpo", "no reward"]
    assert names("tiny-refl", "--dataset=d")[:4] == ["full", "dpo", "gdpo", "grpo"]
    assert names("tiny-refl", "--only", "grpo") == ["full", "grpo"]
    assert names("osediff-24gb", "--restorer=osediff")[:3] == ["full", "gdpo", "no reward"]
    assert names("tiny-gdpo", "--dataset=d") == ["full", "dpo", "grpo"]
    (tmp_path / "trained.json").write_text(json.dumps({"restorer": "osediff:FILE", "kind": "lora", "rank": 4}))
    assert not takes_many_steps(str(tmp_path))
    (tmp_path / "trained.json").write_text(json.dumps({"restorer": "diffbir-v1", "kind": "lora", "rank": 4}))
    assert takes_many_steps(str(tmp_path))
    with pytest.raises(UserError, match=r"There is no variant 'dpo'. Name one of full, gdpo, grpo"):
        names("tiny-refl", "--only", "dpo")


def finish(folder: Path, method: str, evaluations: int | None) -> None:
    """As a training leaves it."""
    (folder / "last").mkdir(parents=True, exist_ok=True)
    record: dict[str, Any] = {"config": {"algorithm": {"algorithm": method}}, "step": 7, "hacking": None}
    record |= {"evaluations": evaluations, "seconds": 12.3} if evaluations else {}
    (folder / "last" / "training.json").write_text(json.dumps(record))


def test_methods_get_what_the_full_variant_cost_and_the_report_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[list[str]] = []

    def run(command: list[str], _url: str | None) -> None:
        ran.append(command)
        if command[1] == "evaluate":
            (tmp_path / "report").mkdir(exist_ok=True)
            (tmp_path / "report" / "report.md").write_text("# Restorers side by side\n")
            return
        asked = read_words(TRAIN, command[2:])  # as the command itself reads it
        assert asked.out
        finish(asked.out, asked.config.method, 1234 if asked.out.name == "full" else asked.algorithm.budget + 5)

    monkeypatch.setattr(refl.tune.ablate, "run_module", run)
    options = AblateOptions(
        preset="tiny-refl", restorer="tiny", reward="frm", dataset=tmp_path, out=tmp_path, only=["dpo", "gdpo", "grpo"]
    )
    options = options.model_copy(update={"flags": ["--max-steps=3", "--group-size=4"]})
    run_ablate(options, Place(data=tmp_path / "data", db=None))
    trained = {Path(asked.out or "").name: asked for asked in (read_words(TRAIN, words[2:]) for words in ran[:-1])}
    assert list(trained) == ["full", "dpo", "gdpo", "grpo"]
    assert (trained["full"].algorithm.budget, trained["full"].train.max_steps) == (0, 3)
    for name in ("dpo", "gdpo", "grpo"):
        config = trained[name].config
        assert (config.method, config.algorithm.budget, config.train.max_steps) == (name, 1234, 1234)
        assert (config.algorithm.group_size, config.live_reward.reward_every_steps) == (4, 0)
    with open(tmp_path / "report" / "costs.csv", encoding="utf-8-sig") as stream:
        rows = list(csv.DictReader(stream))
    assert [(row["variant"], row["network evaluations"]) for row in rows][:2] == [("full", "1234"), ("dpo", "1239")]
    said = (tmp_path / "report" / "report.md").read_text()
    assert said.startswith("# Restorers side by side\n")
    assert "| variant | algorithm | steps | network evaluations | seconds | hacking |" in said
    assert "| grpo | grpo | 7 | 1,239 | 12 | – |" in said
    finish(tmp_path / "full", "refl", None)
    with pytest.raises(UserError, match="did not count network evaluations"):
        choose_budget(tmp_path)
