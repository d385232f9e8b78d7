"""A command described once: its flags, words, config, and what its runs are made from."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import pytest
from pydantic import BaseModel, ConfigDict, Field, model_validator
from sqlalchemy import select

import runs.commands
from db.errors import UserError
from db.models import Run, RunState
from db.session import Database
from runs.__main__ import main
from runs.launch import describe_run
from runs.options import Command, Flag, Input, Options, Output, Place, Presets, find_command, make_table, read_words
from runs.store import record


class Colour(enum.Enum):
    red = "red"
    blue = "blue"


class Shape(BaseModel):
    """A table of settings."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    width: int = Field(ge=1, le=99, description="Width")
    name: str = Field("", description="Name")
    mean: tuple[float, float, float] = Field((0.1, 0.2, 0.3), description="Mean")
    smooth: bool = Field(True, description="Smooth")
    weights: Annotated[str, Input("weights")] = Field("", description="Where it starts")

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.width == 13:
            raise ValueError("width is 13; take another")
        return self


SHAPES: dict[str, dict[str, Any]] = {"small": {"width": 3}, "large": {"width": 30, "smooth": False, "mean": [1, 2, 3]}}


def load_shape(preset: str, changes: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    if preset not in SHAPES:
        raise UserError(f"There is no preset {preset!r}.")
    return {"shape": make_table(Shape, SHAPES[preset], preset, changes.get("shape"))}


class ToyOptions(Options):
    """An option of every form that a command line has."""

    places: Annotated[list[Path], Input("photos"), Flag(positional=True, metavar="PLACE")] = Field(
        [], description="Places"
    )
    preset: str = Field(description="A preset")
    scorer: Annotated[list[str], Input("reward"), Flag(repeated=True, metavar="[NAME=]MODEL")] = Field(
        [], description="Scorers"
    )
    methods: list[str] = Field([], description="Methods, together")
    splits: list[Literal["train", "val", "test"]] = Field([], description="Splits, together")
    seeds: tuple[int, ...] = Field((0,), min_length=1, description="Any number of numbers")
    window: tuple[float, float] | None = Field(None, description="Two numbers")
    colour: Colour = Field(Colour.red, description="A choice")
    rate: float = Field(0.5, gt=0, lt=1, description="A share, 50% of it")
    count: int | None = Field(None, ge=1, description="A count")
    title: Annotated[str, Flag(name="called")] = Field("", description="By another name")
    keep: bool = Field(True, description="On, and can be put off")
    dry_run: bool = Field(False, description="Off, and can be put on")
    ray: Annotated[str | None, Flag(alone="local")] = Field(None, description="With or without a value")
    slurm: Annotated[list[str] | None, Flag(alone="")] = Field(None, description="With or without values")
    out: Annotated[Path | None, Output()] = Field(None, description="Folder of the result")
    shape: Shape


def settle_toy(options: ToyOptions, data: Path) -> ToyOptions:
    return options.model_copy(update={"out": options.out or data / "toys"})


def run_toy(options: ToyOptions, place: Place) -> None:
    with record(TOY, options, place) as (_, run):
        run.write_result({"out": str(options.out)})


TOY = Command(
    "runs toy",
    "make a toy, 100% of it",
    ToyOptions,
    run_toy,
    settle=settle_toy,
    presets=Presets(lambda: list(SHAPES), load_shape),
)


class WorkOptions(Options):
    """Options of a command without presets: one word that is needed, and some that may follow."""

    action: Annotated[Literal["add", "take"], Flag(positional=True)] = Field(description="What is done")
    names: Annotated[list[str], Flag(positional=True)] = Field([], description="To whom")
    preset: str = Field("", description="No preset here")


WORK = Command("runs work", "work", WorkOptions, lambda _options, _place: None)


@pytest.fixture(autouse=True)
def _listed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The one place where a command is added."""
    monkeypatch.setattr(runs.commands, "COMMANDS", (*runs.commands.COMMANDS, TOY, WORK))
    monkeypatch.chdir(tmp_path)


def test_a_command_added_in_one_place_is_run_recorded_and_shown(
    database: Database, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a=b").mkdir()
    words = ["photos", "a=b", "--preset=large", "--scorer=mine=models/m", "--scorer=hps-v2.1", "--width=31"]
    assert main(["toy", *words, "--data", str(data)]) == 0
    with database.read() as session:
        run = session.scalars(select(Run)).one()
    assert (run.kind, run.state) == ("runs toy", RunState.finished)
    assert run.config["places"] == ["photos", "a=b"]
    assert (run.config["preset"], run.config["rate"], run.config["colour"]) == ("large", 0.5, "red")
    assert run.config["shape"] == {"width": 31, "name": "", "mean": [1, 2, 3], "smooth": False, "weights": ""}
    assert run.inputs == [
        {"option": "places", "kind": "photos", "value": str(tmp_path / "photos")},
        {"option": "places", "kind": "photos", "value": str(tmp_path / "a=b")},
        {"option": "scorer", "kind": "reward", "value": str(tmp_path / "models" / "m")},
        {"option": "scorer", "kind": "reward", "value": "hps-v2.1"},
    ]
    assert run.outputs == [{"option": "out", "value": str(data / "toys")}]
    command = find_command("runs toy")
    assert command is TOY
    described = describe_run(command, read_words(command, words), data)
    assert described == {"arguments": words, "config": run.config, "inputs": run.inputs, "outputs": run.outputs}
    with pytest.raises(SystemExit):
        main(["toy", "--help"])
    said = capsys.readouterr().out
    for flag in ("--scorer [NAME=]MODEL", "--keep, --no-keep", "--dry-run", "--called X", "--ray [X]", "--slurm [NAME"):
        assert flag in said, flag
    for words_of in ("50% of it (default: 0.5)", "[PLACE ...]", "--smooth, --no-smooth", "{train,val,test}"):
        assert words_of in said, words_of


MANY: list[dict[str, Any]] = [
    {},
    {"places": ["a", "-b", "--"], "methods": ["x"], "title": "-t"},
    {"places": ["--dry-run"]},
    {"scorer": ["-n=-m", "b"], "methods": ["-x", "y=-z", ""], "splits": ["val", "test"]},
    {"methods": ["with words", "ö;$(x)"], "seeds": [-1, 2, 30], "window": [-1e-05, 1e20]},
    {"window": [-1e20, -0.1], "rate": 0.1234567890123, "colour": "blue", "count": 7},
    {"keep": False, "dry_run": True, "smooth": False, "ray": "local", "slurm": []},
    {"ray": "ray://host:1", "slurm": ["timeout_min=600", "-x=1"], "out": "-out"},
    {"preset": "large", "smooth": True, "mean": [0.1, -0.2, 3], "width": 30, "weights": "-w"},
    {"preset": "large", "smooth": False, "mean": [1, 2, 3], "name": "--preset=small"},
]


@pytest.mark.parametrize("values", MANY)
def test_words_say_what_is_read_from_them(values: dict[str, Any]) -> None:
    options = TOY.make({"preset": "small", **values})
    words = TOY.words(options)
    again = read_words(TOY, words)
    assert again == options
    assert TOY.words(again) == words
    for name, value in values.items():
        setting = next(one for one in TOY.settings if one.name == name)
        if name != "preset" and value != setting.default:
            assert str(getattr(again, name, None) or getattr(again.shape, name, None)), name


def test_words_of_every_text_read_back() -> None:
    hypothesis = pytest.importorskip("hypothesis", reason="needs hypothesis: `make install`")
    st = hypothesis.strategies
    text = st.one_of(
        st.text(st.characters(blacklist_characters="\0", blacklist_categories=["Cs"]), max_size=6).filter(
            lambda drawn: drawn != "--"
        ),
        st.sampled_from(["-", "--keep", "-1", "a=b", "--scorer=x", "=", "--data", "@f"]),
    )
    number = st.floats(allow_nan=False, allow_infinity=False)
    values = st.fixed_dictionaries(
        {"preset": st.sampled_from(["small", "large"])},
        optional={
            "places": st.lists(text.map(Path), max_size=3),
            "scorer": st.lists(text, max_size=3),
            "methods": st.lists(text, max_size=3),
            "splits": st.lists(st.sampled_from(["train", "val", "test"]), max_size=3),
            "seeds": st.lists(st.integers(), min_size=1, max_size=3),
            "window": st.none() | st.tuples(number, number),
            "count": st.none() | st.integers(min_value=1),
            "rate": st.floats(0, 1, exclude_min=True, exclude_max=True),
            "title": text,
            "ray": st.none() | text,
            "slurm": st.none() | st.lists(text, max_size=3),
            "out": st.none() | text.map(Path),
            "keep": st.booleans(),
            "dry_run": st.booleans(),
            "smooth": st.booleans(),
            "width": st.integers(1, 12),
            "mean": st.tuples(number, number, number),
            "name": text,
        },
    )

    @hypothesis.settings(max_examples=150, deadline=None, database=None)
    @hypothesis.given(values)
    def check(given: dict[str, Any]) -> None:
        options = TOY.make(given)
        words = TOY.words(options)
        again = read_words(TOY, words)
        assert again == options
        assert TOY.words(again) == words

    check()


def test_options_named_preset_are_like_others_where_there_are_no_presets() -> None:
    options = WORK.make({"action": "add", "names": ["-x", "y"], "preset": "small"})
    assert WORK.words(options) == ["--preset=small", "--", "add", "-x", "y"]
    assert read_words(WORK, WORK.words(options)) == options
    assert WORK.words(WORK.make({"action": "take"})) == ["take"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--rate", "2"], "--rate: Give less than 1, got '2'."),
        (["--count", "x"], "--count: Give a whole number, got 'x'."),
        (["--count=-1"], "--count: Give 1 or more, got '-1'."),
        (["--seeds", "1", "y"], "--seeds: Give a whole number, got 'y'."),
        (["--window", "1"], "argument --window: expected 2 arguments"),
        (["--colour", "green"], "--colour: Choose among red, blue, got 'green'."),
        (["--width", "100"], "--width: Give 99 or less, got '100'."),
        (["--width", "13"], "small: Width is 13; take another."),
        (["--wings=2"], "unrecognized arguments: --wings=2"),
        (["--no-dry-run"], "unrecognized arguments: --no-dry-run"),
        (["--config=x"], "argument --config: not allowed with argument --preset"),
    ],
)
def test_a_fault_is_one_line_that_names_its_flag(words: list[str], said: str) -> None:
    with pytest.raises(UserError) as error:
        read_words(TOY, ["--preset=small", *words])
    assert str(error.value) == said


def test_what_no_command_line_refuses_is_refused_as_well() -> None:
    with pytest.raises(UserError, match=r"^runs toy has no option wings\.$"):
        TOY.make({"preset": "small", "wings": 2})
    with pytest.raises(UserError, match=r"^Give --preset small \| large, or --config FILE\.$"):
        TOY.make({})
    with pytest.raises(UserError, match="There is no preset 'huge'"):
        read_words(TOY, ["--config=huge"])
    with pytest.raises(UserError, match=r"^--seeds: Give one or more numbers with spaces between, got \[\]\.$"):
        TOY.make({"preset": "small", "seeds": []})
    with pytest.raises(UserError, match=r"^action: This is needed\.$"):
        WORK.make({})


def test_a_value_that_a_command_line_cannot_say_is_refused() -> None:
    class KeptOptions(Options):
        names: list[str] = Field(["a"], description="Names")

    command = Command("runs kept", "keep", KeptOptions, lambda _options, _place: None)
    with pytest.raises(UserError, match=r"^--names: a command line cannot take its value away; give one\.$"):
        command.words(command.make({"names": []}))
    with pytest.raises(UserError, match=r"^--names: a command line cannot hold -- as a value\.$"):
        command.words(command.make({"names": ["a", "--"]}))


def test_a_file_that_needs_a_flag_to_be_whole_is_started_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SHAPES, "part", {"smooth": False})
    with pytest.raises(UserError, match=r"^part: width: This is needed\.$"):
        TOY.make({"preset": "part"})
    options = TOY.make({"preset": "part", "width": 4})
    assert read_words(TOY, TOY.words(options)) == options


def test_a_wrong_value_of_a_preset_is_named_with_where_it_was_read() -> None:
    with pytest.raises(UserError, match=r"^my\.toml: width: Give 1 or more, got 0\.$"):
        make_table(Shape, {"width": 0}, "my.toml", {"name": "x"})
    with pytest.raises(UserError, match=r"^my\.toml: wings: Extra inputs are not permitted, got 2\.$"):
        make_table(Shape, {"width": 1, "wings": 2}, "my.toml")
