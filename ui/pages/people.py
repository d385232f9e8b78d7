"""Build the People page: progress of each person, roles, passwords, personal links."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import gradio as gr
from sqlalchemy.orm import Session

from annotate.judging.discard import (
    describe_discard,
    describe_restore,
    disable_and_describe,
    discard_answers,
    list_people,
    restore_answers,
)
from annotate.judging.people import (
    add_person,
    describe_ways,
    enable_person,
    end_sessions,
    find_doubles,
    get_person,
    make_link_token,
    read_lifetime,
    set_password,
)
from db.errors import UserError
from db.models import Role
from ui.address import public_address
from ui.context import Context
from ui.html import page_error, render

Result = TypeVar("Result")


def people_html(context: Context) -> str:
    """The table of all people."""
    with context.database.read() as session:
        people = [(*row, " and ".join(describe_ways(row[0])) or "nothing yet") for row in list_people(session)]
        doubles = find_doubles(session)
    return render("people/people.html", people=people, doubles=doubles, sign_in=context.auth)


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
    with gr.Row():
        expires = gr.Textbox(label="A new link expires after", placeholder="30m, 12h, 7d, 2w; never where empty")
        once = gr.Checkbox(label="A new link lets in once only")
    gr.Markdown("A new link or password signs the person out everywhere.", elem_classes="fr-note")
    with gr.Row():
        sign_out = gr.Button("Sign out everywhere")
        disable = gr.Button("Disable", variant="stop")
        enable = gr.Button("Enable")
        discard = gr.Button("Discard answers", variant="stop")
        restore = gr.Button("Restore answers")
    done = gr.HTML()
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

    def on_sign_out(name: str) -> str:
        _act(context, lambda session: end_sessions(get_person(session, name)))
        return _note(f"{name} is signed out everywhere.")

    def on_disable(name: str) -> tuple[str, str]:
        return people_html_and(
            context, _act(context, lambda session: disable_and_describe(session, name, "“Discard answers”"))
        )

    def on_enable(name: str) -> tuple[str, str]:
        return people_html_and(context, _act(context, lambda session: f"{enable_person(session, name).name} enabled."))

    def on_discard(name: str) -> tuple[str, str]:
        told = _act(context, lambda session: describe_discard(name, discard_answers(session, name)))
        return people_html_and(context, told)

    def on_restore(name: str) -> tuple[str, str]:
        told = _act(context, lambda session: describe_restore(name, restore_answers(session, name)))
        return people_html_and(context, told)

    gr.on(None, lambda: people_html(context), None, [table], api_visibility="private", show_progress="hidden")
    add.click(on_add, [name, role, password], [table, password], api_visibility="private")
    link.click(on_link, [name, expires, once], [table, link_shown], api_visibility="private")
    change.click(on_password, [name, password], [table, password], api_visibility="private")
    sign_out.click(on_sign_out, [name], [done], api_visibility="private")
    for button, act in ((disable, on_disable), (enable, on_enable), (discard, on_discard), (restore, on_restore)):
        button.click(act, [name], [table, done], api_visibility="private")


def people_html_and(context: Context, told: str) -> tuple[str, str]:
    """The table, and what was done."""
    return people_html(context), _note(told)


def _note(told: str) -> str:
    return render("note.html", text=told)


def _act(context: Context, action: Callable[[Session], Result]) -> Result:
    """One change in one transaction; a UserError becomes the page's message."""
    try:
        with context.database.write() as session:
            return action(session)
    except UserError as error:
        raise page_error(error) from error
