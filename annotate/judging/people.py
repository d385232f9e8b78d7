"""Manage the people who judge: names, roles, passwords and personal links."""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
import unicodedata
from datetime import timedelta

from sqlalchemy import bindparam, func, select, update
from sqlalchemy.orm import Session

from db.errors import UserError
from db.models import Judgment, Person, Role, utc_now

SCRYPT = {"n": 2**14, "r": 8, "p": 1, "maxmem": 64 * 2**20}
MIN_PASSWORD_LENGTH = 8
MAX_LINK_LIFETIME = timedelta(days=3653)
LOCK_PERSON = select(Person.id).where(Person.id == bindparam("person_id")).with_for_update(key_share=True)


def add_person(
    session: Session, name: str, role: Role = Role.annotator, password: str | None = None, *, simulated: bool = False
) -> Person:
    """A new person.

    Raises:
        UserError: the name is taken, be it in other letter case, empty, over 64 characters or not printable, or the
            password is too short.
    """
    name = unicodedata.normalize("NFC", name).strip()
    if not name or len(name) > 64 or not name.isprintable():
        raise UserError(f"{shorten(name)!r} cannot be a name: use 1 to 64 printable characters.")
    taken = _people_of_key(session, name)
    if taken:
        raise UserError(f"There is already a person called {taken[0].name!r}; choose another name.")
    person = Person(name=name, role=role, public_id=secrets.token_hex(8), simulated=simulated)
    if password is not None:
        set_password(person, password)
    session.add(person)
    session.flush()
    return person


def name_key(name: str) -> str:
    """Return the form in which equal names are equal: letter case, width and composition do not count."""
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", name).casefold())
    return " ".join(folded.split())


def _loose_key(name: str) -> str:
    """Letters and digits alone, without accents: "Zoë K." and "zoe k" may be one person."""
    return "".join(letter for letter in unicodedata.normalize("NFKD", name_key(name)) if letter.isalnum())


def _is_exactly(person: Person, name: str) -> bool:
    return unicodedata.normalize("NFC", person.name) == unicodedata.normalize("NFC", name).strip()


def _people_of_key(session: Session, name: str) -> list[Person]:
    """Everybody whose name is taken for this one, by age. Compared here: no database folds case as Unicode does."""
    key = name_key(name)
    ids = [number for number, other in session.execute(select(Person.id, Person.name)) if name_key(other) == key]
    return list(session.scalars(select(Person).where(Person.id.in_(ids)).order_by(Person.id)))


def find_person(session: Session, name: str) -> Person | None:
    """The person of that name: exactly so, or else the only one whose name differs in case or composition only."""
    alike = _people_of_key(session, name)
    found = [person for person in alike if person.name == name.strip()]
    found = found or [person for person in alike if _is_exactly(person, name)] or alike
    return found[0] if len(found) == 1 else None


def find_alike(session: Session, name: str) -> list[str]:
    """Names of enabled people who may be meant by a name, oldest first; none where somebody has exactly that name."""
    key = _loose_key(name)
    people = session.scalars(
        select(Person).where(Person.disabled_at.is_(None), Person.simulated.is_(False)).order_by(Person.id)
    ).all()
    if not key or any(_is_exactly(person, name) for person in people):
        return []
    return [person.name for person in people if _loose_key(person.name) == key]


def find_doubles(session: Session) -> list[str]:
    """A line for each group of people of an older version whose names differ in case or composition only."""
    groups: dict[str, list[str]] = {}
    for name in session.scalars(select(Person.name).order_by(Person.id)):
        groups.setdefault(name_key(name), []).append(name)
    return [
        f"{' and '.join(map(repr, names))} are {len(names)} people whose names sign-in takes for one: if they are one "
        "person, disable all but one; their judgments count as several people's."
        for names in groups.values()
        if len(names) > 1
    ]


def get_person(session: Session, name: str) -> Person:
    """The person of that name, as `find_person` finds it.

    Raises:
        UserError: there is none, or several; the message names those there are.
    """
    person = find_person(session, name)
    if person is None and (several := _people_of_key(session, name)):
        names = " and ".join(repr(one.name) for one in several)
        raise UserError(f"{shorten(name)!r} may be {names}; write the name exactly so.")
    if person is None:
        known = ", ".join(session.scalars(select(Person.name).order_by(Person.name).limit(20))) or "nobody yet"
        raise UserError(f"There is no person called {shorten(name)!r}. Known: {known}.")
    return person


def count_simulated(session: Session) -> int:
    """How many of the live judgments are simulated annotators'."""
    live = select(func.count()).select_from(Judgment).join(Person, Person.id == Judgment.person_id)
    return session.scalar(live.where(Person.simulated.is_(True), Judgment.superseded_at.is_(None))) or 0


def shorten(name: str) -> str:
    """A name as far as a message shows it."""
    return name if len(name) <= 80 else f"{name[:80]} …"


def lock_person(session: Session, person_id: int) -> None:
    """Let one person's requests wait for each other, so that none acts on what another is about to write.

    For PostgreSQL; a write session on SQLite is alone anyway. Asked again in one session it is not asked for anew.
    """
    locked: set[int] = session.info.setdefault("locked people", set())
    if person_id not in locked and session.get_bind().dialect.name == "postgresql":
        session.connection().execute(LOCK_PERSON, {"person_id": person_id})
        locked.add(person_id)


def end_sessions(person: Person) -> None:
    """Sign a person out everywhere."""
    person.session_version = (person.session_version or 0) + 1


def set_password(person: Person, password: str) -> None:
    """Store a password as its scrypt hash with a salt of its own, and end the person's sessions.

    Raises:
        UserError: shorter than MIN_PASSWORD_LENGTH.
    """
    if len(password) < MIN_PASSWORD_LENGTH:
        raise UserError(f"A password needs {MIN_PASSWORD_LENGTH} characters or more; this one has {len(password)}.")
    end_sessions(person)
    salt = secrets.token_bytes(16)
    person.password_hash = salt.hex() + "$" + hashlib.scrypt(password.encode(), salt=salt, **SCRYPT).hex()


def check_password(session: Session, name: str, password: str) -> Person | None:
    """The enabled person whom name and password fit, else None; takes the same time for an unknown name."""
    person = find_person(session, name)
    stored = person.password_hash if person and person.password_hash else "00" * 16 + "$"
    salt, _, expected = stored.partition("$")
    given = hashlib.scrypt(password.encode(), salt=bytes.fromhex(salt), **SCRYPT).hex()
    fits = hmac.compare_digest(given, expected)
    return person if person is not None and fits and person.disabled_at is None else None


def make_link_token(person: Person, lifetime: timedelta | None = None, *, once: bool = False) -> str:
    """A new secret for this person's link; the old link and the person's sessions end. Only its hash is stored.

    Args:
        lifetime: how long it lets in; None for as long as there is no newer one.
        once: whether it is gone once somebody has entered by it.
    """
    end_sessions(person)
    token = secrets.token_urlsafe(24)
    person.link_hash = _hash_link(token)
    person.link_expires_at = utc_now() + lifetime if lifetime is not None else None
    person.link_once = once
    return token


def read_lifetime(text: str) -> timedelta | None:
    """'30m', '12h', '7d' or '2w'; None for an empty text.

    Raises:
        UserError: it is written otherwise, or is nothing or more than ten years.
    """
    if not text.strip():
        return None
    found = re.fullmatch(r"([0-9]{1,7})\s*([mhdw])", text.strip().lower())
    names = {"m": "minutes", "h": "hours", "d": "days", "w": "weeks"}
    lifetime = timedelta(**{names[found[2]]: int(found[1])}) if found else timedelta()
    if not timedelta() < lifetime <= MAX_LINK_LIFETIME:
        raise UserError(f"{shorten(text)!r} is not a lifetime of a link; write 30m, 12h, 7d or 2w.")
    return lifetime


def describe_ways(person: Person) -> list[str]:
    """List the ways a person can sign in with --auth: 'password', 'link for once until 2026-12-05 10:00 (UTC)'."""
    ways = ["password"] if person.password_hash else []
    if person.link_hash and is_link_open(person):
        until = f" until {person.link_expires_at:%Y-%m-%d %H:%M} (UTC)" if person.link_expires_at else ""
        ways.append(f"link{' for once' if person.link_once else ''}{until}")
    return ways


def is_link_open(person: Person) -> bool:
    """Whether a person's link has not expired."""
    return person.link_expires_at is None or utc_now() < person.link_expires_at


def check_link_token(session: Session, token: str) -> Person | None:
    """The enabled person whose link this is, where it has not expired; else None."""
    person = session.scalar(select(Person).where(Person.link_hash == _hash_link(token), Person.disabled_at.is_(None)))
    return person if person is not None and is_link_open(person) else None


def use_up_link(session: Session, token: str) -> bool:
    """Make a link that is for once let nobody else in; False where another request was first."""
    change = update(Person).where(Person.link_hash == _hash_link(token)).values(link_hash=None)
    return bool(session.execute(change).rowcount == 1)  # type: ignore[attr-defined]


def _hash_link(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()


def disable_person(session: Session, name: str) -> Person:
    """Bar a person from signing in; their judgments stay.

    Raises:
        UserError: no such person, or the last enabled admin.
    """
    person = get_person(session, name)
    admins = select(Person.id).where(Person.role == Role.admin, Person.disabled_at.is_(None), Person.id != person.id)
    if person.role == Role.admin and session.scalar(admins.limit(1)) is None:
        raise UserError(f"{name!r} is the only admin; add another before disabling this one.")
    person.disabled_at = utc_now()
    end_sessions(person)
    return person


def enable_person(session: Session, name: str) -> Person:
    """Let a disabled person sign in again, with the password or link that they had.

    Raises:
        UserError: no such person.
    """
    person = get_person(session, name)
    person.disabled_at = None
    return person


def count_answers(session: Session, person: Person) -> int:
    """A person's answers that count: live ones, of whatever kind."""
    live = select(func.count()).where(Judgment.person_id == person.id, Judgment.superseded_at.is_(None))
    return session.scalar(live) or 0
