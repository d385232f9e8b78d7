"""Send requests to Prolific: the token from the environment, waits that end, one line for what it refuses.

The token is read at each request and kept nowhere: it is in no attribute, row, log or message.
"""

from __future__ import annotations

import json
import os
import ssl
import time
from dataclasses import dataclass, field
from functools import cache
from typing import Any
from urllib.parse import urlsplit

import httpx

from annotate.prolific.calls import JSON, PAGE_SIZE, Call, list_submissions
from db.errors import UserError
from runs.listen import is_loopback

TOKEN_VARIABLE = "PROLIFIC_TOKEN"
ADDRESS_VARIABLE = "PROLIFIC_API"
ADDRESS = "https://api.prolific.com/api/v1/"
TIMEOUT = httpx.Timeout(30, connect=10)
"""Seconds for connecting and for each part of an answer."""
WAITS_SECONDS = (1.0, 4.0, 15.0)
"""Before each further attempt, where Prolific names no time."""
MAX_WAIT_SECONDS = 60.0
"""The longest that is waited because Prolific asks for it."""
RETRIED = (502, 503, 504)
MAX_PAGES = 1000
SHOWN_CHARACTERS = 300


class UnansweredError(UserError):
    """A request went out and no answer came: Prolific may have done it or not."""


@dataclass(frozen=True)
class Answer:
    """What came back."""

    body: Any
    headers: httpx.Headers = field(default_factory=httpx.Headers)

    def text(self, name: str) -> str:
        """A text of the answer.

        Raises:
            UserError: it is not there.
        """
        found = self.body.get(name) if isinstance(self.body, dict) else None
        if not isinstance(found, str) or not found:
            raise UserError(f"Prolific's answer lacks {name!r}; its API may have changed.")
        return found


def send(call: Call) -> Answer:
    """Send one request.

    A refusal for too many requests is waited out, since nothing was done then. Where no answer comes, only what is
    repeatable is sent again.

    Raises:
        UserError: there is no token, Prolific cannot be reached or refuses; the message says what it said.
        UnansweredError: it went out, is not repeatable, and no answer came.
    """
    address, token = read_address(), read_token()
    for wait in (*WAITS_SECONDS, None):
        try:
            response = _send_once(call, address, token)
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:  # it never went out
            if wait is None:
                raise UserError(f"Prolific cannot be reached at {address} ({_say(error, token)}).") from None
        except httpx.HTTPError as error:
            if not call.repeatable or wait is None:
                raise _unanswered(call, _say(error, token)) from None
        else:
            if response.status_code == httpx.codes.TOO_MANY_REQUESTS:
                wait = _read_wait(response, wait)
            elif response.is_server_error and not call.repeatable:
                raise _unanswered(call, f"status {response.status_code}")
            elif response.status_code not in RETRIED or wait is None:
                return _read_answer(call, response, token)
        time.sleep(wait or 0)
    raise AssertionError("unreachable")


def read_all_submissions(study: str) -> list[JSON]:
    """Every submission of a study, each once though the pages may shift while they are read.

    What an answer names as the next address tells that there is more, and is not followed, for the token's sake.

    Raises:
        UserError: as `send`, or the answer is no list of submissions.
    """
    found: dict[str, JSON] = {}
    for page in range(1, MAX_PAGES + 1):
        body = send(list_submissions(study, page)).body
        results = body.get("results") if isinstance(body, dict) else None
        if not isinstance(results, list) or not all(isinstance(one, dict) and "id" in one for one in results):
            raise UserError("Prolific's answer is no list of submissions; its API may have changed.")
        found.update((str(one["id"]), one) for one in results)
        links = body.get("_links")
        following = links.get("next") if isinstance(links, dict) else {"href": len(results) == PAGE_SIZE}
        if not results or not (following or {}).get("href"):
            break
    return list(found.values())


def read_token() -> str:
    """The token.

    Raises:
        UserError: it is not in the environment, or can be in no header.
    """
    token = os.environ.get(TOKEN_VARIABLE, "").strip()
    if not token:
        raise UserError(
            f"Set {TOKEN_VARIABLE} in the environment to a token of Prolific (Settings, API tokens). It is stored "
            "nowhere."
        )
    if not (token.isascii() and token.isprintable()) or " " in token:
        raise UserError(f"{TOKEN_VARIABLE} holds signs that no token has; copy it again.")
    return token


def read_address() -> str:
    """Where the API is, with a slash at the end: Prolific's, or what the environment names for a stand-in.

    Raises:
        UserError: it is neither https nor this machine: the token would be read on the way.
    """
    address = os.environ.get(ADDRESS_VARIABLE, "").strip() or ADDRESS
    parts = urlsplit(address)
    if not parts.hostname or not (parts.scheme == "https" or (parts.scheme == "http" and is_loopback(parts.hostname))):
        raise UserError(f"{ADDRESS_VARIABLE} is {address!r}; an https:// address is meant, since the token goes there.")
    if parts.username or parts.password or parts.query:
        raise UserError(f"{ADDRESS_VARIABLE} may hold a host and a path, no password and no query.")
    return address.rstrip("/") + "/"


@cache
def _trusted() -> ssl.SSLContext:
    """The certificates that are trusted; reading them takes longer than a request."""
    return httpx.create_ssl_context()


def _send_once(call: Call, address: str, token: str) -> httpx.Response:
    headers = {"Authorization": f"Token {token}", "Accept": "application/json"}
    # Redirects are not followed: the token would go to whatever address an answer names.
    # And each request has a connection of its own: on a kept one, which the other side may just close, a payment could
    # get lost without our knowing whether it arrived.
    with httpx.Client(timeout=TIMEOUT, follow_redirects=False, headers=headers, verify=_trusted()) as client:
        return client.request(call.method, address + call.path, json=call.body)


def _read_wait(response: httpx.Response, usual: float | None) -> float:
    """Seconds to wait before the next attempt after too many requests.

    Raises:
        UserError: this was the last attempt, or Prolific wants a longer wait than a command shall take.
    """
    named = response.headers.get("Retry-After", "")
    seconds = float(named) if named.isdecimal() else usual
    if usual is None or seconds is None or seconds > MAX_WAIT_SECONDS:
        later = f"in {named} seconds" if named.isdecimal() else "later"
        raise UserError(f"Prolific takes no more requests just now; run the same command again {later}.")
    return seconds


def _read_answer(call: Call, response: httpx.Response, token: str) -> Answer:
    """The answer of a request that was taken.

    Raises:
        UserError: Prolific refuses, or answers with something else than JSON.
    """
    if not response.is_success:
        said = _shorten(describe_refusal(response), token)
        raise UserError(f"Prolific refuses {call.method} {call.path} with {response.status_code}: {said}")
    if not response.content.strip():
        return Answer({}, response.headers)
    try:
        return Answer(response.json(), response.headers)
    except (json.JSONDecodeError, UnicodeDecodeError):
        if not call.repeatable:
            return Answer({}, response.headers)  # it was done; its own words matter less
        raise UserError(f"{call.method} {call.path} was answered with something else than JSON.") from None


def describe_refusal(response: httpx.Response) -> str:
    """What Prolific said: its `error.title` and `error.detail`, which may be a text, a list or one by field."""
    try:
        body = response.json()
    except (json.JSONDecodeError, UnicodeDecodeError):
        return response.text or response.reason_phrase
    error = body.get("error", body) if isinstance(body, dict) else body
    if not isinstance(error, dict):
        return _flatten(error)
    known = [_flatten(error[name]) for name in ("title", "detail") if error.get(name)]
    return ": ".join(known) or _flatten(error)


def _flatten(said: Any) -> str:
    if isinstance(said, dict):
        return "; ".join(f"{name}: {_flatten(value)}" for name, value in said.items())
    return ", ".join(map(_flatten, said)) if isinstance(said, list) else str(said)


def _shorten(said: str, token: str) -> str:
    """One printable line without the token, should it ever be repeated to us."""
    line = " ".join(said.replace(token, "…").split())
    line = "".join(character for character in line if character.isprintable())
    return line if len(line) <= SHOWN_CHARACTERS else f"{line[:SHOWN_CHARACTERS]} …"


def _say(error: Exception, token: str) -> str:
    return _shorten(str(error) or type(error).__name__, token)


def _unanswered(call: Call, why: str) -> UnansweredError:
    return UnansweredError(
        f"Prolific was sent {call.method} {call.path} and did not answer ({why}): it may have been done or not. Look "
        "before sending it again: python -m annotate prolific status NAME."
    )
