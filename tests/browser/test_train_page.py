"""The Train page in a browser: a form filled in, faults told beside the fields, a tiny training started by a click."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page, expect

pytest.importorskip("torch", reason="needs torch: `make install`")
pytest.importorskip("open_clip", reason="needs open_clip: `make install`")

from db.models import Run, RunState
from db.session import Database
from tests.browser.conftest import enter
from tests.unit.reward.conftest import architecture_file, make_dataset  # noqa: F401
from tests.watching import wait_for_end

pytestmark = pytest.mark.browser


@pytest.fixture
def train_page(serve: Any, open_page: Callable[..., Page], fill: Callable[..., None]) -> Callable[..., Page]:
    """Opens the Train page, signed in as an admin; `train_page("#kind=…")`."""
    fill(1)
    server = serve(admin_pages=True)

    def open_train(address: str = "", **options: object) -> Page:
        page = open_page(viewport={"width": 1280, "height": 1000}, **options)
        enter(page, server, "ada", f"/admin/train{address}")
        expect(page.get_by_label("Kind of run")).to_be_visible()
        return page

    return open_train


def field(page: Page, key: str) -> Any:
    """The block of a setting: its label, control, hint and error."""
    return page.locator(f'[data-key="{key}"]')


def command(page: Page) -> Any:
    return page.get_by_label("The command")


def test_a_training_is_filled_in_and_started_by_clicks(
    train_page: Callable[..., Page],
    database: Database,
    data: Path,
    make_dataset: Callable[..., Path],  # noqa: F811
    architecture_file: Path,  # noqa: F811
) -> None:
    dataset = make_dataset()
    page = train_page()
    start = page.get_by_role("button", name="Start", exact=True)
    page.get_by_label("Kind of run").select_option(label="Train a reward model")
    expect(page.get_by_label("Preset", exact=True)).to_have_value("tiny")
    expect(page.get_by_text("Before it can start: Dataset.")).to_be_visible()
    expect(start).to_be_disabled()

    page.get_by_label("Dataset").fill("/nowhere")
    expect(page.get_by_text("There is no folder /nowhere.")).to_be_visible()
    expect(page.get_by_label("Dataset")).to_have_attribute("aria-invalid", "true")
    page.get_by_label("Dataset").fill(str(dataset))
    expect(command(page)).to_have_text(f"python -m reward train --preset=tiny --dataset={dataset} --data={data}")
    expect(start).to_be_enabled()

    steps = page.get_by_label("Max steps", exact=True)
    expect(field(page, "train.max_steps")).to_contain_text("Optimizer steps, with warmup and cosine decay")
    expect(field(page, "train.max_steps")).to_contain_text("1 or more; default: 1000")
    steps.fill("no")
    expect(field(page, "train.max_steps")).to_contain_text("Give a whole number.")
    expect(start).to_be_disabled()
    steps.fill("30")  # fewer than the warmup, which is another field, folded away: it unfolds with what is wrong
    expect(field(page, "train.warmup_steps")).to_contain_text("it must be below max_steps, 30")
    expect(page.get_by_label("Warmup steps", exact=True)).to_be_visible()
    page.get_by_label("Warmup steps", exact=True).fill("2")
    expect(command(page)).to_contain_text("--max-steps=30 --warmup-steps=2")
    expect(page.locator("summary", has_text="Training")).to_contain_text("1 changed")

    # a changed field is marked, and goes back to the preset's value
    page.get_by_label("Batch size", exact=True).fill("9")
    expect(field(page, "train.batch_size")).to_have_class(re.compile("tr-changed"))
    expect(command(page)).to_contain_text("--batch-size=9")
    page.get_by_role("button", name="Batch size: back to 32").click()
    expect(page.get_by_label("Batch size", exact=True)).to_have_value("32")
    expect(field(page, "train.batch_size")).not_to_have_class(re.compile("tr-changed"))
    expect(command(page)).not_to_contain_text("--batch-size")

    page.locator("summary", has_text="Model").click()
    for label, value in (
        ("Architecture", str(architecture_file)),
        ("Image size", "32"),
        ("Unlocked image groups", "5"),
        ("Workers", "0"),
        ("Log every steps", "2"),
    ):
        page.get_by_label(re.compile(f"^{label}( pixels)?$")).fill(value)
    page.get_by_label("Validate every steps", exact=True).fill("10")
    expect(command(page)).to_contain_text("--validate-every-steps=10")
    typed = command(page).text_content()
    # all of it stands in the address: a reload shows the same
    page.reload()
    expect(command(page)).to_have_text(str(typed))
    start.click()
    link = page.get_by_role("status").get_by_role("link", name="Run 1")
    expect(link).to_be_visible()
    assert str(link.get_attribute("href")).endswith("/admin/runs#run=1")
    run = wait_for_end(database, data, 1)
    assert (run.state, run.device, run.kind) == (RunState.finished, "cpu", "reward train"), run.error
    assert run.config["train"]["max_steps"] == 30
    best = Path(run.config["out"]) / "best"
    assert best.is_dir()
    link.click()
    expect(page).to_have_url(re.compile(r"/admin/runs#run=1"))

    # what it made is a choice for the next run, and its form one for a run like it
    page.goto(page.url.replace("/admin/runs", "/admin/train").partition("#")[0] + "#kind=refl%20train&restorer=tiny")
    reward = page.locator('[data-input="reward"] select')
    expect(reward).to_be_visible()
    reward.select_option(str(best))
    expect(command(page)).to_contain_text(f"--restorer=tiny --reward={best}")
    page.goto(page.url.partition("#")[0] + "#from=1")
    expect(command(page)).to_have_text(str(typed))
    expect(page.get_by_text("holds this training, finished")).to_be_visible()
    expect(page.get_by_text(re.compile("^About .* run 1 took .* per step"))).to_be_visible()


def test_the_form_of_each_algorithm_asks_for_what_it_learns_from(train_page: Callable[..., Page]) -> None:
    page = train_page("#kind=refl%20train&restorer=tiny&preset=tiny-gdpo")
    start = page.get_by_role("button", name="Start", exact=True)
    expect(page.get_by_label("Algorithm", exact=True)).to_have_value("gdpo")
    expect(page.get_by_text("algorithm gdpo needs a reward", exact=False)).to_be_visible()
    page.get_by_label("Reward", exact=True).select_option("metric:psnr")
    expect(command(page)).to_contain_text("--preset=tiny-gdpo --restorer=tiny --reward=metric:psnr")
    expect(start).to_be_enabled()
    page.locator("summary", has_text="Algorithm").click()
    expect(field(page, "algorithm.group_size")).to_contain_text("gdpo, grpo: restored images of each photo")
    page.get_by_label("Preset", exact=True).select_option("tiny-dpo")
    expect(page.get_by_label("Algorithm", exact=True)).to_have_value("dpo")
    expect(page.get_by_text("algorithm dpo learns from labelled pairs", exact=False)).to_be_visible()
    expect(page.get_by_label("Dataset")).to_have_attribute("aria-invalid", "true")


def test_a_link_fills_the_form_and_texts_stay_texts(train_page: Callable[..., Page]) -> None:
    evil = "<img src=x onerror=alert(1)>"
    page = train_page(f"#kind=refl%20restore&method=tiny&method=m%3D/no{evil}&seeds=0%201&small_memory=true&split=val")
    expect(page.get_by_label("Restorers", exact=True)).to_have_value("tiny")
    expect(page.get_by_text(f"There is no folder /no{evil}")).to_be_visible()
    expect(page.locator(".fr-train img")).to_have_count(0)
    expect(command(page)).to_contain_text("--seeds 0 1 --split=val --small-memory")
    page.get_by_role("button", name="Remove this one of Restorers").click()
    expect(page.get_by_role("button", name="Start", exact=True)).to_be_enabled()
    page.get_by_role("button", name="Add another to Restorers").click()
    page.keyboard.press("ArrowDown")  # the new one has the focus
    expect(command(page)).to_contain_text("--method=tiny --method=")
    page.get_by_label("Kind of run").select_option(label="Label the unjudged pairs")
    expect(page.get_by_text("There is no labeler yet")).to_be_visible()
    page.get_by_role("group", name="Splits").get_by_label("val").check()
    expect(command(page)).to_contain_text("--splits=val")


def test_the_next_round_is_shown_before_it_is_started(
    train_page: Callable[..., Page], database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("runs.rounds.start_what_can", lambda *_args: None)  # its runs are tested elsewhere
    page = train_page()
    section = page.get_by_role("region", name="Next round")
    plan = section.get_by_role("listitem")
    expect(plan).to_have_count(8)
    expect(plan.nth(4)).to_contain_text("Train a reward model (tiny) on it (on cpu, after step 4)")
    expect(section).to_contain_text("The labeler learns from 30 or more pairs of the split train that people judged")
    section.get_by_text("More settings").click()
    section.get_by_label("Max reward steps", exact=True).fill("0")
    expect(section.get_by_text("Give 1 or more.")).to_be_visible()
    expect(section.get_by_role("button", name="Start the round")).to_be_disabled()
    section.get_by_label("Max reward steps", exact=True).fill("60")
    expect(plan.nth(4)).to_contain_text("--max-steps=60")
    with database.read() as session:
        assert session.query(Run).count() == 0
    section.get_by_role("button", name="Start the round").click()
    expect(section.get_by_role("status").get_by_role("link")).to_have_count(8)
    with database.read() as session:
        assert [run.after for run in session.query(Run).order_by(Run.id)] == [[], *([run] for run in range(1, 8))]
    expect(section).to_contain_text("Round 2 writes into")
