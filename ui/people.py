"""The People page: who judges, how far they are, roles, passwords, personal links."""

from __future__ import annotations

from collections.abc import Callable
from html import escape
from typing import TypeVar

import gradio as gr
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from annotate.people import (
    add_person,
    describe_ways,
    disable_person,
    end_sessions,
    find_doubles,
    get_person,
    make_link_token,
    read_lifetime,
    set_password,
)
from db.errors import UserError
from db.models import Judgment, Person, Role
from ui.address import public_address
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
        ways = describe_ways(person)
        cells = [
            person.name + (" (simulated)" if person.simulated else ""),
            person.role.value,
            f"{judgments or 0:,}",
            f"{last:%Y-%m-%d %H:%M}" if last else "",
            (" and ".join(ways) or "nothing yet") if context.auth else "name",
            "disabled" if person.disabled_at else "active",
        ]
        rows.append("".join(f'<td dir="auto">{escape(cell)}</td>' for cell in cells))
    head = "".join(f"<th>{column}</th>" for column in COLUMNS)
    body = "".join(f"<tr>{row}</tr>" for row in rows) or '<tr><td colspan="6">Nobody yet.</td></tr>'
    notes = "".join(f'<p class="fr-note">{escape(line)}</p>' for line in doubles)
    return f'<table class="fr"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>{notes}'


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
        sign_out = gr.Button("Sign out everywhere")
        disable = gr.Button("Disable", variant="stop")
    with gr.Row():
        expires = gr.Textbox(label="A new link expires after", placeholder="30m, 12h, 7d, 2w; never where empty")
        once = gr.Checkbox(label="A new link lets in once only")
    gr.Markdown("A new link or password signs the person out everywhere.", elem_classes="fr-note")
    link_shown = gr.Textbox(label="Personal link, shown once", visible=False, interactive=False, buttons=["copy"])

    def on_add(name: str, role: str, password: str) -> tuple[str, str]:
        _act(context, lambda session: add_person(session, name, Role(role), password or None))
        return people_html(context), ""

    def on_link(name: str, expires: str, once: bool, request: gr.Request) -> tuple[str, object]:
        token = _act(
            context, lambda session: make_link_token(get_person(session, name), read_lifetime(expires), once=once)
        )
        assert request.request is not None
        address = f"{public_address(request.request)}{context.root_path}/enter/{token}"
        return people_html(context), gr.Textbox(value=address, visible=True)

    def on_password(name: str, password: str) -> tuple[str, str]:
        _act(context, lambda session: set_password(get_person(session, name), password))
        return people_html(context), ""

    def on_sign_out(name: str) -> None:
        _act(context, lambda session: end_sessions(get_person(session, name)))
        gr.Info(f"{name} is signed out everywhere.")

    def on_disable(name: str) -> str:
        _act(context, lambda session: disable_person(session, name))
        return people_html(context)

    gr.on(None, lambda: people_html(context), None, [table], api_visibility="private", show_progress="hidden")
    add.click(on_add, [name, role, password], [table, password], api_visibility="private")
    link.click(on_link, [name, expires, once], [table, link_shown], api_visibility="private")
    change.click(on_password, [name, password], [table, password], api_visibility="private")
    sign_out.click(on_sign_out, [name], None, api_visibility="private")
    disable.click(on_disable, [name], [table], api_visibility="private")


def _act(context: Context, action: Callable[[Session], Result]) -> Result:
    """One change in one transaction; a UserError becomes the page's message."""
    try:
        with context.database.write() as session:
            return action(session)
    except UserError as error:
        raise gr.Error(str(error)) from error
