"""The People page: who judges, how far they are, roles, passwords, personal links."""

from __future__ import annotations

from collections.abc import Callable
from html import escape
from typing import TypeVar

import gradio as gr
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from annotate.people import add_person, disable_person, find_doubles, get_person, make_link_token, set_password
from db.errors import UserError
from db.models import Judgment, Person, Role
from ui.access import public_address
from ui.context import Context

Result = TypeVar("Result")
COLUMNS = ("name", "role", "judgments", "last judgment (UTC)", "signs in with", "state")


def people_html(context: Context) -> str:
    """The table of all people: COLUMNS."""
    made = (
        select(Judgment.person_id, func.count().label("judgments"), func.max(Judgment.created_at).label("last"))
        .where(Judgment.superseded_at.is_(None))
        .group_by(Judgment.person_id)
        .subquery()
    )
    with context.database.read() as session:
        people = session.execute(
            select(Person, made.c.judgments, made.c.last)
            .outerjoin(made, made.c.person_id == Person.id)
            .order_by(Person.name)
        ).all()
        doubles = find_doubles(session)
    rows = []
    for person, judgments, last in people:
        ways = [way for way, has in (("password", person.password_hash), ("link", person.link_hash)) if has]
        cells = [
            person.name + (" (simulated)" if person.simulated else ""),
            person.role.value,
            f"{judgments or 0:,}",
            f"{last:%Y-%m-%d %H:%M}" if last else "",
            (" and ".join(ways) or "nothing yet") if context.auth else "name",
            "disabled" if person.disabled_at else "active",
        ]
        kinds = ("", "", "n", "fr-time", "", "")
        rows.append(
            "".join(
                f'<td dir="auto" class="{kind}">{escape(cell)}</td>' for kind, cell in zip(kinds, cells, strict=True)
            )
        )
    head = "".join(f'<th scope="col"{" class=n" if column == "judgments" else ""}>{column}</th>' for column in COLUMNS)
    body = "".join(f"<tr>{row}</tr>" for row in rows) or '<tr><td colspan="6">Nobody yet.</td></tr>'
    notes = "".join(f'<p class="fr-note">{escape(line)}</p>' for line in doubles)
    table = f'<table class="fr"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'
    return f'<div style="overflow-x:auto" tabindex="0" role="region" aria-label="People">{table}</div>{notes}'


def build(context: Context) -> None:
    """The page, inside the caller's Blocks or route."""
    gr.Markdown("## People")
    if not context.auth:
        gr.Markdown(
            "This server runs without `--auth`: whoever sits at this machine chooses a name, and a new name becomes an "
            "admin. Start it with `--auth` to let annotators in from elsewhere, by password or personal link.",
            elem_classes="fr-note",
        )
    table = gr.HTML()
    gr.Markdown("### Add or change a person")
    with gr.Row():
        name = gr.Textbox(label="Name", max_length=64)
        role = gr.Radio([role.value for role in Role], value=Role.annotator.value, label="Role of a new person")
        password = gr.Textbox(label="Password (8 characters or more; may stay empty)", type="password")
    with gr.Row():
        add = gr.Button("Add person", variant="primary")
        link = gr.Button("Make a new personal link")
        change = gr.Button("Set password")
        disable = gr.Button("Disable", variant="stop")
    link_shown = gr.Textbox(label="Personal link, shown once", visible=False, interactive=False, buttons=["copy"])

    def on_add(name: str, role: str, password: str) -> tuple[str, str]:
        _act(context, lambda session: add_person(session, name, Role(role), password or None))
        return people_html(context), ""

    def on_link(name: str, request: gr.Request) -> tuple[str, object]:
        token = _act(context, lambda session: make_link_token(get_person(session, name)))
        assert request.request is not None
        address = f"{public_address(request.request)}{context.root_path}/enter/{token}"
        return people_html(context), gr.Textbox(value=address, visible=True)

    def on_password(name: str, password: str) -> tuple[str, str]:
        _act(context, lambda session: set_password(get_person(session, name), password))
        return people_html(context), ""

    def on_disable(name: str) -> str:
        _act(context, lambda session: disable_person(session, name))
        return people_html(context)

    gr.on(None, lambda: people_html(context), None, [table], api_visibility="private", show_progress="hidden")
    add.click(on_add, [name, role, password], [table, password], api_visibility="private")
    link.click(on_link, [name], [table, link_shown], api_visibility="private")
    change.click(on_password, [name, password], [table, password], api_visibility="private")
    disable.click(on_disable, [name], [table], api_visibility="private")


def _act(context: Context, action: Callable[[Session], Result]) -> Result:
    """One change in one transaction; a UserError becomes the page's message."""
    try:
        with context.database.write() as session:
            return action(session)
    except UserError as error:
        raise gr.Error(str(error)) from error
