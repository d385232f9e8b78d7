"""Delete a run: its row, its folder and, where asked, the folder that it made; never what something else came from."""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Callable, Collection, Iterable
from pathlib import Path

from sqlalchemy import or_, select
from sqlalchemy.orm import Session

from db.errors import UserError
from db.models import Label, Method, Run, RunState
from db.session import Database
from runs.made_from import guess_paths, list_named
from runs.slurm import forget_environment
from runs.store import LIVE_STATES, artifact_of, run_folder, was_found


def delete_run(database: Database, data: Path, run_id: int, *, also_out: bool = False) -> int:
    """Remove a run's row and folder, and with `also_out` what it made; returns how many bytes that freed.

    Raises:
        UserError: there is no such run, it is live, or something else needs what would be removed.
    """
    doomed = []
    with database.write() as session:
        run = session.get(Run, run_id, with_for_update=True)
        if run is None:
            raise UserError(f"There is no run {run_id}.")
        if run.state in LIVE_STATES:
            raise UserError(f"Run {run_id} is {run.state}; stop it first.")
        _check_nothing_needs_it(session, run)
        _check_no_reference(session, run, run_folder(data, run_id))
        out = artifact_of(data, run) if also_out else None
        if out is not None and _is_within(out, run_folder(data, run_id)):
            out = None
        if out is not None:
            _check_out(session, data, run, out)
        for other in session.scalars(select(Run).where(Run.id > run_id)):
            if run_id in other.after:  # SQLite may give the number to another run
                other.after = [earlier for earlier in other.after if earlier != run_id]
        forget_environment(run.launcher.get("slurm", {}))
        session.delete(run)
        session.flush()
        # Renamed while the row can still come back: whatever happens later, nobody meets half a folder.
        for folder in (out, run_folder(data, run_id)):
            if folder is not None and folder.is_dir():
                doomed.append(_rename(folder))
    freed = sum(folder_bytes(folder) for folder in doomed)
    for folder in doomed:
        shutil.rmtree(folder, ignore_errors=True)
    return freed


def folder_bytes(folder: Path) -> int:
    """Bytes of the files in a folder; links count as themselves."""
    return sum(file.lstat().st_size for file in folder.rglob("*") if file.is_symlink() or file.is_file())


def _rename(folder: Path) -> Path:
    try:
        return folder.rename(folder.parent / f".deleted-{folder.name}-{uuid.uuid4().hex[:8]}")
    except OSError as error:
        raise UserError(f"{folder} cannot be deleted: {error.strerror}.") from error


def _check_nothing_needs_it(session: Session, run: Run) -> None:
    waiting = session.scalars(select(Run).where(Run.state == RunState.queued).order_by(Run.id))
    follower = next((other for other in waiting if run.id in other.after), None)
    if follower is not None:
        raise UserError(f"Run {follower.id} waits for run {run.id}; stop run {follower.id} first.")
    method = session.scalar(select(Method.name).where(Method.run_id == run.id).limit(1))
    if method is not None:
        raise UserError(f"Run {run.id} restored the images of the method {method}, which are in the project; it stays.")
    made = select(Label.id).where(Label.made_by.like(f"svm-{run.id}-%"), Label.superseded_at.is_(None)).limit(1)
    if session.scalar(made) is not None:
        raise UserError(f"Labels in use were made by the labeler of run {run.id}; label anew with another one first.")


def _is_within(path: Path, folder: Path) -> bool:
    path, folder = path.resolve(), folder.resolve()
    return path == folder or folder in path.parents


def _check_out(session: Session, data: Path, run: Run, out: Path) -> None:
    out, root = out.resolve(), data.resolve()
    shared = [
        root / name
        for name in ("images", "runs", "rewards", "restorers", "evaluations", "rounds", "weights", "uploads")
    ]
    if root not in out.parents or out in shared or root / "images" in out.parents:
        raise UserError(f"{out} is no folder of this run alone inside the data folder; delete it by hand.")
    if was_found(data, run.id):
        raise UserError(f"{out} held files before run {run.id}, which may be anybody's; delete it by hand.")
    _check_no_reference(session, run, out)


def _is_one_within(paths: Iterable[str], folder: Path) -> bool:
    return any(_is_within(Path(path), folder) for path in paths if Path(path).is_absolute())


def _check_no_reference(session: Session, run: Run, folder: Path) -> None:
    for other in session.scalars(select(Run).where(Run.id != run.id).order_by(Run.id)):
        if _is_one_within(list_named(other), folder):
            raise UserError(f"Run {other.id} ({other.kind}) refers to {folder}; delete that run first.")
    for name, settings in session.execute(select(Method.name, Method.settings)):
        if _is_one_within(guess_paths(settings), folder):
            raise UserError(f"The method {name} was restored with {folder}; it stays.")


def check_apart(session: Session, data: Path, run_ids: Collection[int]) -> None:
    """Check that nothing but these runs needs what they made, so that all of them can go, the last one first.

    Methods that these runs made are not asked about: who removes them removes the runs next.

    Raises:
        UserError: another run, or a method of another run, needs it.
    """
    folders = [
        folder
        for run in session.scalars(select(Run).where(Run.id.in_(run_ids)))
        for folder in (run_folder(data, run.id), artifact_of(data, run))
        if folder is not None
    ]
    for other in session.scalars(select(Run).where(Run.id.not_in(run_ids)).order_by(Run.id)):
        waits = other.state is RunState.queued and set(run_ids).intersection(other.after)
        if waits or any(_is_one_within(list_named(other), folder) for folder in folders):
            raise UserError(f"Run {other.id} ({other.kind}) needs what these runs made; stop and delete it first.")
    for method in session.scalars(select(Method).where(or_(Method.run_id.is_(None), Method.run_id.not_in(run_ids)))):
        if any(_is_one_within(guess_paths(method.settings), folder) for folder in folders):
            raise UserError(f"The method {method.name} was restored with what these runs made; they stay.")


def why_kept(session: Session, data: Path, run: Run) -> str | None:
    """Why a run that has ended cannot be deleted; None where it can."""
    return _reason(
        lambda: _check_nothing_needs_it(session, run),
        lambda: _check_no_reference(session, run, run_folder(data, run.id)),
    )


def why_out_kept(session: Session, data: Path, run: Run, out: Path) -> str | None:
    """Why what a run made would stay; None where `also_out` removes it."""
    return _reason(lambda: _check_out(session, data, run, out))


def _reason(*checks: Callable[[], None]) -> str | None:
    try:
        for check in checks:
            check()
    except UserError as error:
        return str(error)
    return None
