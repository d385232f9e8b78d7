"""Seal tokens: which pair or task was shown to whom, in which places, and which image an address means.

A page and its person get them and cannot read them: nothing in them says that a pair is a repeat or has a known answer,
and the same image has another address in every showing. They are sealed, not stored, so that a token holds for as long
as the server's key, and an address needs no look-up.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import struct
from dataclasses import dataclass
from typing import Any, Literal

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESSIV
from itsdangerous import BadSignature, URLSafeSerializer

from db.errors import UserError
from db.images import MEDIA_TYPE_OF_SUFFIX
from db.models import Asked, Judgment, Lease, Picked, Side
from ui.gate.access import Visitor

SUFFIXES = ("", *MEDIA_TYPE_OF_SUFFIX)
"""By their numbers in an address; "" where whoever made it did not know."""
SIDES = tuple(Side)
PICKED, ASKED = tuple(Picked), tuple(Asked)  # by their places in a token, so that a new one comes last
SHOWING = struct.Struct(">QQBBB16s")
"""Person, pair, repeat number, side, why picked, question: always as long."""
SHOWING_OF_TASK = struct.Struct(">QQB6sBB16s")
"""Person, task, repeat number, places, how asked, why picked, question: longer than that of a pair, which tells which
of the two a token is. Whoever holds it sees on the screen how many candidates it has, so their number needs no hiding.
"""
IMAGE = struct.Struct(">32sBQB")
"""SHA-256, suffix, pair or task (0: none) and repeat number: the last two only make the address another one."""
OF_TASK = 1 << 63
"""Added to a task's id in an address, so that it has no pair's."""
PICKED_BY_LETTER = {
    "r": Picked.random,
    "u": Picked.uncertain,
    "g": Picked.disagreement,
    "v": Picked.diverse,
    "l": Picked.leftover,
}
"""Of the readable tokens of older versions."""


Shown = tuple[Literal["pair", "task"], int]
"""A pair or a task and its id."""


def name_shown(row: Lease | Judgment | Showing) -> Shown:
    """Say what a lease, a judgment or a showing is of."""
    if row.task_id is not None:
        return "task", row.task_id
    assert row.pair_id is not None, "the tables have either"
    return "pair", row.pair_id


@dataclass(frozen=True)
class Showing:
    """A pair or task as it was displayed to its person."""

    pair_id: int | None
    repeat_no: int
    shown_left: Side | None
    picked: Picked
    question: str
    """Key of the version that was asked when it was handed out; '' in the tokens of older versions."""
    task_id: int | None = None
    places: str | None = None
    """Letters of a task's candidates in the order in which they stood on the screen."""
    asked: Asked = Asked.pair


class Showings:
    """Seals and opens tokens with keys of their own, derived from the server's.

    AES-SIV (RFC 5297) gives the same text the same token: a pair that comes twice, as after a reload, has the same
    addresses, so that the browser has its images already.
    """

    def __init__(self, secret: bytes, root_path: str = "") -> None:
        self._root_path = root_path
        self._showings = AESSIV(hmac.digest(secret, b"sealed showing", hashlib.sha256))
        self._images = AESSIV(hmac.digest(secret, b"sealed image", hashlib.sha256))
        self._readable = URLSafeSerializer(secret, salt="showing")

    def seal(self, visitor: Visitor, lease: Lease, question: str) -> str:
        """Seal the pair or task as it was displayed into a token, which the page sends back with an answer."""
        _, number = name_shown(lease)
        key, picked = question.encode("ascii"), PICKED.index(lease.picked)
        if lease.places is not None:
            places, asked = lease.places.encode("ascii"), ASKED.index(lease.asked)
            text = SHOWING_OF_TASK.pack(visitor.person_id, number, lease.repeat_no, places, asked, picked, key)
        else:
            assert lease.shown_left is not None, "the tables have it of every pair"
            side = SIDES.index(lease.shown_left)
            text = SHOWING.pack(visitor.person_id, number, lease.repeat_no, side, picked, key)
        return _to_text(self._showings.encrypt(text, None))

    def open(self, visitor: Visitor, token: str) -> Showing:
        """Open a token: the showing, if it was this visitor's.

        Raises:
            UserError: not a token of ours, or made for somebody else.
        """
        person_id, showing = self._open_readable(token) if "." in token else self._open_sealed(token)
        if person_id != visitor.person_id:
            raise UserError(
                "This answer belongs to a pair that was shown to another person; sign in as that person to send it."
            )
        return showing

    def _open_sealed(self, token: str) -> tuple[int, Showing]:
        try:
            text = self._showings.decrypt(_from_text(token), None)
        except (InvalidTag, ValueError) as error:
            raise _foreign() from error
        if len(text) == SHOWING.size:
            person_id, pair_id, repeat_no, side, picked, key = SHOWING.unpack(text)
            return person_id, Showing(pair_id, repeat_no, SIDES[side], PICKED[picked], _read_padded(key))
        person_id, task_id, repeat_no, places, asked, picked, key = SHOWING_OF_TASK.unpack(text)
        of_task: dict[str, Any] = {"task_id": task_id, "places": _read_padded(places), "asked": ASKED[asked]}
        return person_id, Showing(None, repeat_no, None, PICKED[picked], _read_padded(key), **of_task)

    def _open_readable(self, token: str) -> tuple[int, Showing]:
        """A token of before they were sealed: an open page, or one without a network, still has answers to such."""
        try:
            person_id, pair_id, repeat_no, shown_left, *more = self._readable.loads(token)
        except (BadSignature, ValueError) as error:
            raise _foreign() from error
        letter = more[0] if more else "r"
        question = more[1] if len(more) > 1 else ""
        return person_id, Showing(pair_id, repeat_no, Side(shown_left), PICKED_BY_LETTER[letter], question)

    def image_address(
        self, visitor: Visitor, sha256: str, suffix: str = "", lease: Lease | Judgment | None = None
    ) -> str:
        """Return the address of this image for this visitor's browser.

        Args:
            suffix: of the stored file, where it is known.
            lease: of the showing in which it is seen; None outside of any, as in the guidelines.
        """
        kind, number = ("pair", 0) if lease is None else name_shown(lease)
        place = number | OF_TASK if kind == "task" else number
        repeat_no = 0 if lease is None else lease.repeat_no
        text = IMAGE.pack(bytes.fromhex(sha256), SUFFIXES.index(suffix), place, repeat_no)
        sealed = self._images.encrypt(text, [visitor.public_id.encode()])
        return f"{self._root_path}/img/{_to_text(sealed)}"

    def open_image(self, visitor: Visitor, token: str) -> tuple[str, str] | None:
        """(SHA-256, suffix or "") of the image that this visitor's address means; None where it is not theirs."""
        try:
            text = self._images.decrypt(_from_text(token), [visitor.public_id.encode()])
        except (InvalidTag, ValueError):
            return None
        sha256, suffix, _, _ = IMAGE.unpack(text)
        return sha256.hex(), SUFFIXES[suffix]


def _foreign() -> UserError:
    return UserError("This answer does not belong to a pair that was shown; reload the page.")


def _read_padded(text: bytes) -> str:
    return text.rstrip(b"\0").decode("ascii")


def _to_text(sealed: bytes) -> str:
    return base64.urlsafe_b64encode(sealed).rstrip(b"=").decode("ascii")


def _from_text(token: str) -> bytes:
    """The bytes of `_to_text`; b"", which is not a token, where it cannot be any."""
    try:
        return base64.b64decode(token + "=" * (-len(token) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError):
        return b""
