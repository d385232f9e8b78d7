"""What sealed tokens and addresses tell: nothing to who holds them, all of it to the server with the same key."""

from __future__ import annotations

import base64
import itertools

import pytest

from db.errors import UserError
from db.models import Lease, Picked, Role, Side
from ui.gate.access import Visitor
from ui.label.showings import Showing, Showings

SECRET = bytes(range(32))
BEN, EVA = Visitor(7, "ben", Role.annotator, "p7"), Visitor(8, "eva", Role.annotator, "p8")
SHA256 = "ab" * 32


def make_lease(pair_id: int = 12, repeat_no: int = 0, left: Side = Side.a, picked: Picked = Picked.random) -> Lease:
    return Lease(pair_id=pair_id, person_id=7, repeat_no=repeat_no, shown_left=left, picked=picked)


@pytest.mark.parametrize("picked", Picked)
def test_a_restarted_server_opens_what_it_sealed_before(picked: Picked) -> None:
    lease = make_lease(2**40, 1, Side.b, picked)
    token = Showings(SECRET).seal(BEN, lease, "0123456789abcdef")
    opened = Showings(SECRET).open(BEN, token)
    assert opened == Showing(2**40, 1, Side.b, picked, "0123456789abcdef")
    assert Showings(SECRET).open(BEN, Showings(SECRET).seal(BEN, make_lease(), "v1")).question == "v1"
    for stranger, key in ((EVA, SECRET), (BEN, b"another key")):
        with pytest.raises(UserError):
            Showings(key).open(stranger, token)


def test_a_token_tells_neither_repeats_nor_why_a_pair_was_picked() -> None:
    leases = [
        make_lease(12, repeat_no, left, picked) for repeat_no, left, picked in itertools.product((0, 1), Side, Picked)
    ]
    tokens = [Showings(SECRET).seal(BEN, lease, "v1") for lease in leases]
    texts = [base64.urlsafe_b64decode(token + "=") for token in tokens]
    assert len({len(text) for text in texts}) == 1, "not by its length either"
    # Every place of the text changes with every bit of the showing: no two have a run of bytes in common.
    for one, other in itertools.combinations(texts, 2):
        assert sum(a == b for a, b in zip(one, other, strict=True)) <= 6


def test_an_image_has_another_address_in_every_showing_and_for_every_person() -> None:
    showings = Showings(SECRET, "/faces")
    where = [(0, 0), (12, 0), (12, 1), (13, 0)]
    addresses = [showings.image_address(who, SHA256, ".png", one) for who in (BEN, EVA) for one in where]
    assert len(set(addresses)) == len({address[:20] for address in addresses}) == len(addresses)
    assert not any(SHA256[:8] in address for address in addresses)
    assert addresses == [showings.image_address(who, SHA256, ".png", one) for who in (BEN, EVA) for one in where]
    for who, stranger, some in ((BEN, EVA, addresses[:4]), (EVA, BEN, addresses[4:])):
        for address in some:
            token = address.removeprefix("/faces/img/")
            assert Showings(SECRET).open_image(who, token) == (SHA256, ".png")
            assert Showings(SECRET).open_image(stranger, token) is None
            assert Showings(b"another key").open_image(who, token) is None


@pytest.mark.parametrize("token", ["", "A", "AAAA", "é", "\0", "x" * 10_000, SHA256, "a.b", "....", "A" * 78 + "=="])
def test_what_is_no_token_is_refused_whatever_it_is(token: str) -> None:
    assert Showings(SECRET).open_image(BEN, token) is None
    with pytest.raises(UserError, match="does not belong to a pair that was shown"):
        Showings(SECRET).open(BEN, token)


def test_no_byte_of_an_address_can_be_changed() -> None:
    showings = Showings(SECRET)
    sealed = bytearray(base64.urlsafe_b64decode(showings.image_address(BEN, SHA256).removeprefix("/img/") + "=="))
    assert showings.open_image(BEN, base64.urlsafe_b64encode(sealed).decode().rstrip("=")) == (SHA256, "")
    for place in range(len(sealed)):
        changed = sealed.copy()
        changed[place] ^= 1
        assert showings.open_image(BEN, base64.urlsafe_b64encode(changed).decode().rstrip("=")) is None
