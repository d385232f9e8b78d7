"""What sealed tokens and addresses tell: nothing to who holds them, all of it to the server with the same key."""

from __future__ import annotations

import base64
import itertools

import pytest

from db.errors import UserError
from db.models import Asked, Lease, Picked, Role, Side
from ui.gate.access import Visitor
from ui.label.showings import Showing, Showings

SECRET = bytes(range(32))
BEN, EVA = Visitor(7, "ben", Role.annotator, "p7"), Visitor(8, "eva", Role.annotator, "p8")
SHA256 = "ab" * 32


def make_lease(pair_id: int = 12, repeat_no: int = 0, left: Side = Side.a, picked: Picked = Picked.random) -> Lease:
    return Lease(pair_id=pair_id, person_id=7, repeat_no=repeat_no, shown_left=left, picked=picked)


def make_task_lease(task_id: int = 12, repeat_no: int = 0, places: str = "cadb", asked: Asked = Asked.best) -> Lease:
    return Lease(task_id=task_id, person_id=7, repeat_no=repeat_no, places=places, asked=asked, picked=Picked.random)


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


@pytest.mark.parametrize("asked", [asked for asked in Asked if asked is not Asked.pair])
@pytest.mark.parametrize("places", ["bca", "cadb", "fedcba"])
def test_a_task_comes_back_with_its_places_and_what_was_asked(places: str, asked: Asked) -> None:
    lease = make_task_lease(2**40, 1, places, asked)
    lease.picked = Picked.information
    opened = Showings(SECRET).open(BEN, Showings(SECRET).seal(BEN, lease, "0123456789abcdef"))
    question = "0123456789abcdef"
    assert opened == Showing(None, 1, None, Picked.information, question, task_id=2**40, places=places, asked=asked)
    with pytest.raises(UserError, match="shown to another person"):
        Showings(SECRET).open(EVA, Showings(SECRET).seal(BEN, lease, "v1"))


def test_a_token_of_before_there_were_tasks_is_of_its_pair() -> None:
    old = "3FI2BUZe2Xnrq2KmiYyqHKEtVAjeb3exTfEtsvuGXN759oK1MvtlFJe0tmLB88K6Bgf-"
    assert Showings(SECRET).open(BEN, old) == Showing(12, 1, Side.b, Picked.uncertain, "v1")


def test_a_task_s_token_tells_neither_repeats_nor_places() -> None:
    leases = [
        make_task_lease(12, repeat_no, places, asked)
        for repeat_no, places, asked in itertools.product((0, 1), ("abc", "fedcba"), tuple(Asked)[1:])
    ]
    texts = [base64.urlsafe_b64decode(Showings(SECRET).seal(BEN, lease, "v1") + "==") for lease in leases]
    assert len({len(text) for text in texts}) == 1
    for one, other in itertools.combinations(texts, 2):
        assert sum(a == b for a, b in zip(one, other, strict=True)) <= 6


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
    where = [None, make_lease(), make_lease(12, 1), make_lease(13), make_task_lease(), make_task_lease(12, 1)]
    addresses = [showings.image_address(who, SHA256, ".png", one) for who in (BEN, EVA) for one in where]
    assert len(set(addresses)) == len({address[:20] for address in addresses}) == len(addresses)
    assert not any(SHA256[:8] in address for address in addresses)
    assert addresses == [showings.image_address(who, SHA256, ".png", one) for who in (BEN, EVA) for one in where]
    for who, stranger, some in ((BEN, EVA, addresses[:6]), (EVA, BEN, addresses[6:])):
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
