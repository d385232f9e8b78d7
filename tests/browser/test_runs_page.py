"""The Runs and Models pages in a browser: a run is seen to come, grow and stop; compared, deleted, traced."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image as PilImage
from playwright.sync_api import Page, expect

from annotate.judging.people import add_person
from db.models import Role, Run, RunState, utc_now
from db.session import Database
from runs.store import read_progress, run_folder
from tests.browser.conftest import enter
from tests.making import ROOT, add_run_files
from tests.watching import LIMIT_SECONDS

pytestmark = pytest.mark.browser
TRAINING = """
import sys, time
from pathlib import Path
from db.session import open_database
from runs.store import open_run

data = Path(sys.argv[1])
with open_run(open_database(data), data, "refl train", {"train": {"seed": 7}}) as run:
    for step in range(1, 100_000):
        run.progress(step, 100_000, loss=1 / step, **{"held_out/frozen": step, "held_out/live": -step})
        time.sleep(0.1)
"""
HIDDEN = '<img src=x onerror="window.hidden_ran = true"><script>window.hidden_ran = true</script>'


@pytest.fixture
def train(data: Path) -> Iterator[Callable[[], subprocess.Popen[bytes]]]:
    """Starts a command that writes a progress line ten times a second until it is stopped; returns when it is a run."""
    started = []

    def start() -> subprocess.Popen[bytes]:
        command = [sys.executable, "-c", TRAINING, str(data)]
        started.append(subprocess.Popen(command, cwd=ROOT, start_new_session=True))
        while not read_progress(data, 1):
            assert started[-1].poll() is None
            time.sleep(0.1)
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.wait()


@pytest.fixture
def add(database: Database, data: Path) -> Callable[..., int]:
    """Adds a run that has ended, with its progress lines."""

    def add(kind: str = "reward train", lines: int = 20, **more: Any) -> int:
        written = [
            {"done": 10 * n, "total": 10 * lines, "loss": 1 / n, "learning_rate": n} for n in range(1, lines + 1)
        ]
        ended = {"started_at": utc_now(), "ended_at": utc_now()}
        return add_run_files(database, data, kind, lines=written, **{**ended, **more})

    return add


@pytest.fixture
def visit(serve: Any, open_page: Callable[..., Page], database: Database) -> Callable[..., Page]:
    """Opens an admin page in a browser of its own."""
    with database.write() as session:
        add_person(session, "ada", Role.admin)
    server = serve(admin_pages=True)

    def visit(path: str) -> Page:
        page = open_page(viewport={"width": 1280, "height": 1000})
        enter(page, server, "ada", path)
        return page

    return visit


def last_value(page: Page, name: str) -> float:
    """What the legend says of a series."""
    legend = page.locator(".fr-chart li", has_text=name).first.locator(".fr-value")
    return float(legend.inner_text())


def test_a_run_comes_grows_and_is_stopped_in_two_browsers(
    visit: Callable[..., Page], train: Callable[[], subprocess.Popen[bytes]]
) -> None:
    page = visit("/admin/runs")
    expect(page.get_by_text("No runs yet.")).to_be_visible()
    process = train()
    expect(page.get_by_role("link", name="1 · refl train")).to_be_visible()
    row = page.get_by_role("row", name="refl train")
    expect(row.get_by_text("running")).to_be_visible()
    expect(row.get_by_text(re.compile("held-out reward"))).to_be_visible()
    expect(row.get_by_text(re.compile("left$"))).to_be_visible()

    page.get_by_role("link", name="1 · refl train").click()
    expect(page.get_by_role("heading", name="Run 1 · refl train")).to_be_visible()
    expect(page.locator(".fr-chart path").first).to_be_visible()
    for browser in (page, other := visit("/admin/runs#run=1")):
        expect(browser.locator(".fr-chart path").first).to_be_visible()
        before = last_value(browser, "frozen")
        page_grew = "(before) => Number(document.querySelector('.fr-chart li .fr-value').innerText) !== before"
        browser.wait_for_function(page_grew, arg=before)
    shapes = page.locator(".fr-chart path").first.get_attribute("d")
    page.reload()
    expect(page.get_by_role("heading", name="Run 1 · refl train")).to_be_visible()
    expect(page.locator(".fr-chart path").first).to_be_visible()
    assert page.locator(".fr-chart path").first.get_attribute("d") != shapes

    page.get_by_role("button", name="Stop").click()
    for browser in (page, other):
        expect(browser.locator(".fr-status").get_by_text("stopped")).to_be_visible()
        expect(browser.get_by_role("button", name="Stop")).to_have_count(0)
    assert process.wait(LIMIT_SECONDS) != 0


def test_the_page_rests_while_nobody_looks(
    visit: Callable[..., Page], train: Callable[[], subprocess.Popen[bytes]]
) -> None:
    train()
    page = visit("/admin/runs#run=1")
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.wait_for_function("document.querySelector('.fr-chart path')")
    hide = "Object.defineProperty(document, 'hidden', {value: %s, configurable: true})"
    page.evaluate(hide % "true")
    page.wait_for_timeout(2_500)
    asked.clear()
    page.wait_for_timeout(4_000)
    assert [url for url in asked if "/api/runs" in url] == []
    page.evaluate(f"{hide % 'false'}; document.dispatchEvent(new Event('visibilitychange'))")
    page.wait_for_timeout(3_000)
    assert [url for url in asked if "/series" in url]


def test_several_runs_are_compared(visit: Callable[..., Page], add: Callable[..., int]) -> None:
    for seed in (3, 4):
        add(config={"train": {"seed": seed, "max_steps": 200}})
    add("refl train")
    page = visit("/admin/runs#kind=reward%20train")
    expect(page.get_by_role("link", name="2 · reward train")).to_be_visible()
    expect(page.get_by_role("link", name="3 · refl train")).to_have_count(0)
    expect(page.get_by_label("Kind")).to_have_value("reward train")
    page.get_by_role("checkbox", name="Choose run 1").check()
    expect(page.get_by_role("button", name="Compare: choose two or more")).to_be_disabled()
    page.get_by_role("checkbox", name="Choose run 2").check()
    page.get_by_role("button", name="Compare 2 runs").click()
    expect(page.get_by_role("heading", name="Runs 1, 2")).to_be_visible()
    assert page.url.endswith("#compare=1,2")
    chart = page.get_by_role("figure", name="").filter(has_text="learning_rate")
    expect(chart.locator("svg[role=img] path")).to_have_count(2)
    expect(page.get_by_role("row", name="≠ train.seed 3 4")).to_be_visible()
    expect(page.get_by_role("row", name="train.max_steps")).to_have_count(0)
    page.get_by_label("Only what differs").uncheck()
    expect(page.get_by_role("row", name="train.max_steps 200 200")).to_be_visible()
    page.get_by_role("link", name="← All runs").click()
    expect(page.get_by_role("link", name="2 · reward train")).to_be_visible()
    expect(page.get_by_label("Kind"), "the table as it was left").to_have_value("reward train")
    page.go_back()
    page.reload()
    expect(page.get_by_role("row", name="≠ train.seed 3 4")).to_be_visible()


def test_delete_is_confirmed_in_the_page(
    visit: Callable[..., Page], add: Callable[..., int], data: Path, database: Database
) -> None:
    out = data / "rewards" / "mine"
    out.mkdir(parents=True)
    (out / "weights").write_bytes(b"x" * 2_000_000)
    add(config={"out": str(out)})
    page = visit("/admin/runs#run=1")
    page.get_by_role("button", name="Delete …").click()
    sure = page.get_by_role("button", name="Delete for good")
    expect(sure).to_contain_text(re.compile(r"free \d\.\d\d kB"))
    page.get_by_role("button", name="Keep it").click()
    expect(sure).to_be_hidden()
    page.get_by_role("button", name="Delete …").click()
    page.get_by_label(re.compile("Also what it made")).check()
    expect(sure).to_contain_text("free 2.00 MB")
    sure.click()
    expect(page.get_by_text("No runs yet.")).to_be_visible()
    assert not out.exists()
    with database.read() as session:
        assert session.get(Run, 1) is None
    page.goto(f"{page.url.partition('#')[0]}#run=1")
    expect(page.get_by_text("There is no run 1.")).to_be_visible()


def test_html_in_a_run_is_text(visit: Callable[..., Page], add: Callable[..., int], data: Path) -> None:
    number = add(HIDDEN, config={HIDDEN: HIDDEN, "name": HIDDEN}, state=RunState.failed, error=HIDDEN)
    folder = run_folder(data, number)
    (folder / "log.txt").write_text(HIDDEN)
    with open(folder / "progress.jsonl", "a") as stream:
        stream.write(json.dumps({"done": 900, "total": 900, HIDDEN: 1.0, "stage": HIDDEN}) + "\n")
    add("reward train", config={"out": str(data / "rewards" / HIDDEN.replace("/", ""))})
    page = visit("/admin/runs")
    expect(page.get_by_role("row", name=HIDDEN).first).to_be_visible()
    page.get_by_role("link", name=HIDDEN).click()
    expect(page.locator(".fr-error").get_by_text(HIDDEN)).to_be_visible()
    expect(page.locator(".fr-log")).to_contain_text(HIDDEN)
    expect(page.locator(".fr-list").get_by_text(HIDDEN).first).to_be_visible()
    expect(page.locator(".fr-chart").last).to_be_visible()
    page.goto(f"{page.url.partition('#')[0]}#compare=1,2")
    expect(page.get_by_role("heading", name="Runs 1, 2")).to_be_visible()
    page.goto(f"{page.url.partition('/admin')[0]}/admin/models")
    expect(page.get_by_role("heading", name="Reward models")).to_be_visible()
    assert page.evaluate("window.hidden_ran") is None
    assert page.locator("#fr-models img").count() == 0


def test_samples_over_time_and_use_as(visit: Callable[..., Page], add: Callable[..., int], data: Path) -> None:
    out = data / "restorers" / "mine"
    (out / "grids").mkdir(parents=True)
    (out / "tuned").mkdir()
    for step in (0, 50, 100):
        PilImage.new("RGB", (64 + step, 32), (step, 0, 0)).save(out / "grids" / f"{step:06d}.png")
    fell = "the reward rose while psnr, grid fell"
    told = [
        *((step, "good", "keep", 1.0, "no judge fell") for step in (0, 1_000)),
        (2_000, "suspicious", "lower", 0.5, f"{fell}; once may be chance, so the learning rate alone is lowered"),
        (3_000, "hacking", "back", 0.25, f"{fell}, twice in a row: back to step 1,000, the last good check"),
        (4_000, "good", "keep", 0.25, HIDDEN),
    ]
    checks = [dict(zip(("step", "seen", "action", "factor", "why"), row, strict=True)) for row in told]
    (out / "checks.json").write_text(json.dumps({"checks": checks}))
    add("refl train", config={"out": str(out)}, result={"hacking": 3_000})
    page = visit("/admin/runs#run=1")
    table = page.get_by_role("group").filter(has=page.get_by_role("heading", name="Checks of the monitor"))
    for row in (
        "0 – 1,000 good kept × 1 no judge fell",
        f"2,000 suspicious learning rate lowered × 0.5 {fell}; once may be chance",
        f"3,000 hacking went back × 0.25 {fell}, twice in a row: back to step 1,000",
        f"4,000 good kept × 0.25 {HIDDEN}",
    ):
        expect(table.get_by_role("row", name=row)).to_be_visible()
    assert page.evaluate("window.hidden_ran") is None
    slider = page.get_by_role("slider", name="Step of the samples")
    expect(page.get_by_text("step 100")).to_be_visible()
    expect(page.get_by_alt_text("Samples of step 100")).to_have_js_property("naturalWidth", 164)
    slider.focus()
    page.keyboard.press("ArrowLeft")
    expect(page.get_by_alt_text("Samples of step 50")).to_have_js_property("naturalWidth", 114)
    expect(page.get_by_role("link", name="restore", exact=True)).to_have_attribute(
        "href", re.compile("/admin/train#kind=refl%20restore&method=.*tuned")
    )
    expect(page.get_by_role("link", name="Clone")).to_have_attribute("href", "/admin/train#from=1")


def test_lineage_leads_back_and_forward(visit: Callable[..., Page], add: Callable[..., int], data: Path) -> None:
    out = data / "rewards" / "mine"
    (out / "best").mkdir(parents=True)
    add("reward train", config={"out": str(out)})
    add("refl train", config={"reward": str(out / "best"), "out": str(data / "restorers" / "new")})
    page = visit("/admin/models")
    box = page.get_by_role("group", name="Lineage").get_by_role("link", name=re.compile("mine"))
    box.click()
    detail = page.locator(".fr-detail")
    expect(detail.get_by_role("heading", name="Made with it")).to_be_visible()
    expect(detail.get_by_role("link", name="start ReFL")).to_be_visible()
    detail.get_by_role("link", name="new").click()
    expect(detail.get_by_role("heading", name="Made from")).to_be_visible()
    expect(detail.get_by_role("link", name="mine")).to_be_visible()
    page.reload()
    expect(detail.get_by_role("link", name="mine")).to_be_visible()
    detail.get_by_role("link", name="Run 2: curves, checkpoints, use as …").click()
    expect(page.get_by_role("heading", name="Run 2 · refl train")).to_be_visible()
