"""The small inputs of ../shared/cases that once failed at the import, as a person brings them in."""

from __future__ import annotations

import shutil
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from sqlalchemy import func, select

from db.models import Candidate, Image, Method, Pair, Source
from db.session import Database
from tests.making import AnnotateHere, fetch, find_case


@dataclass(frozen=True)
class Case:
    """What is right for one input."""

    code: int = 0
    out: tuple[str, ...] = ()
    """What must stand in the output, or in the error where the code is not 0."""
    sources: list[str] = field(default_factory=list)
    candidates: int = 0
    options: tuple[str, ...] = ()


Check = Callable[[Path, Case], str]
TWO = Case(sources=["0012"], candidates=2)
TABLES = {
    "blank_first_line.csv": TWO,
    "blank_last_rows.csv": TWO,
    "capital_header.csv": Case(sources=["0012"], candidates=1),
    "float_seed.csv": TWO,
    "semicolon.csv": TWO,
    "table.tsv": TWO,
    "trailing_commas.csv": TWO,
    "lone_surrogate_caption.jsonl": Case(2, ("line 1: caption", "lone surrogate", "write the text anew")),
}
ZIPS = {
    "aspect_512x512_against_512x640.zip": Case(
        out=("1 differ in aspect", "differ in aspect: 0: ", "padded 512 x 640", "square 512 x 512"),
        sources=["0"],
        candidates=2,
    ),
    "colon_in_top_folder.zip": Case(sources=["0"], candidates=1),
    "deflate64_method_9.zip": Case(2, ("'lq/0.png'", "Deflate64", "unpack it and import the folder")),
    "finder_utf8_without_flag.zip": Case(out=("ignored: 1 hidden",), sources=["photo \xe9"], candidates=2),
    "jfif_outputs.zip": Case(sources=["0"], candidates=2),
    "letter_case_of_stems.zip": Case(2, ("differs only in case from lq/Face01.PNG", "--ignore-case")),
    "manifest_beside_lq.zip": Case(sources=["0", "1"], candidates=4),
    "nfc_lq_nfd_methods.zip": Case(sources=["photo \xe9"], candidates=2),
    "powershell5_backslash_directories.zip": Case(sources=["0"], candidates=2),
    "restorer_suffixes.zip": Case(
        2, ("--strip-suffix=_00", "--strip-suffix=_out", "--strip-suffix=_SwinIR", "real-esrgan end in '_out'")
    ),
    "same_pixels_other_bytes.zip": Case(sources=["0"], candidates=2),
}
REMEDIES = {
    "letter_case_of_stems.zip": Case(sources=["Face01"], candidates=2, options=("--ignore-case",)),
    "restorer_suffixes.zip": Case(
        sources=["0001"], candidates=3, options=("--strip-suffix=_00", "--strip-suffix=_out", "--strip-suffix=_SwinIR")
    ),
}


@pytest.fixture
def check(database: Database, annotate_here: AnnotateHere) -> Check:
    """Imports a path and compares with what is right; gives what was said."""

    def run(path: Path, case: Case) -> str:
        said = annotate_here("import", path, *case.options)
        text = said.stderr if case.code else said.stdout
        assert said.returncode == case.code, said
        assert "Traceback" not in said.stderr
        for part in case.out:
            assert part in text, text
        with database.read() as session:
            assert list(session.scalars(select(Source.key).order_by(Source.key))) == case.sources
            assert session.scalar(select(func.count()).select_from(Candidate)) == case.candidates
        return text

    return run


@pytest.mark.parametrize("name", TABLES)
def test_table(check: Check, tmp_path: Path, name: str) -> None:
    shutil.copytree(find_case("tables"), tmp_path / "tables")
    said = check(tmp_path / "tables" / name, TABLES[name])
    assert TABLES[name].code == 0 or len(said.splitlines()) == 1


@pytest.mark.parametrize("name", ZIPS)
def test_zip(check: Check, name: str) -> None:
    check(find_case(f"import/{name}"), ZIPS[name])


@pytest.mark.parametrize("name", REMEDIES)
def test_remedy_works(check: Check, name: str) -> None:
    path = find_case(f"import/{name}")
    check(path, ZIPS[name])
    check(path, REMEDIES[name])


def test_float_seed_is_a_seed(check: Check, database: Database, tmp_path: Path) -> None:
    shutil.copytree(find_case("tables"), tmp_path / "tables")
    check(tmp_path / "tables" / "float_seed.csv", TWO)
    with database.read() as session:
        seeds = select(Method.name, Candidate.seed).join(Method, Method.id == Candidate.method_id)
        assert {tuple(row) for row in session.execute(seeds)} == {("A", 1), ("B", 0)}


def test_manifest_beside_lq_gives_person_and_caption(check: Check, database: Database) -> None:
    check(find_case("import/manifest_beside_lq.zip"), ZIPS["manifest_beside_lq.zip"])
    with database.read() as session:
        rows = session.execute(select(Source.group, Source.caption, Source.split)).all()
        assert {(row.group, row.caption) for row in rows} == {("p1", "hello")}
        assert len({row.split for row in rows}) == 1
        assert set(session.scalars(select(Method.name))) == {"A", "b"}


def test_same_pixels_make_no_pair(check: Check, database: Database, annotate_here: AnnotateHere) -> None:
    check(find_case("import/same_pixels_other_bytes.zip"), ZIPS["same_pixels_other_bytes.zip"])
    assert annotate_here("pair").returncode == 0
    with database.read() as session:
        assert session.scalar(select(func.count()).select_from(Image)) == 3, "the bytes differ"
        assert session.scalar(select(func.count()).select_from(Pair)) == 0


def test_photos_under_two_names_share_group_and_split(
    check: Check, database: Database, annotate_here: AnnotateHere
) -> None:
    names = [f"{number:02}{copy}" for number in range(12) for copy in ("", " (1)")]
    said = check(
        find_case("import/photos_under_two_names.zip"),
        Case(out=("12 share a picture", "share a picture: 00"), sources=sorted(names), candidates=48),
    )
    assert "in its group and split" in said
    found = {row.key: (row.group, row.split) for row in fetch(database, select(Source))}
    assert all(found[name] == found[f"{name} (1)"] for name in names if "(" not in name)
    assert len({group for group, _ in found.values()}) == 12
    assert annotate_here("import", find_case("import/photos_under_two_names.zip")).returncode == 0
    assert {row.key: (row.group, row.split) for row in fetch(database, select(Source))} == found


def test_names_are_stored_normalised(check: Check, database: Database) -> None:
    check(find_case("import/nfc_lq_nfd_methods.zip"), ZIPS["nfc_lq_nfd_methods.zip"])
    (key,) = fetch(database, select(Source.key))
    assert unicodedata.is_normalized("NFC", key)
