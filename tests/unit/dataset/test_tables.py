"""Tables as Excel, pandas and Windows write them: read, or refused in one line with what to do."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pytest

from annotate.ingest.layout import read_folder
from annotate.ingest.manifest import COLUMNS, add_manifest, find_manifest, read_manifest
from dataset.tables import parse_seed, read_table
from db.errors import UserError

ROWS = [{"source": "0012", "lq": "lq/a.png", "seed": "1"}, {"source": "0013", "lq": "lq/b.png", "seed": ""}]


def read(path: Path) -> list[dict[str, str]]:
    return [row for _, row in read_table(path, COLUMNS, required=("source",))]


def as_csv(delimiter: str = ",") -> str:
    stream = io.StringIO()
    writer = csv.DictWriter(stream, list(ROWS[0]), delimiter=delimiter)
    writer.writeheader()
    writer.writerows(ROWS)
    return stream.getvalue()


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
@pytest.mark.parametrize("marked", [True, False])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
@pytest.mark.parametrize("newline", ["\r\n", "\n", "\r"])
def test_delimiters_encodings_and_line_ends(
    tmp_path: Path, delimiter: str, encoding: str, newline: str, marked: bool
) -> None:
    mark = "\ufeff" if marked and encoding in ("utf-16-le", "utf-16-be") else ""
    text = mark + as_csv(delimiter).replace("\r\n", newline)
    (tmp_path / "t.csv").write_bytes(text.encode(encoding))
    assert read(tmp_path / "t.csv") == ROWS


@pytest.mark.parametrize(
    "text",
    [
        "\n\r\n,,\nsource,lq,seed\n0012,lq/a.png,1\n0013,lq/b.png,\n",
        "sep=;\nsource;lq;seed\n0012;lq/a.png;1\n0013;lq/b.png;\n",
        '"sep=;"\r\nsource;lq;seed\r\n0012;lq/a.png;1\r\n0013;lq/b.png;\r\n',
        "\ufeffSEP=;,,\nsource;lq;seed\n0012;lq/a.png;1\n0013;lq/b.png;\n",
        "sep=\t\nsource\tlq\tseed\n0012\tlq/a.png\t1\n0013\tlq/b.png\t\n",
        "\ufeff\ufeffsource,lq,seed\n0012,lq/a.png,1\n0013,lq/b.png,\n",
        "Unnamed: 0.1,Unnamed: 0,source,lq,seed\n0,0,0012,lq/a.png,1\n1,1,0013,lq/b.png,\n",
        "Source , LQ,Seed\n0012,lq/a.png,1\n,,\n0013,lq/b.png,\n,,\n\n",
        "source,lq,seed,,\n0012,lq/a.png,1,,\n0013,lq/b.png,,,\n",
        "source,lq,seed\n0012,lq/a.png,1,,,\n0013,lq/b.png,\n",
        ",source,lq,seed\n0,0012,lq/a.png,1\n1,0013,lq/b.png,\n",
        "Unnamed: 0,source,lq,seed\n0,0012,lq/a.png,1\n1,0013,lq/b.png,\n",
        '"source";"lq";"seed"\n"0012";"lq/a.png";"1"\n"0013";"lq/b.png";""\n',
    ],
)
def test_what_spreadsheets_and_pandas_add(tmp_path: Path, text: str) -> None:
    (tmp_path / "t.csv").write_text(text)
    assert read(tmp_path / "t.csv") == ROWS


def test_lines_are_counted_as_an_editor_does(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("\n\nsource,lq\n\nx,a,b\n")
    with pytest.raises(UserError, match=r"t.csv, line 5: 3 values for 2 columns \(source, lq\)"):
        read(tmp_path / "t.csv")


@pytest.mark.parametrize(
    ("text", "seed"),
    [
        ("1.0", 1),
        ("1,0", 1),
        ("12.", 12),
        ("007", 7),
        ("nan", 0),
        ("NaN", 0),
        ("<NA>", 0),
        ("#N/A", 0),
        ("None", 0),
        ("", 0),
    ],
)
def test_seeds(text: str, seed: int) -> None:
    assert parse_seed(text) == seed


@pytest.mark.parametrize("text", ["1.5", "-1", "1e3", "one", "1.0.0", "99999999999", "٣"])
def test_no_seeds(text: str) -> None:
    with pytest.raises(UserError, match="is not a whole number from 0 to 2147483647"):
        parse_seed(text)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"PK\x03\x04" + bytes(20), "is a spreadsheet or a zip, whatever its name; save it as CSV"),
        (b"<!doctype html>\n", "has no rows below its first line '<!doctype html>'. The first line names the columns"),
        (b"", "has no rows at all. The first line names the columns"),
    ],
)
def test_what_is_no_table_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "t.csv").write_bytes(content)
    with pytest.raises(UserError, match=message):
        read_manifest(tmp_path / "t.csv")


def test_an_address_is_no_path(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("source,lq\nx,https://example.org/x.png\n")
    with pytest.raises(UserError, match="is an address; download the file"):
        read_manifest(tmp_path / "t.csv")


@pytest.mark.parametrize("name", ["علی\u200cرضا", "👩\u200d👩"])
def test_what_joins_letters_belongs_to_a_name(tmp_path: Path, name: str) -> None:
    (tmp_path / "t.csv").write_text(f"source,person\n{name},{name}\n")
    assert read(tmp_path / "t.csv") == [{"source": name, "person": name}]


def test_a_manifest_that_would_be_passed_over_is_said(tmp_path: Path) -> None:
    (tmp_path / "lq").mkdir()
    (tmp_path / "lq" / "meta.csv").write_text("source,person\nx,Ada\n")
    with pytest.raises(UserError, match=r"meta.csv is a manifest; move it up beside lq/"):
        find_manifest(tmp_path)
    (tmp_path / "lq" / "meta.csv").unlink()
    (tmp_path / "meta.json").write_text('[{"source": "x", "person": "Ada"}]')
    with pytest.raises(UserError, match=r"meta.json is a manifest as one list; .*\.jsonl"):
        find_manifest(tmp_path)


def test_json_lines_as_pandas_writes_them(tmp_path: Path) -> None:
    rows = ['{"Source":12,"LQ":"lq/a.png","Seed":1.0,"Caption":null}', '{"Source":13,"LQ":"lq/b.png","Seed":NaN}']
    (tmp_path / "t.jsonl").write_text("\ufeff" + "\r\n".join(rows) + "\r\n\r\n")
    assert read(tmp_path / "t.jsonl") == [
        {"source": "12", "lq": "lq/a.png", "seed": "1", "caption": ""},
        {"source": "13", "lq": "lq/b.png", "seed": ""},
    ]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "t.csv",
            "source,caption\nx,fröhlich\n".encode("latin-1"),
            r"byte 0xf6, 'ö' in Windows-1252\); save it as UTF",
        ),
        ("t.csv", "source\nx".encode("utf-16")[:-1], "not UTF-8 text"),
        ("t.csv", b"source,lq,\nx,a.png,more\n", "'more' stands in a column without a name"),
        ("t.csv", b",source\nx,y\n", "'x' stands in a column without a name"),
        ("t.csv", b"Source,source\nx,y\n", "line 1: a column is named twice: source, source"),
        ("t.jsonl", b'{"source": "x", "Source": "y"}', "a column is named twice: source"),
        ("t.jsonl", rb'{"source": "x", "caption": "\ud83d"}', r"line 1: caption '\\ud83d' has half a character"),
        ("t.jsonl", rb'{"source": "\udc80"}', r"line 1: source '\\udc80' has half a character"),
        ("t.jsonl", b"[" * 100_000, "line 1: not JSON"),
        ("t.jsonl", b'{"source": "x", "seed": 1e999}', "seed is inf; expected"),
    ],
)
def test_refusals_are_one_line(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        read(tmp_path / name)
    assert len(str(caught.value).splitlines()) == 1
    str(caught.value).encode("utf-8")


def test_paths_with_quotes_backslashes_and_other_accents(restored_folder: Path) -> None:
    (restored_folder / "lq" / "face0.png").rename(restored_folder / "lq" / "e\u0301.png")
    (restored_folder / "t.csv").write_text('source,lq,hq\nx,lq\\\xe9.png,"""hq/face0.png"""\n', encoding="utf-8")
    source = read_manifest(restored_folder / "t.csv").sources["x"]
    assert (source.lq, source.hq) == ("lq/e\u0301.png", "hq/face0.png")


def test_a_path_of_another_computer_says_what_to_write(restored_folder: Path) -> None:
    (restored_folder / "t.csv").write_text("source,lq\nx,C:\\faces\\lq\\0.png\n")
    with pytest.raises(UserError, match=r"is a path of another computer; name the file from .*such as 'lq/0.png'"):
        read_manifest(restored_folder / "t.csv")


def test_images_that_a_manifest_does_not_name_are_counted(restored_folder: Path) -> None:
    (restored_folder / "t.csv").write_text("source,lq\nx,lq/face0.png\n")
    why = "not named in the manifest"
    assert read_manifest(restored_folder / "t.csv").ignored == [(f"lq/face{n}.png", why) for n in (1, 2, 3)]


# --- a manifest beside lq/ ------------------------------------------------------------------------


def plan_with(folder: Path, text: str, name: str = "people.csv"):
    (folder / name).write_text(text, encoding="utf-8")
    plan = read_folder(folder)
    manifest = find_manifest(folder)
    assert manifest == folder / name
    add_manifest(plan, manifest)
    return plan


def test_it_adds_persons_and_captions(restored_folder: Path) -> None:
    for file in (restored_folder / "lq").glob("*.txt"):
        file.unlink()
    plan = plan_with(restored_folder, "Source;Person;Caption\nface0;ann;smiling\nface1.png;ann;\n")
    assert [plan.sources[key].group for key in ("face0", "face1", "face2")] == ["ann", "ann", None]
    assert plan.sources["face0"].caption == "smiling"
    assert plan.ignored == []
    assert sum(len(source.candidates) for source in plan.sources.values()) == 11


def test_a_file_that_it_names_is_what_it_says(restored_folder: Path) -> None:
    plan = plan_with(
        restored_folder, "source,lq,method,restored,seed\nface0,,GFPGAN v1.4,gfpgan/face0.png,7\nann,lq/face1.png,,,\n"
    )
    assert ("gfpgan", 0) not in plan.sources["face0"].candidates
    assert plan.sources["face0"].candidates["GFPGAN v1.4", 7] == "gfpgan/face0.png"
    assert "face1" not in plan.sources
    assert plan.sources["ann"].lq == "lq/face1.png"
    assert plan.sources["ann"].candidates["gfpgan", 0] == "gfpgan/face1.png"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("source,caption\nface0,another\n", "caption 'another' there, but 'portrait number 0' in the folder"),
        ("source,hq\nface0,hq/face1.png\n", "hq 'hq/face1.png' there, but 'hq/face0.png' in the folder"),
        ("source,quality\nface0,3\n", "unknown column 'quality'"),
    ],
)
def test_contradictions_are_refused(restored_folder: Path, text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        plan_with(restored_folder, text)


def test_other_tables_are_none(restored_folder: Path) -> None:
    drawn = {"image": "face0.png", "seed": 0, "lq": "lq/face0.png", "degradation": {"noise_std": 3.5}}
    (restored_folder / "degradations.jsonl").write_text(json.dumps(drawn) + "\n")  # as `refl degrade` leaves it
    (restored_folder / "gold.csv").write_text("source,method_a,method_b,answer\nface0,a,b,a\n")
    assert find_manifest(restored_folder) is None
    for name in ("one.csv", "two.tsv"):
        (restored_folder / name).write_text("source\tperson\nface0\tann\n")
    with pytest.raises(UserError, match=r"several tables that could be its manifest: one.csv, two.tsv"):
        find_manifest(restored_folder)
