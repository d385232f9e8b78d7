"""A stand-in of Prolific's API on loopback, made from its documented answers; it keeps state and signs webhooks.

Source: docs.prolific.com/api-reference. Like the real one it pays a bulk payment each time it is asked to.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from decimal import Decimal
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import count
from typing import Any
from urllib.parse import parse_qs, urlsplit

JSON = dict[str, Any]
NEEDED = (
    *("name", "description", "external_study_url", "prolific_id_option", "completion_codes"),
    *("total_available_places", "estimated_completion_time", "reward"),
)
MOVES = {
    ("UNPUBLISHED", "PUBLISH"): "ACTIVE",
    ("ACTIVE", "PAUSE"): "PAUSED",
    ("PAUSED", "START"): "ACTIVE",
    ("ACTIVE", "STOP"): "AWAITING REVIEW",
    ("PAUSED", "STOP"): "AWAITING REVIEW",
}
EVENT_TYPES = ("study.status.change", "submission.status.change", "study.progress.change")


class Refused(Exception):
    """A request that is answered with an error, as Prolific words them."""

    def __init__(self, status: int, title: str, detail: Any) -> None:
        super().__init__(title)
        self.status = status
        self.body = {
            "error": {
                "status": status,
                "error_code": 140000 + status,
                "title": title,
                "detail": detail,
                "additional_information": "/api-reference/",
                "traceback": "0123",
                "interactive": False,
            }
        }


@dataclass
class Webhook:
    """A request that Prolific sends."""

    headers: dict[str, str]
    body: bytes


@dataclass
class Fault:
    """What happens to the next request instead of its answer, or to its answer."""

    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    done: bool = False
    """Whether the request is carried out nonetheless."""


class ProlificStandIn:
    """Studies, submissions and payments in memory."""

    def __init__(self) -> None:
        self.token = "T0k3n-that-must-stay-nowhere"
        self.secret = "first-secret"
        self.studies: dict[str, JSON] = {}
        self.submissions: dict[str, JSON] = {}
        self.bulks: dict[str, JSON] = {}
        self.subscriptions: dict[str, JSON] = {}
        self.requests: list[tuple[str, str, Any]] = []
        self.faults: list[Fault] = []
        self.webhooks: list[Webhook] = []
        """Not delivered yet; deliver them with `take_webhooks`."""
        self.page_size_limit = 100
        self.address = ""
        self._numbers = count(1)
        self._lock = threading.RLock()

    # What participants do.

    def join(self, study: str, person: str) -> JSON:
        """Let somebody take a place; the submission is active, and `address` is where they go."""
        with self._lock:
            number = self._id()
            self.submissions[number] = {
                "id": number,
                "study_id": study,
                "participant_id": person,
                "status": "ACTIVE",
                "bonus_payments": [],
                "started_at": "2026-11-29T09:00:00.000Z",
                "completed_at": None,
                "study_code": None,
                "return_requested": None,
                "reward_paid": 0,
            }
            address: str = self.studies[study]["external_study_url"]
            ids = {"PROLIFIC_PID": person, "STUDY_ID": study, "SESSION_ID": number}
            for name, value in ids.items():
                address = address.replace(f"{{{{%{name}%}}}}", value)
            self._tell(number)
            return {**self.submissions[number], "address": address}

    def submit(self, submission: str, code: str) -> None:
        """Come back with a code, upon which its action is taken; an unknown code awaits review."""
        with self._lock:
            one = self.submissions[submission]
            study = self.studies[one["study_id"]]
            one |= {"study_code": code, "completed_at": "2026-11-29T09:12:30.000Z", "status": "AWAITING REVIEW"}
            for known in study["completion_codes"]:
                for action in known["actions"] if known["code"] == code else ():
                    if action["action"] == "AUTOMATICALLY_APPROVE":
                        self._approve(one)
                    elif action["action"] == "FIXED_SCREEN_OUT_PAYMENT":
                        one |= {"status": "SCREENED OUT", "reward_paid": action["fixed_screen_out_reward"]}
                    elif action["action"] == "REQUEST_RETURN":
                        one["return_requested"] = "2026-11-29T09:12:30.000Z"
            self._tell(submission)

    def end(self, submission: str, status: str) -> None:
        """Return a submission, or let it time out."""
        with self._lock:
            self.submissions[submission]["status"] = status
            self._tell(submission)

    def take_webhooks(self) -> list[Webhook]:
        """Webhooks since the last call, in their order."""
        with self._lock:
            taken, self.webhooks = self.webhooks, []
            return taken

    def sign(self, told: JSON, event: str = "", sent: float | None = None) -> Webhook:
        """A webhook with this body, signed now or at another Unix time."""
        body, at = json.dumps(told).encode(), str(int(time.time() if sent is None else sent))
        digest = hmac.new(self.secret.encode(), at.encode() + body, hashlib.sha256).digest()
        headers = {
            "Content-Type": "application/json",
            "X-Prolific-Request-Signature": base64.b64encode(digest).decode(),
            "X-Prolific-Request-Timestamp": at,
            "X-Event-ID": event or self._id(),
        }
        return Webhook(headers, body)

    def paid_cents(self) -> int:
        """Everything that was paid to participants, without fees."""
        return sum(one["reward_paid"] + sum(one["bonus_payments"]) for one in self.submissions.values())

    def sent(self, method: str = "POST") -> list[tuple[str, Any]]:
        """Path and body of the requests with this method."""
        return [(path, body) for used, path, body in self.requests if used == method]

    # What the API does.

    def answer(self, method: str, path: str, query: dict[str, list[str]], body: Any) -> tuple[int, Any, dict[str, str]]:
        """(status, body, headers) of a request; raises Refused."""
        with self._lock:
            for pattern, used, act in ROUTES:
                if used == method and (found := re.fullmatch(pattern, path)):
                    return act(self, *found.groups(), query=query, body=body)  # type: ignore[no-any-return,operator]
        raise Refused(404, "Not found", f"no {method} {path}")

    def create_study(self, *, body: Any, **_: Any) -> tuple[int, Any, dict[str, str]]:
        missing = [name for name in NEEDED if not body.get(name)]
        if missing:
            raise Refused(400, "Bad request", {name: ["This field is required."] for name in missing})
        if "eligibility_requirements" in body:
            raise Refused(400, "Bad request", "eligibility_requirements is deprecated")
        actions = [action for code in body["completion_codes"] for action in code["actions"]]
        codes = [code["code"] for code in body["completion_codes"]]
        screening = [action for action in actions if action["action"] == "FIXED_SCREEN_OUT_PAYMENT"]
        if len(set(codes)) < len(codes) or len(screening) > 1:
            raise Refused(400, "Bad request", {"completion_codes": ["must be unique, with one screen-out"]})
        if screening and screening[0]["fixed_screen_out_reward"] >= body["reward"]:
            raise Refused(400, "Bad request", "fixed_screen_out_reward must be less than the reward")
        number = self._id()
        self.studies[number] = {**body, "id": number, "status": "UNPUBLISHED", "places_taken": 0}
        return 201, self.studies[number], {}

    def read_study(self, number: str, **_: Any) -> tuple[int, Any, dict[str, str]]:
        taken = [one for one in self.submissions.values() if one["study_id"] == number]
        return 200, {**self._study(number), "number_of_submissions": len(taken)}, {}

    def move_study(self, number: str, *, body: Any, **_: Any) -> tuple[int, Any, dict[str, str]]:
        study = self._study(number)
        status = MOVES.get((study["status"], body["action"]))
        if status is None:
            raise Refused(400, "Invalid action", f"cannot {body['action']} a study that is {study['status']}")
        study["status"] = status
        told = {"resource_id": number, "event_type": "study.status.change", "metadata": {}, "status": status}
        self._send(told)
        return 200, study, {}

    def list_submissions(self, *, query: dict[str, list[str]], **_: Any) -> tuple[int, Any, dict[str, str]]:
        self._study(query["study"][0])
        found = [one for one in self.submissions.values() if one["study_id"] == query["study"][0]]
        size = min(int(query.get("page_size", ["20"])[0]), self.page_size_limit)
        start = (int(query.get("page", ["1"])[0]) - 1) * size
        more = start + size < len(found)
        links = {"next": {"href": f"{self.address}submissions/?page={start // size + 2}" if more else None}}
        return 200, {"results": found[start : start + size], "_links": links, "meta": {"count": len(found)}}, {}

    def read_submission(self, number: str, **_: Any) -> tuple[int, Any, dict[str, str]]:
        return 200, self._submission(number), {}

    def move_submission(self, number: str, *, body: Any, **_: Any) -> tuple[int, Any, dict[str, str]]:
        one = self._submission(number)
        if body["action"] != "APPROVE":
            raise Refused(400, "Invalid action", body["action"])
        if one["status"] == "APPROVED":
            return 200, one, {}
        if one["status"] != "AWAITING REVIEW":
            raise Refused(400, "Invalid action", f"cannot approve a submission that is {one['status']}")
        self._approve(one)
        self._tell(number)
        return 200, one, {}

    def request_return(self, number: str, *, body: Any, **_: Any) -> tuple[int, Any, dict[str, str]]:
        one = self._submission(number)
        if not body.get("request_return_reasons"):
            raise Refused(400, "Bad request", {"request_return_reasons": ["This field is required."]})
        one["return_requested"] = "2026-11-29T09:20:00.000Z"
        return 200, {name: one[name] for name in ("id", "status", "return_requested")}, {}

    def screen_out(self, number: str, *, body: Any, **_: Any) -> tuple[int, Any, dict[str, str]]:
        study, cents = self._study(number), _cents(body["bonus_per_submission"])
        chosen = [self._submission(one) for one in body["submission_ids"]]
        if any(one["status"] != "ACTIVE" for one in chosen):
            raise Refused(400, "Bad request", "only active submissions can be screened out")
        for one in chosen:
            one |= {"status": "SCREENED OUT", "reward_paid": cents}
            self._tell(one["id"])
        if body["increase_places"]:
            study["total_available_places"] += len(chosen)
        return 200, {"message": "screened out"}, {}

    def set_up_bonuses(self, *, body: Any, **_: Any) -> tuple[int, Any, dict[str, str]]:
        lines = [line.split(",") for line in body["csv_bonuses"].split("\n") if line]
        wrong = [one for one, _ in lines if self.submissions.get(one, {}).get("study_id") != body["study_id"]]
        if wrong:
            raise Refused(400, "Bad request", f"not of this study: {', '.join(wrong)}")
        number = self._id()
        bonuses = [(one, _cents(amount)) for one, amount in lines]
        cents = sum(amount for _, amount in bonuses)
        self.bulks[number] = {"bonuses": bonuses}
        fees = round(cents / 3)
        told = {"id": number, "study": body["study_id"], "amount": cents, "fees": fees, "total_amount": cents + fees}
        return 201, told, {}

    def pay_bonuses(self, number: str, **_: Any) -> tuple[int, Any, dict[str, str]]:
        if number not in self.bulks:
            raise Refused(404, "Not found", "no such bulk payment")
        for one, cents in self.bulks[number]["bonuses"]:
            self.submissions[one]["bonus_payments"].append(cents)
        return 202, None, {}

    def list_event_types(self, **_: Any) -> tuple[int, Any, dict[str, str]]:
        return 200, {"results": [{"event_type": one, "description": one} for one in EVENT_TYPES]}, {}

    def create_secret(self, *, body: Any, **_: Any) -> tuple[int, Any, dict[str, str]]:
        self.secret = f"secret-{self._id()}"
        return 201, {"id": self._id(), "value": self.secret, "workspace_id": body["workspace_id"]}, {}

    def list_subscriptions(self, **_: Any) -> tuple[int, Any, dict[str, str]]:
        return 200, {"results": list(self.subscriptions.values())}, {}

    def subscribe(self, *, body: Any, **_: Any) -> tuple[int, Any, dict[str, str]]:
        if not body["target_url"].startswith("https://"):
            raise Refused(400, "Bad request", {"target_url": ["must be https"]})
        number = self._id()
        self.subscriptions[number] = {**body, "id": number, "is_enabled": False}
        return 201, self.subscriptions[number], {"X-Hook-Secret": f"confirm-{number}"}

    def confirm(self, number: str, *, body: Any, **_: Any) -> tuple[int, Any, dict[str, str]]:
        if body != {"secret": f"confirm-{number}"}:
            raise Refused(400, "Bad request", "wrong secret")
        self.subscriptions[number]["is_enabled"] = True
        return 200, self.subscriptions[number], {}

    def _approve(self, one: JSON) -> None:
        one |= {"status": "APPROVED", "reward_paid": self.studies[one["study_id"]]["reward"]}

    def _study(self, number: str) -> JSON:
        if number not in self.studies:
            raise Refused(404, "Not found", "Study not found")
        return self.studies[number]

    def _submission(self, number: str) -> JSON:
        if number not in self.submissions:
            raise Refused(404, "Not found", "Submission not found")
        return self.submissions[number]

    def _tell(self, number: str) -> None:
        one = self.submissions[number]
        told = {"resource_id": number, "event_type": "submission.status.change"}
        self._send({**told, "participant_id": one["participant_id"], "status": one["status"]})

    def _send(self, told: JSON) -> None:
        self.webhooks.append(self.sign(told))

    def _id(self) -> str:
        return hashlib.sha256(str(next(self._numbers)).encode()).hexdigest()[:24]


def _cents(units: Any) -> int:
    cents = Decimal(str(units)) * 100
    if cents != int(cents):
        raise Refused(400, "Bad request", f"{units} is no amount of money")
    return int(cents)


ID = "([0-9A-Za-z]+)/"
API = ProlificStandIn
ROUTES = (
    ("studies/", "POST", API.create_study),
    (f"studies/{ID}", "GET", API.read_study),
    (f"studies/{ID}transition/", "POST", API.move_study),
    (f"studies/{ID}screen-out-submissions/", "POST", API.screen_out),
    ("submissions/", "GET", API.list_submissions),
    ("submissions/bonus-payments/", "POST", API.set_up_bonuses),
    (f"submissions/{ID}", "GET", API.read_submission),
    (f"submissions/{ID}transition/", "POST", API.move_submission),
    (f"submissions/{ID}request-return/", "POST", API.request_return),
    (f"bulk-bonus-payments/{ID}pay/", "POST", API.pay_bonuses),
    ("hooks/event-types/", "GET", API.list_event_types),
    ("hooks/secrets/", "POST", API.create_secret),
    ("hooks/subscriptions/", "GET", API.list_subscriptions),
    ("hooks/subscriptions/", "POST", API.subscribe),
    (f"hooks/subscriptions/{ID}", "POST", API.confirm),
)


def _make_server(api: ProlificStandIn) -> ThreadingHTTPServer:
    class Requests(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._respond()

        do_POST = do_GET

        def _respond(self) -> None:
            length = int(self.headers.get("Content-Length") or 0)
            body = json.loads(self.rfile.read(length)) if length else None
            fault = api.faults.pop(0) if api.faults else None
            answer = fault if fault is not None and not fault.done else self._carry_out(body)
            if fault is not None:
                answer = fault
            if answer.status:
                self.send_response(answer.status)
                for name, value in answer.headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(answer.body)))
                self.end_headers()
                self.wfile.write(answer.body)

        def _carry_out(self, body: Any) -> Fault:
            parts = urlsplit(self.path)
            path = parts.path.removeprefix("/api/v1/")
            api.requests.append((self.command, path, body))
            try:
                if self.headers.get("Authorization") != f"Token {api.token}":
                    raise Refused(401, "Authentication failed", "Invalid token.")
                status, told, headers = api.answer(self.command, path, parse_qs(parts.query), body)
            except Refused as refused:
                status, told, headers = refused.status, refused.body, {}
            return Fault(status, headers, b"" if told is None else json.dumps(told).encode())

        def log_message(self, *_: Any) -> None:
            pass

    return ThreadingHTTPServer(("127.0.0.1", 0), Requests)


@contextmanager
def serve_stand_in() -> Iterator[ProlificStandIn]:
    """A stand-in that answers at its `address` until the block ends."""
    api = ProlificStandIn()
    server = _make_server(api)
    api.address = f"http://127.0.0.1:{server.server_address[1]}/api/v1/"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield api
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
