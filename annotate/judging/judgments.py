"""Record judgments, take them back, resolve them into labels.

A judgment is appended, and superseded when it is taken back or answered anew; it is never changed or deleted.
"""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field
from datetime import datetime, timedelta

import pandas as pd
from sqlalchemy import bindparam, delete, insert, select, update
from sqlalchemy.orm import Session

from annotate.judging.people import get_person, lock_person
from db.errors import UserError
from db.models import (
    Choice,
    Judgment,
    Label,
    LabelJudgment,
    Lease,
    Origin,
    Pair,
    Person,
    Picked,
    Question,
    Side,
    utc_now,
)
from db.project import ProjectSettings, load_settings, store_question
from db.records import SIMULATED, insert_row

RESOLVE_METHODS = ("majority", "dawid-skene")
"""Ends the maker's name of every label in which a program's answers count, as votes or as what a labeler learnt."""
VIEW_MODES = ("fit", "zoom", "1:1", "input", "truth", "flicker")
"""As the labelling page looks at a pair, see static/label/viewer.js."""
UUID_FORM = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


# Built once, for they run with every answer and take longer to build than to run. They ask for ids, by the session's
# connection: the session makes three times as much of a statement, and mostly there is no row to be loaded.
OF_UUID = select(Judgment.id).where(Judgment.uuid == bindparam("uuid"))
ID_OF_KEY = select(Question.id).where(Question.key == bindparam("key"))
PAIR_AND_STANDING = (
    select(Pair.id, Judgment.id)
    .outerjoin(
        Judgment,
        (Judgment.pair_id == Pair.id)
        & (Judgment.person_id == bindparam("person_id"))
        & (Judgment.repeat_no == bindparam("repeat_no"))
        & Judgment.superseded_at.is_(None),
    )
    .where(Pair.id == bindparam("pair_id"))
)
INSERT_JUDGMENT = insert(Judgment)
COUNT = (
    update(Pair).where(Pair.id == bindparam("of_pair")).values(judgment_count=Pair.judgment_count + bindparam("change"))
)
DELETE_LEASE = (
    delete(Lease)
    .where(
        Lease.pair_id == bindparam("pair_id"),
        Lease.person_id == bindparam("person_id"),
        Lease.repeat_no == bindparam("repeat_no"),
    )
    .returning(Lease.leased_at)
)


@dataclass(frozen=True)
class Answer:
    """Answer of a person to the pair that was on their screen."""

    uuid: str
    pair_id: int
    repeat_no: int
    shown_left: Side
    choice: Choice
    seconds: float
    skip_reason: str | None = None
    reasons: list[str] = field(default_factory=list)
    view_mode: str = "fit"
    picked: Picked = Picked.random
    replaces: str | None = None
    """uuid of the own answer to this showing whose place this one takes, such as the same one with a reason more."""
    question: str | None = None
    """Key of the question's version that the page showed; None for the present one. One that nobody knows here, such
    as '' of a page from before there were versions, is stored as not recorded."""


Timer = Callable[[datetime | None, float], float | None]
"""Told when the pair was handed out (None: its lease is gone) and the seconds that are claimed; gives the server's."""


def record_judgment(session: Session, person_id: int, answer: Answer, timer: Timer | None = None) -> Judgment:
    """Append a judgment and release the person's lease on the pair.

    The same uuid again returns the row that is there. A second answer of this person to the same showing supersedes
    the first where it says that it replaces it, and is refused elsewhere: it comes from another tab or device, whose
    answer would be overwritten unseen.

    Args:
        timer: asked for the server's seconds of a new answer; one that replaces another keeps that one's.
    Raises:
        UserError: the uuid is another judgment's or no UUID, there is no such pair, a skip has no reason, the seconds
            are not a time, or another answer stands than the one to be replaced.
    """
    lock_person(session, person_id)
    run = session.connection()
    known_id = run.scalar(OF_UUID, {"uuid": answer.uuid})
    if known_id is not None:
        known = session.get_one(Judgment, known_id)
        if known.person_id != person_id or known.pair_id != answer.pair_id:
            raise UserError(f"Judgment {answer.uuid} already belongs to another pair or person; use a new UUID.")
        return known
    _check_answer(answer)
    showing = {"pair_id": answer.pair_id, "person_id": person_id, "repeat_no": answer.repeat_no}
    pair_and_standing = run.execute(PAIR_AND_STANDING, showing).one_or_none()
    if pair_and_standing is None:
        raise UserError(f"There is no pair {answer.pair_id}; reload the page.")
    standing = None if pair_and_standing[1] is None else session.get_one(Judgment, pair_and_standing[1])
    _check_replaced(answer, standing)
    if standing is not None:
        standing.superseded_at = utc_now()
        session.flush()
    leased_at = run.scalar(DELETE_LEASE, showing)
    judgment = Judgment(
        **showing,
        uuid=answer.uuid,
        question_id=_find_question(session, answer.question),
        choice=answer.choice,
        skip_reason=answer.skip_reason,
        reasons=answer.reasons,
        shown_left=answer.shown_left,
        picked=answer.picked,
        view_mode=answer.view_mode,
        seconds=answer.seconds,
        server_seconds=_server_seconds(answer, leased_at, standing, timer),
    )
    insert_row(session, INSERT_JUDGMENT, judgment)
    if standing is None:
        _count(session, judgment, +1)
    return judgment


def _server_seconds(
    answer: Answer, leased_at: datetime | None, standing: Judgment | None, timer: Timer | None
) -> float | None:
    if standing is not None:
        return standing.server_seconds
    return None if timer is None else timer(leased_at, answer.seconds)


def check_offered(session: Session, answer: Answer, settings: ProjectSettings) -> None:
    """Refuse what no page of this project offers: the answer did not come from one.

    Reasons of earlier versions of the question are known too: an open page may be of one. A skip's reason is free text.

    Raises:
        UserError: an unknown reason or view mode, or the same reason twice.
    """
    unknown = set(answer.reasons) - set(settings.reasons)
    if unknown:
        unknown -= {reason for reasons in session.scalars(select(Question.reasons)) for reason in reasons}
    if unknown or len(set(answer.reasons)) < len(answer.reasons):
        known = ", ".join(map(repr, settings.reasons)) or "none"
        raise UserError(f"The reasons {answer.reasons!r} are not among those of this project, each once: {known}.")
    if not set(answer.view_mode.split("+")) <= set(VIEW_MODES):
        raise UserError(f"The view mode {answer.view_mode!r} is none of {', '.join(VIEW_MODES)}, joined by '+'.")


def _find_question(session: Session, key: str | None) -> int | None:
    if key is None:
        return store_question(session, load_settings(session)).id
    return session.connection().scalar(ID_OF_KEY, {"key": key})


def _check_answer(answer: Answer) -> None:
    if not UUID_FORM.fullmatch(answer.uuid):
        raise UserError(f"{answer.uuid!r} is not a UUID; the page makes one for each judgment.")
    if not 0 <= answer.seconds < math.inf:
        raise UserError(f"`seconds` must be a finite number of at least 0, not {answer.seconds}.")
    if answer.choice is Choice.skip and not (answer.skip_reason or "").strip():
        raise UserError("A skip needs a reason; choose one or write it.")
    if answer.choice is not Choice.skip and answer.skip_reason is not None:
        raise UserError(f"The reason {answer.skip_reason!r} belongs to a skip, not to the choice {answer.choice}.")


def _check_replaced(answer: Answer, standing: Judgment | None) -> None:
    if answer.replaces == (None if standing is None else standing.uuid):
        return
    if answer.replaces is None:
        raise UserError(
            "You have answered this pair already, in another tab or window or on another device; that answer stands. "
            "To change it, take it back in the history and answer again."
        )
    raise UserError("The answer to replace is gone: it was taken back or changed in another tab or window.")


def _count(session: Session, judgment: Judgment, change: int) -> None:
    """Keep the pair's number of judgments; repeats do not count."""
    if judgment.repeat_no == 0:
        session.connection().execute(COUNT, {"of_pair": judgment.pair_id, "change": change})


def undo_judgment(session: Session, person_id: int, uuid: str, settings: ProjectSettings) -> Lease | None:
    """Supersede a judgment and lease its pair to the person again, the same side left.

    Returns:
        the lease; None where the judgment had been superseded before (undoing twice is undoing once).
    Raises:
        UserError: this person has no judgment of that uuid.
    """
    lock_person(session, person_id)
    judgment = session.scalar(select(Judgment).where(Judgment.uuid == uuid, Judgment.person_id == person_id))
    if judgment is None:
        raise UserError(f"You have no judgment {uuid} to undo.")
    if judgment.superseded_at is not None:
        return None
    judgment.superseded_at = utc_now()
    _count(session, judgment, -1)
    session.execute(delete(Lease).where(Lease.pair_id == judgment.pair_id, Lease.person_id == person_id))
    lease = Lease(
        pair_id=judgment.pair_id,
        person_id=person_id,
        repeat_no=judgment.repeat_no,
        shown_left=judgment.shown_left,
        picked=judgment.picked,
        leased_at=None,  # the page has had it since before its answer
        expires_at=utc_now() + timedelta(seconds=settings.lease_seconds),
    )
    session.add(lease)
    session.flush()
    return lease


@dataclass
class ResolveReport:
    """Result of `resolve_labels`; counts of labels."""

    added: int = 0
    replaced: int = 0
    withdrawn: int = 0
    """Labels whose judgments were all taken back."""
    unchanged: int = 0


def resolve_labels(
    session: Session,
    method: str = "majority",
    *,
    exclude_people: Iterable[str] = (),
    include_simulated: bool = False,
) -> ResolveReport:
    """Turn the live judgments of each pair into one human label, tracing it to them.

    Skips, repeats and gold pairs make no label. A label whose value and judgments stay the same keeps its row. A label
    imported without judgments (made by 'imported:…') stays, also where its pair is judged: nobody knows how many
    answers it stands for.

    Args:
        method: 'majority': p_a is the share of votes for a, a tie being half a vote for each. 'dawid-skene': the
            posterior of Dawid & Skene (1979) over a, b, tie from crowd-kit, which weighs people by their reliability.
        exclude_people: names whose judgments are left out.
        include_simulated: count simulated annotators too; the labels then say so in `made_by`.
    Raises:
        UserError: unknown method, or no such person to leave out.
    """
    if method not in RESOLVE_METHODS:
        raise UserError(f"Unknown method {method!r}; choose one of {', '.join(RESOLVE_METHODS)}.")
    excluded = {get_person(session, name).id for name in exclude_people}
    votes = load_votes(session, excluded=excluded, include_simulated=include_simulated)
    p_a = compute_majority(votes) if method == "majority" else compute_dawid_skene(votes)
    made_by = f"{method} {SIMULATED}" if include_simulated else method
    report = ResolveReport()
    live = {
        label.pair_id: label
        for label in session.scalars(select(Label).where(Label.origin == Origin.human, Label.superseded_at.is_(None)))
    }
    traced = _traced_judgments(session)
    new: list[tuple[Label, list[int]]] = []
    for pair_id, group in votes.set_index("pair_id").groupby(level=0):
        assert isinstance(pair_id, int)
        old, p_a_of_pair, numbers = live.pop(pair_id, None), float(p_a[pair_id]), sorted(group["judgment_id"])
        if old is not None and _is_imported(old):
            continue
        if old is not None and (old.p_a, old.made_by, traced[old.id]) == (p_a_of_pair, made_by, numbers):
            report.unchanged += 1
            continue
        if old is not None:
            old.superseded_at = utc_now()
        report.replaced += old is not None
        report.added += old is None
        agreement = max(Counter(group["choice"]).values()) / len(group)
        label = Label(pair_id=pair_id, origin=Origin.human, made_by=made_by, p_a=p_a_of_pair, agreement=agreement)
        new.append((label, numbers))
    for old in live.values():
        if not _is_imported(old):
            old.superseded_at = utc_now()
            report.withdrawn += 1
    _add_labels(session, new)
    return report


def _is_imported(label: Label) -> bool:
    return label.made_by.startswith("imported:")


def _add_labels(session: Session, new: list[tuple[Label, list[int]]]) -> None:
    """Add labels and the ids of the judgments behind each."""
    session.flush()  # The superseded rows give way first: only one label of a pair may be live.
    session.add_all(label for label, _ in new)
    session.flush()
    session.add_all(LabelJudgment(label_id=label.id, judgment_id=n) for label, numbers in new for n in numbers)
    session.flush()


def load_votes(session: Session, *, excluded: Collection[int] = (), include_simulated: bool = False) -> pd.DataFrame:
    """Live votes, a row each, in the same order in every database: judgment_id, pair_id, person, choice (a, b, tie)."""
    statement = (
        select(Pair.key, Person.public_id, Judgment.id, Judgment.pair_id, Judgment.choice)
        .join(Person, Person.id == Judgment.person_id)
        .join(Pair, Pair.id == Judgment.pair_id)
        .where(
            Judgment.superseded_at.is_(None),
            Judgment.repeat_no == 0,
            Judgment.choice != Choice.skip,
            Pair.gold_answer.is_(None),
        )
    )
    if excluded:
        statement = statement.where(Person.id.not_in(excluded))
    if not include_simulated:
        statement = statement.where(Person.simulated.is_(False))
    # Sorted here, since databases disagree on the order of text.
    found = sorted(tuple(row) for row in session.execute(statement))
    rows = [(number, pair_id, person, str(choice)) for _, person, number, pair_id, choice in found]
    return pd.DataFrame(rows, columns=["judgment_id", "pair_id", "person", "choice"])


def _traced_judgments(session: Session) -> defaultdict[int, list[int]]:
    """The judgments behind each live human label, by label id, in order."""
    statement = (
        select(LabelJudgment.label_id, LabelJudgment.judgment_id)
        .join(Label, Label.id == LabelJudgment.label_id)
        .where(Label.origin == Origin.human, Label.superseded_at.is_(None))
        .order_by(LabelJudgment.judgment_id)
    )
    traced: defaultdict[int, list[int]] = defaultdict(list)
    for label_id, judgment_id in session.execute(statement):
        traced[label_id].append(judgment_id)
    return traced


def compute_majority(votes: pd.DataFrame) -> pd.Series[float]:
    """p_a by pair_id: the share of votes for a, ties counting one half."""
    worth = votes["choice"].map({"a": 1.0, "b": 0.0, "tie": 0.5})
    return worth.groupby(votes["pair_id"]).mean()


def compute_dawid_skene(votes: pd.DataFrame) -> pd.Series[float]:
    """p_a by pair_id: P(a) + P(tie) / 2 of the Dawid-Skene posterior (crowd-kit, 100 iterations).

    The last digits depend on the order of the votes.

    Source: Dawid & Skene, Maximum Likelihood Estimation of Observer Error-Rates Using the EM Algorithm, 1979.
    """
    from crowdkit.aggregation import DawidSkene  # only here: it is slow to import

    if votes.empty:
        return pd.Series(dtype=float)
    table = votes.rename(columns={"pair_id": "task", "person": "worker", "choice": "label"})
    posterior = DawidSkene(n_iter=100).fit_predict_proba(table[["task", "worker", "label"]])
    posterior = posterior.reindex(columns=["a", "tie", "b"], fill_value=0.0)
    # crowd-kit's rows sum to one only to some ten digits; a probability above one is none.
    shares = posterior.div(posterior.sum(axis=1), axis=0)
    return (shares["a"] + 0.5 * shares["tie"]).clip(0.0, 1.0)
