"""Sources that share a picture share group and split; databases in which they do not are mended."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image as PilImage
from sqlalchemy import func, select, update

from annotate.__main__ import main
from annotate.ingest.store import import_folder
from annotate.judging.gold import import_gold
from annotate.judging.pairs import lease_pairs, make_pairs
from annotate.judging.people import add_person
from db.errors import UserError
from db.models import Candidate, Image, Lease, Pair, Source, Split
from db.pairs import wanted_judgments
from db.project import ProjectSettings, load_settings, save_settings
from db.records import draw_split
from db.session import Database
from tests.making import fetch, write_photo


def resave(path: Path, to: Path) -> None:
    """The same pixels in other bytes."""
    to.parent.mkdir(parents=True, exist_ok=True)
    with PilImage.open(path) as image:
        image.save(to, compress_level=0)
    assert path.read_bytes() != to.read_bytes()


def find_groups(database: Database) -> dict[str, tuple[str, Split]]:
    return {row.key: (row.group, row.split) for row in fetch(database, select(Source))}


def test_lq_and_hq_join_over_several_photos_and_persons(database: Database, data: Path, tmp_path: Path) -> None:
    folder = tmp_path / "set"
    for number, key in enumerate("abcdef"):
        write_photo(folder / "lq" / f"{key}.png", number)
    resave(folder / "lq" / "a.png", folder / "lq" / "b.png")  # a = b by pixels
    write_photo(folder / "hq" / "b.png", 99)
    resave(folder / "hq" / "b.png", folder / "hq" / "c.png")  # b = c by their ground truth
    (folder / "people.csv").write_text("source,person\nc,cleo\nd,cleo\nd,cleo\ne,eve\n")
    report = import_folder(database, data, folder)
    found = find_groups(database)
    assert [found[key][0] for key in "abcdef"] == ["cleo", "cleo", "cleo", "cleo", "eve", "f"]
    assert {found[key][1] for key in "abcd"} == {draw_split("cleo", 0, 0.1, 0.1)}
    assert sorted(key for key, _ in report.share_a_picture) == ["a", "b"]
    assert import_folder(database, data, folder).share_a_picture == []
    assert find_groups(database) == found


def test_two_persons_in_one_photo_are_one_group(database: Database, data: Path, tmp_path: Path) -> None:
    folder = tmp_path / "set"
    for number, key in enumerate("abcd"):
        write_photo(folder / "lq" / f"{key}.png", number)
    resave(folder / "lq" / "a.png", folder / "lq" / "b.png")
    (folder / "people.csv").write_text("source,person\na,ann\nb,ben\nc,ann\nd,ben\n")
    import_folder(database, data, folder)
    found = find_groups(database)
    assert {group for group, _ in found.values()} == {"ann & ben"}
    assert len({split for _, split in found.values()}) == 1
    import_folder(database, data, folder)
    write_photo(folder / "lq" / "e.png", 9)
    (folder / "people.csv").write_text("source,lq,person\nd,,ben\ne,lq/e.png,ben\n")
    import_folder(database, data, folder / "people.csv")
    assert find_groups(database) == {**found, "e": found["d"]}
    (folder / "people.csv").write_text("source,person\nd,cleo\n")
    with pytest.raises(UserError, match="is already stored with group 'ann & ben', not 'cleo'"):
        import_folder(database, data, folder / "people.csv")


def test_a_copy_that_comes_later_joins_what_is_there(database: Database, data: Path, tmp_path: Path) -> None:
    write_photo(tmp_path / "one" / "lq" / "a.png", 1)
    import_folder(database, data, tmp_path / "one")
    with database.write() as session:
        session.execute(update(Source).values(split=Split.test))
    resave(tmp_path / "one" / "lq" / "a.png", tmp_path / "two" / "lq" / "copy.png")
    report = import_folder(database, data, tmp_path / "two")
    assert find_groups(database) == {"a": ("a", Split.test), "copy": ("a", Split.test)}
    assert report.share_a_picture == [("copy", "shares a picture or person with a: in its group and split, test")]


@pytest.fixture
def leaky(database: Database, data: Path, tmp_path: Path) -> Database:
    """As older versions left it: a, b and c are one photo in three splits, with pairs, one of equal pixels."""
    folder = tmp_path / "old"
    for number, key in enumerate("abcd"):
        write_photo(folder / "lq" / f"{key}.png", 0 if key in "abc" else number)
        for method in "mno":
            write_photo(folder / method / f"{key}.png", 100 * number + ord(method))
    resave(folder / "m" / "d.png", folder / "o" / "d.png")
    import_folder(database, data, folder)
    with database.write() as session:
        for key, split in (("a", Split.train), ("b", Split.val), ("c", Split.test), ("d", Split.train)):
            session.execute(update(Source).where(Source.key == key).values(split=split, group=key))
        make_pairs(session, load_settings(session))
    return database


def test_mend_puts_a_photo_into_one_split_and_says_so(
    leaky: Database, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = find_groups(leaky)
    assert main(["mend", "--dry-run", "--data", str(data)]) == 0
    would = capsys.readouterr().out
    assert "2 photos would be joined to the group of another, 2 of them moved" in would
    assert find_groups(leaky) == before
    assert main(["mend", "--data", str(data)]) == 0
    said = capsys.readouterr().out
    assert "b: shares a picture or person with a: in its group now, moved from val to train" in said
    assert "c: shares a picture or person with a: in its group now, moved from test to train" in said
    assert "d: m and o show the same pixels: not asked any more" in said
    assert find_groups(leaky) == {key: ("d" if key == "d" else "a", Split.train) for key in "abcd"}
    with leaky.read() as session:
        settings = load_settings(session)
        for pair in session.scalars(select(Pair).join(Source).where(Source.key == "c")):
            assert pair.judgments_wanted == wanted_judgments(Split.train, settings)
            assert pair.reserved is (pair.key[-1] in "012")
    assert main(["mend", "--data", str(data)]) == 0
    assert capsys.readouterr().out.startswith("0 photos joined to the group of another, 0 of them moved")


def test_val_and_test_become_val(leaky: Database, data: Path) -> None:
    with leaky.write() as session:
        session.execute(update(Source).where(Source.key == "a").values(split=Split.test))
    assert main(["mend", "--data", str(data)]) == 0
    assert {find_groups(leaky)[key][1] for key in "abc"} == {Split.val}


# --- equal pixels ---------------------------------------------------------------------------------


def equal_pair(session) -> Pair:
    return session.scalars(
        select(Pair).join(Source).where(Source.key == "d").order_by(Pair.judgments_wanted, Pair.id)
    ).first()


def ask_all(session, person, settings: ProjectSettings, rng) -> set[int]:
    seen: set[int] = set()
    while leases := lease_pairs(session, person.id, settings, rng, count=1, holding=sorted(seen)):
        seen.add(leases[0].pair_id)
    return seen


def test_pair_makes_none_of_equal_pixels(
    database: Database, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_photo(tmp_path / "set" / "lq" / "a.png", 1)
    for seed, method in enumerate("mn"):
        write_photo(tmp_path / "set" / method / "a.png", seed)
    resave(tmp_path / "set" / "m" / "a.png", tmp_path / "set" / "o" / "a.png")
    import_folder(database, data, tmp_path / "set")
    assert main(["pair", "--data", str(data)]) == 0
    assert "2 pairs added, 0 were there" in (said := capsys.readouterr().out)
    assert "1 pairs of the same pixels left out" in said


@pytest.mark.parametrize("command", ["mend", "pair"])
def test_equal_pairs_that_are_there_are_asked_no_more(leaky: Database, data: Path, command: str, rng) -> None:
    settings = ProjectSettings(repeat_share=0.5, repeat_gap=1, gold_share=0.5)
    with leaky.write() as session:
        assert session.scalar(select(func.count()).select_from(Pair)) == 12
        person = add_person(session, "Ada")
        asked = ask_all(session, person, settings, rng)
        assert len(asked) == 12
    assert main([command, "--data", str(data)]) == 0
    with leaky.write() as session:
        (pair_id,) = session.scalars(select(Pair.id).where(Pair.judgments_wanted == 0))
        assert session.scalar(select(func.count()).where(Lease.pair_id == pair_id)) == 0
        assert session.scalar(select(func.count()).select_from(Lease)) == 11
        other = add_person(session, "Ben")
        session.query(Lease).delete()
        assert pair_id not in ask_all(session, other, settings, rng)
        save_settings(session, {"judgments_per_pair": 4, "judgments_per_test_pair": 5})
        assert session.scalars(select(Pair.judgments_wanted).where(Pair.id == pair_id)).one() == 0


def test_gold_of_equal_pixels_is_refused(leaky: Database, data: Path, tmp_path: Path) -> None:
    (tmp_path / "gold.csv").write_text("source,method_a,method_b,answer\nd,m,o,TIE\n")
    assert main(["import", str(tmp_path / "gold.csv"), "--data", str(data)]) == 2
    with leaky.write() as session:
        with pytest.raises(UserError, match="line 2: both images have the same pixels"):
            import_gold(session, tmp_path / "gold.csv", dict.fromkeys(session.scalars(select(Image.id)), "same"))
        assert session.scalar(select(func.count()).where(Pair.gold_answer.is_not(None))) == 0


def test_a_judged_equal_pair_is_no_gold_and_no_repeat(leaky: Database, data: Path, rng) -> None:
    assert main(["mend", "--data", str(data)]) == 0
    settings = ProjectSettings(repeat_share=0.0, gold_share=0.5)
    with leaky.write() as session:
        session.execute(update(Pair).where(Pair.judgments_wanted == 0).values(gold_answer="tie"))
        person = add_person(session, "Ada")
        (pair_id,) = session.scalars(select(Pair.id).where(Pair.judgments_wanted == 0))
        assert pair_id not in ask_all(session, person, settings, rng)
        assert session.scalar(select(func.count()).select_from(Candidate)) == 12
