"""Make what tests work on: photos, projects, judgments, metric lists, the app; run commands to their end."""

from __future__ import annotations

import hashlib
import io
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, NamedTuple
from unittest.mock import patch
from uuid import uuid4

import numpy as np
import pytest
from PIL import Image as PilImage
from sqlalchemy import Select, func, select
from sqlalchemy.orm import Session

from annotate.judging.judgments import Answer, record_judgment
from annotate.judging.pairs import make_pairs
from annotate.judging.tasks import make_tasks
from db.images import add_image, image_path, probe_image
from db.models import Base, Candidate, Choice, Image, Judgment, Pair, Run, RunState, Side, Source, Split
from db.project import ProjectSettings, load_settings, save_settings
from db.records import add_candidate, add_method, add_source
from db.session import Database, open_database
from db.studies import Study, StudyPair, StudyState
from runs.store import run_folder

if TYPE_CHECKING:
    from fastapi import FastAPI
    from starlette.testclient import TestClient

    from annotate.studies.settings import StudySettings
    from ui.context import Context

ROOT = Path(__file__).resolve().parents[1]
PASSWORD = "correct horse"
SECRET_METHODS = ("bicubic-secret", "gfpgan-secret", "codeformer-secret")
"""Names of methods that no page of an annotator may hold."""
SIX_METHODS = (*SECRET_METHODS, "restoreformer-secret", "vqfr-secret", "diffbir-secret")
"""For tasks of up to six."""
MakeClient = Callable[..., "TestClient"]
"""The fixtures that make browsers without a screen: `client("ben")` is signed in, `client()` is not."""


def find_case(place: str) -> Path:
    """An input of ../shared/cases; the test is skipped where it is absent."""
    path = ROOT.parent / "shared" / "cases" / place
    if not path.exists():
        pytest.skip(f"needs ../shared/cases/{place}, which is not beside this checkout")
    return path


@cache
def migrated_file() -> bytes:
    """The file of a fresh SQLite database, migrated once."""
    with TemporaryDirectory() as folder:
        open_database(Path(folder)).close()
        return (Path(folder) / "facereward.db").read_bytes()


def open_fresh(data: Path) -> Database:
    """Open a new data folder's database: a copy of a migrated one, as migrating each anew takes ten times as long."""
    data.mkdir(mode=0o700, parents=True, exist_ok=True)
    (data / "facereward.db").write_bytes(migrated_file())
    return open_database(data)


@contextmanager
def mount_disk(folder: Path, size: str) -> Iterator[Path]:
    """A folder that is a disk of so many bytes, such as 64k or 8m; the test is skipped where none may be mounted."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        pytest.skip("needs the right to mount a small tmpfs")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)  # tensors may be mapped to its files


def write_photo(path: Path, seed: int, size_px: tuple[int, int] = (24, 32)) -> Path:
    """A small colourful image file, different for each seed; the suffix gives the format."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 256, (size_px[1], size_px[0], 3), dtype=np.uint8)
    PilImage.fromarray(pixels).save(path)
    return path


def add_photos(
    session: Session,
    data: Path,
    folder: Path,
    seeds: Sequence[int],
    size_px: tuple[int, int] = (24, 32),
    end: str = "png",
) -> list[Image]:
    """Store a small photo of each seed, whose file lies in the folder."""
    paths = [write_photo(folder / f"{seed}.{end}", seed, size_px) for seed in seeds]
    return [add_image(session, data, probe_image(path), path) for path in paths]


def add_image_row(session: Session, name: str, width_px: int = 8) -> Image:
    """Add the row of an image without a file, whose SHA-256 is this name and zeros."""
    image = Image(sha256=name.ljust(64, "0"), suffix=".png", width_px=width_px, height_px=8, size_bytes=1)
    session.add(image)
    session.flush()
    return image


def write_small_image(data: Path, colours: bytes) -> str:
    """A PNG of 8 by 8 pixels in a data folder's images, its first pixels of these colours; its SHA-256."""
    written = io.BytesIO()
    PilImage.frombytes("RGB", (8, 8), colours.ljust(8 * 8 * 3, b"\0")).save(written, "png")
    sha256 = hashlib.sha256(written.getvalue()).hexdigest()
    path = image_path(data, sha256, ".png")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(written.getvalue())
    return sha256


def add_candidates(
    session: Session, source_key: str, methods: Sequence[str], split: Split = Split.train, files: Path | None = None
) -> list[Candidate]:
    """Add rows of a source's candidates, one a method, their images without files.

    With `files`, a data folder, they have some, so that a server shows their pairs.

    Methods whose names begin alike up to an '=' give the same image, such as "copy=1" and "copy=2".
    """
    source = add_source(session, source_key, split)
    candidates = []
    for name in methods:
        sha256, size_bytes = hashlib.sha256(f"{source_key}/{name.partition('=')[0]}".encode()).hexdigest(), 1
        if files is not None:
            sha256 = write_small_image(files, bytes.fromhex(sha256))
            size_bytes = image_path(files, sha256, ".png").stat().st_size
        image = session.query(Image).filter_by(sha256=sha256).one_or_none() or add_image_row(session, sha256)
        image.size_bytes = size_bytes
        candidates.append(add_candidate(session, source, add_method(session, name), image))
    return candidates


def add_pairs(
    session: Session, faces: int, methods: Sequence[str] = ("m1", "m2"), files: Path | None = None, **settings: object
) -> int:
    """Add so many sources, a candidate a method of each, and all their pairs; how many pairs there are.

    Settings that are given are stored first.
    """
    saved = save_settings(session, settings) if settings else load_settings(session)
    for number in range(faces):
        add_candidates(session, f"face{number}", methods, files=files)
    return make_pairs(session, saved).added


def add_open_study(session: Session, settings: StudySettings) -> Study:
    """An open study called faces, of one pair that wants many answers."""
    add_pairs(session, 1)
    study = Study(name="faces", link="l1nk", settings=settings.model_dump(mode="json"), strata=["all pairs"])
    study.state = StudyState.open
    session.add(study)
    session.flush()
    pair_id = session.scalars(select(Pair.id)).one()
    session.add(StudyPair(study_id=study.id, pair_id=pair_id, stratum="all pairs", wanted=100, shuffle_key=0))
    session.flush()
    return study


def add_face(
    session: Session, key: str, methods: Sequence[str], lq: Image | None, *restored: Image, **fields: Any
) -> Source:
    """Add a source and its candidates, one a method; of the split train unless told otherwise."""
    source = add_source(session, key, fields.pop("split", Split.train), lq=lq, **fields)
    for name, image in zip(methods, restored, strict=True):
        add_candidate(session, source, add_method(session, name), image)
    return source


def make_project(
    session: Session,
    data: Path,
    folder: Path,
    faces: int,
    methods: Sequence[str] = SECRET_METHODS,
    size_px: tuple[int, int] = (24, 32),
    **settings: object,
) -> None:
    """Fill a database with so many sources, their photos (lq, hq, one a method) and pairs; no repeats, no gold.

    With a `task_size` of three and more there are tasks too.
    """
    saved = save_settings(session, {"repeat_share": 0, "gold_share": 0, **settings})
    for number in range(faces):
        lq, hq, *restored = add_photos(
            session, data, folder, range(10 * number, 10 * number + 2 + len(methods)), size_px
        )
        add_face(session, f"face{number}", methods, lq, *restored, hq=hq)
    make_pairs(session, saved)
    if saved.task_size > 2:
        make_tasks(session, saved, saved.task_size)


def judge(
    session: Session, person_id: int, pair_id: int, choice: Choice | str = Choice.a, *time: Any, **fields: Any
) -> Judgment:
    """Record a judgment of a pair whose candidate a stood left, under a new uuid.

    `fields` are those of `Answer`; `time` is what `record_judgment` is told of the server's time, if anything.
    """
    values = {"uuid": str(uuid4()), "repeat_no": 0, "shown_left": Side.a, "seconds": 1.0, **fields}
    if choice == Choice.skip:
        values.setdefault("skip_reason", "both bad")
    return record_judgment(session, person_id, Answer(pair_id=pair_id, choice=Choice(choice), **values), *time)


def get_settings(database: Database) -> ProjectSettings:
    """The project's settings as they are now."""
    with database.read() as session:
        return load_settings(session)


def add_run_files(
    database: Database, data: Path, kind: str = "reward train", state: RunState = RunState.finished, **more: Any
) -> int:
    """Add a run and its folder, with progress `lines`, a `result` and a `log` where given; its number."""
    lines, result, log = more.pop("lines", ()), more.pop("result", None), more.pop("log", None)
    with database.write() as session:
        run = Run(kind=kind, state=state, **{"code_version": "1", "config": {}, **more})
        session.add(run)
        session.flush()
        folder = run_folder(data, run.id)
    folder.mkdir(parents=True)
    if lines:
        (folder / "progress.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    if result is not None:
        (folder / "result.json").write_text(json.dumps(result))
    if log is not None:
        (folder / "log.txt").write_text(log)
    return run.id


def write_metric_list(path: Path, name: str = "two", metrics: Sequence[str] = ("sharpness", "contrast")) -> str:
    """Write a metric list; its path, as options take it. A stored reward is named with its version, "name version"."""
    parts = [metric.partition(" ") for metric in metrics]
    rows = [f'{{ name = "{one}"' + (f', version = "{version}" }}' if version else " }") for one, _, version in parts]
    about = f'name = "{name}"\nversion = "1"\ndescription = "for tests"\n'
    path.write_text(f"{about}metrics = [{', '.join(rows)}]\n")
    return str(path)


def annotate_command(data: Path, *arguments: str | Path) -> list[str]:
    """`python -m annotate …` on a data folder, as a list."""
    return [sys.executable, "-m", "annotate", *map(str, arguments), "--data", str(data)]


def run_annotate(
    data: Path, *arguments: str | Path, typed: str = "", **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run `python -m annotate …` on a data folder to its end, with what a person types into it."""
    return run_python(*annotate_command(data, *arguments)[1:], input=typed, env={**os.environ, **environment})


def run_python(*arguments: str | Path, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run `python …` in the repository to its end, whatever that is."""
    command, options = [sys.executable, *map(str, arguments)], {"cwd": ROOT, **options}
    return subprocess.run(command, capture_output=True, text=True, check=False, **options)


class Ended(NamedTuple):
    """How a command ended."""

    returncode: int
    stdout: str
    stderr: str


AnnotateHere = Callable[..., Ended]
"""The fixture `annotate_here`: `annotate_here("import", folder)` is a command run in this process."""


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a file with a JSON object a line."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


def read_files(folder: Path, *but: str) -> dict[str, bytes]:
    """Content by path below the folder, of all files but those of these names."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.name not in but]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def stored_names(data: Path) -> list[str]:
    """Names of all files among a data folder's images, sorted."""
    return sorted(path.name for path in (data / "images").rglob("*") if path.is_file())


def dump_rows(database: Database) -> dict[str, list[tuple[object, ...]]]:
    """Every row of every table but those of runs."""
    tables = [table for table in Base.metadata.sorted_tables if table.name != "run"]
    with database.engine.connect() as connection:
        return {table.name: [tuple(row) for row in connection.execute(select(table))] for table in tables}


def fetch(database: Database, statement: Select[Any]) -> list[Any]:
    """What a query of one column, or of one kind of rows, gives."""
    with database.read() as session:
        return list(session.scalars(statement))


def count_rows(database: Database, *tables: type[Base]) -> list[int]:
    """How many rows each of the tables has."""
    with database.read() as session:
        return [session.scalar(select(func.count()).select_from(table)) or 0 for table in tables]


def make_app_without_pages(context: Context) -> FastAPI:
    """The app with a word in the place of its Gradio pages: they take a second of the processor to build, Gradio's
    three apps without any page a third of one."""
    from starlette.responses import PlainTextResponse  # here: most tests need no app

    import ui.server

    def mount_no_pages(app: FastAPI, *_: object, path: str, **__: object) -> None:
        app.mount(path, PlainTextResponse("the admin pages"))

    with patch.object(ui.server, "build_pages"), patch.object(ui.server.gr, "mount_gradio_app", mount_no_pages):
        return ui.server.make_app(context)


def make_clients(app: FastAPI) -> MakeClient:
    """What makes browsers of an app with --auth, signed in by name and PASSWORD where a name is given."""
    from starlette.testclient import TestClient

    def make(name: str | None = None) -> TestClient:
        made = TestClient(app, base_url="http://testserver", follow_redirects=False)
        if name is not None:
            answer = made.post("/sign-in", data={"name": name, "password": PASSWORD})
            assert answer.headers["location"] == "/", answer.headers["location"]
        return made

    return make


def address_of(data: Path, url: str) -> str:
    """The address of a data folder's app without --auth, as a person opens it: with the token that signs a page in."""
    from ui.gate.access import load_secret
    from ui.gate.address_token import AddressToken

    return AddressToken(load_secret(data)).put_into(url)


def open_client(app: FastAPI, data: Path, name: str | None = None) -> TestClient:
    """A browser that opened the printed address of an app without --auth, signed in where a name is given."""
    from starlette.testclient import TestClient

    made = TestClient(app, base_url="http://127.0.0.1:7860", follow_redirects=False)
    made.get(address_of(data, ""))
    if name is not None:
        assert made.post("/sign-in", data={"name": name}).headers["location"] == "/"
    return made


def make_event(showing: str, choice: str = "left", **more: object) -> dict[str, Any]:
    """What a labelling page sends of one answer to what it was shown, under a new uuid."""
    return {"type": "judge", "id": str(uuid4()), "showing": showing, "choice": choice, "seconds": 1.5, **more}


def undo_event(judgment: str) -> dict[str, Any]:
    """What a labelling page sends to take a judgment back, by its uuid."""
    return {"type": "undo", "id": str(uuid4()), "judgment": judgment}


def routes_of(app: FastAPI) -> set[tuple[str, str]]:
    """(method, path) of all our routes, those of Gradio's app left out."""
    routers = [app, *(route.original_router for route in app.routes if hasattr(route, "original_router"))]
    routes = [route for router in routers for route in router.routes]
    return {(method, route.path) for route in routes for method in getattr(route, "methods", None) or ()}
