"""Show the machine's surest and least sure labels, and where people differ; correct one with a click.

The list that is on the screen stays as it is while it is worked on: a corrected pair says so and leaves when the page
is turned, so that a second click never meets another pair than the one it was meant for.
"""

from __future__ import annotations

import random
import uuid
from html import escape
from typing import Any

import gradio as gr
from sqlalchemy.orm import Session

from annotate.judging.browse import (
    Disagreement,
    PairDetails,
    correct_label,
    find_pairs,
    load_answers,
    load_pairs,
    read_disagreements,
    sure_pairs,
)
from annotate.judging.people import get_person
from db.errors import UserError
from db.models import Choice, Side
from runs.store import run_folder
from ui.autolabel.report import NO_FIT, is_simulated, read_summary
from ui.context import Context
from ui.html import render

PAGE_PAIRS = 6
SUREST, LEAST_SURE = "Surest first", "Least sure first"
BROWSE_INTRO = """What the SVM labelled and nobody judged. Click an image to see it in full. Where the SVM is wrong, say
which image is better: that is a judgment of yours, and from then on the pair counts as judged. A misclick is put right
in the **History** of the Label page."""
DISAGREEMENT_INTRO = """Judged pairs where the SVM prefers the other image, the surest first: where it is sure, either
it has learned something wrong, or the person slipped. Its answers here are of models that saw no pair of that photo."""
RESERVED = "kept for measuring accuracy: judged on the Label page only"
GONE = "The judgments were taken back since."
ON_CLICK = """
let since = performance.now();
watch('value', () => { since = performance.now(); });
element.addEventListener('click', (event) => {
  const button = event.target.closest('button[data-choice]');
  if (!button) return;
  const pair = button.closest('[data-pair]');
  pair.querySelectorAll('button').forEach((each) => { each.disabled = true; });
  trigger('click', {...pair.dataset, choice: button.dataset.choice, seconds: (performance.now() - since) / 1000});
});
"""
QUIET: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
Shown = list[tuple[int, str]]
"""The pairs on the screen: (pair id, which candidate stands left)."""
Notes = dict[Side, tuple[str, str]]
"""(class of the frame, text) of an image that somebody chose."""


def build_browse(context: Context, labelled: gr.State) -> None:
    """The labelled pairs, paged; `labelled` changes when labels do, and first when the page is opened."""
    gr.Markdown(f"### Labelled pairs\n{BROWSE_INTRO}", elem_id="labelled-pairs")
    order = gr.Radio([SUREST, LEAST_SURE], value=SUREST, show_label=False, label="Order")
    pairs = gr.HTML(js_on_load=ON_CLICK)
    page, shown = gr.State(0), gr.State([])
    earlier, place, later = _build_pager()
    view = [pairs, page, shown, earlier, place, later]

    def turn(order: str, page: int) -> list[Any]:
        """The pairs of a page as they are now, their sides drawn anew."""
        with context.database.read() as session:
            ids = sure_pairs(
                session, surest_first=order == SUREST, limit=PAGE_PAIRS + 1, offset=max(0, page) * PAGE_PAIRS
            )
            drawn = [(pair_id, random.choice([Side.a, Side.b]).value) for pair_id in ids[:PAGE_PAIRS]]
            html = browse_html(context, session, drawn)
        return [html, page, drawn, *_pager(page, len(drawn), more=len(ids) > PAGE_PAIRS)]

    def on_correct(shown: Shown, request: gr.Request, event: gr.EventData) -> str:
        try:
            correct(context, str(request.username), event._data)
        except UserError as error:
            gr.Warning(escape(str(error), quote=False))
        with context.database.read() as session:
            return browse_html(context, session, shown)

    labelled.change(lambda order: turn(order, 0), [order], view, **QUIET)
    order.change(lambda order: turn(order, 0), [order], view, **QUIET)
    earlier.click(lambda order, page: turn(order, page - 1), [order, page], view, **QUIET)
    later.click(lambda order, page: turn(order, page + 1), [order, page], view, **QUIET)
    pairs.click(on_correct, [shown], [pairs], trigger_mode="multiple", **QUIET)


def build_disagreements(context: Context, fit: gr.Dropdown) -> None:
    """Build the list of pairs where the SVM of the chosen fit and people prefer different images, paged."""
    gr.Markdown(f"### Disagreements\n{DISAGREEMENT_INTRO}", elem_id="disagreements")
    pairs = gr.HTML(NO_FIT)
    page = gr.State(0)
    earlier, place, later = _build_pager()
    view = [pairs, page, earlier, place, later]

    def turn(fit: int | None, page: int) -> list[Any]:
        with context.database.read() as session:
            html, shown, total = disagreements_html(context, session, fit, page)
        return [html, page, *_pager(page, shown, more=(page + 1) * PAGE_PAIRS < total)]

    fit.change(lambda fit: turn(fit, 0), [fit], view, **QUIET)
    earlier.click(lambda fit, page: turn(fit, page - 1), [fit, page], view, **QUIET)
    later.click(lambda fit, page: turn(fit, page + 1), [fit, page], view, **QUIET)


def _build_pager() -> tuple[gr.Button, gr.HTML, gr.Button]:
    with gr.Row(equal_height=True):
        earlier = gr.Button("Previous", size="sm", visible=False)
        place = gr.HTML()
        later = gr.Button("Next", size="sm", visible=False)
    return earlier, place, later


def _pager(page: int, shown: int, *, more: bool) -> list[Any]:
    first = page * PAGE_PAIRS
    words = f'<p class="fr-note fr-place">Pairs {first + 1:,} to {first + shown:,}</p>' if shown else ""
    paged = page > 0 or more
    return [
        gr.Button(visible=paged, interactive=page > 0),
        words if paged else "",
        gr.Button(visible=paged, interactive=more),
    ]


def correct(context: Context, name: str, clicked: dict[str, Any]) -> None:
    """Record a click on a pair: data of the pair as it was drawn (pair, left, uuid), choice, and seconds.

    Raises:
        UserError: what was clicked is not an answer to a pair, or `annotate.judging.browse.correct_label` refuses it.
    """
    try:
        pair_id, left, seconds = int(clicked["pair"]), Side(clicked["left"]), float(clicked["seconds"])
        choice, number = clicked["choice"], str(clicked["uuid"])
        if choice not in ("left", "right", "tie"):
            raise ValueError(f"{choice!r} is not a choice")
    except (KeyError, ValueError) as error:
        raise UserError(f"This click is not an answer to a pair ({error}); reload the page.") from error
    with context.database.write() as session:
        person = get_person(session, name)
        correct_label(session, person.id, pair_id, uuid=number, shown_left=left, choice=choice, seconds=seconds)


def browse_html(context: Context, session: Session, shown: Shown) -> str:
    """The cards of these pairs: images, methods, the machine's choice, and buttons or what a person answered."""
    details = {pair.pair_id: pair for pair in load_pairs(session, [pair_id for pair_id, _ in shown])}
    answers = load_answers(session, list(details))
    cards = [
        _card(details[pair_id], Side(left), _notes(details[pair_id]), _answered(details[pair_id], answers.get(pair_id)))
        for pair_id, left in shown
        if pair_id in details
    ]
    if not cards:
        return '<p class="fr-note">No pair carries a machine label. Train, then label the pairs.</p>'
    makers = {pair.made_by for pair in details.values() if pair.made_by}
    simulated = any(is_simulated(context.data, maker) for maker in makers)
    return render("autolabel/pairs.html", cards=cards, simulated=simulated)


def _notes(pair: PairDetails) -> Notes:
    """The machine's choice, written below the image that it prefers."""
    if pair.p_a is None:
        return {}
    preferred = Side.a if pair.p_a > 0.5 else Side.b
    return {preferred: ("fr-machine", f"SVM’s choice, {max(pair.p_a, 1 - pair.p_a):.1%} sure")}


def _answered(pair: PairDetails, answers: list[tuple[str, bool, Choice]] | None) -> str | None:
    """Return why a pair takes no correction now, None where it does."""
    if answers:
        return "Judged: " + "; ".join(
            f"{name}{' (simulated)' if simulated else ''} says {_name_choice(pair, choice)}"
            for name, simulated, choice in answers
        )
    return f"Split {pair.split.value}, {RESERVED}" if pair.reserved else None


def _name_choice(pair: PairDetails, choice: Choice) -> str:
    return pair.methods[Side(choice.value)] if choice in (Choice.a, Choice.b) else choice.value


def _card(pair: PairDetails, left: Side, notes: Notes, closed: str | None) -> dict[str, Any]:
    """What the template asks of one pair: its images and buttons, or the line that stands in their place."""
    images = [(pair.lq, f"photo {pair.source}")] if pair.lq else []
    sides = (left, Side.b if left is Side.a else Side.a)
    better = "right" if (pair.p_a is not None and pair.p_a > 0.5) == (left is Side.a) else "left"
    return {
        "pair_id": pair.pair_id,
        "left": left.value,
        "uuid": uuid.uuid4(),
        "images": images + [(pair.images[side], pair.methods[side], *notes.get(side, ())) for side in sides],
        "better": better if closed is None and pair.p_a is not None else None,
        "closed": closed,
    }


def disagreements_html(context: Context, session: Session, fit: int | None, page: int) -> tuple[str, int, int]:
    """(the cards of a page, pairs on it, disagreements in all) of a fit."""
    summary = read_summary(context.data, fit)
    file = run_folder(context.data, fit or 0) / "judged.csv"
    if summary is None or not file.exists():
        return NO_FIT, 0, 0
    found, decided = read_disagreements(file)
    threshold = summary["target"]["threshold"]
    sure = sum(1 for row in found if threshold is not None and row.confidence >= threshold)
    some = found[page * PAGE_PAIRS : (page + 1) * PAGE_PAIRS]
    ids = find_pairs(session, [row.pair for row in some])
    by_id = {ids[row.pair]: row for row in some if row.pair in ids}
    answers = load_answers(session, list(by_id))
    cards = [
        _card(pair, Side.a, _both(by_id[pair.pair_id]), _answered(pair, answers.get(pair.pair_id)) or GONE)
        for pair in load_pairs(session, list(by_id))
    ]
    counts = {"found": len(found), "decided": decided, "sure": sure, "threshold": threshold}
    html = render("autolabel/disagreements.html", cards=cards, simulated=summary["simulated"], **counts)
    return html, len(cards), len(found)


def _both(row: Disagreement) -> Notes:
    """Write the notes below the two images: the machine's choice and people's."""
    machine, human = (Side.a, Side.b) if row.machine_p_a > 0.5 else (Side.b, Side.a)
    share = max(row.human_p_a, 1 - row.human_p_a)
    return {
        machine: ("fr-machine", f"SVM’s choice, {row.confidence:.1%} sure"),
        human: ("fr-people", "people’s choice" if share == 1 else f"choice of {share:.0%} of the people"),
    }
