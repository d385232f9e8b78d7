"""Describe a command once: a pydantic model of its options gives its flags, config, command words, form and inputs.

`Command` binds a name, the model and the function that runs it. A field of the model is an option; a field that is a
model itself is a table of settings, which a preset fills and single flags replace. `Input` and `Output` mark the fields
that name what a run is made from and what it writes; these are stored with the run.
"""

from __future__ import annotations

import argparse
import enum
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from decimal import Decimal
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any, Generic, Literal, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError
from pydantic.fields import FieldInfo

from db.errors import UserError
from runs.finding import Finding

OWN = "options"
"""The table of a command's own options, beside those of its presets."""
COMMERCIAL_FLAG = "--commercial"
"""Of every command, no option of one: it changes nothing of what a run does, it refuses."""
PACKAGES = ("annotate", "reward", "refl", "runs")
"""Whose `commands.py` lists COMMANDS."""

SettingType = Literal["whole number", "number", "text", "switch", "choice", "choices", "numbers", "names"]


class Options(BaseModel):
    """What a command can be told."""

    model_config = ConfigDict(extra="forbid", frozen=True)


M = TypeVar("M", bound=BaseModel)
O = TypeVar("O", bound=Options)  # noqa: E741, the usual name of a type parameter is one letter


def make_absolute(options: O) -> O:
    """The options with their paths absolute, as a run records them."""
    changed: dict[str, Any] = {}
    for name, value in options:
        if isinstance(value, Path):
            changed[name] = value.expanduser().absolute()
        elif isinstance(value, list) and any(isinstance(item, Path) for item in value):
            changed[name] = [item.expanduser().absolute() for item in value]
    return options.model_copy(update=changed)


@dataclass(frozen=True)
class Input:
    """Mark an option that names what a run is made from."""

    kind: str
    """'dataset', 'reward', 'restorer', 'labeler', 'faces', …: what a page offers, and how it checks a value."""
    label: str = ""
    """What a page calls it; empty for its name in words."""
    needed: bool = False
    """Whether a page asks for it though the option may be left out, since a stored config can name it."""


@dataclass(frozen=True)
class Output:
    """Mark the option that names the folder or file which a run writes."""

    label: str = "Folder of the result"


@dataclass(frozen=True)
class Flag:
    """Say how a command line gives an option, where that is not `--name VALUE`."""

    positional: bool = False
    repeated: bool = False
    """Of several values: each has the flag before it."""
    name: str = ""
    """Another name than the field's."""
    metavar: str = ""
    alone: str | None = None
    """The value of a flag without one; '' of one that takes several values says that it may have none."""
    rest: bool = False
    """Whether all words after the flag are its values, those that look like flags too."""
    terminal_only: bool = False
    """Whether no page shows it."""


@dataclass(frozen=True)
class Setting:
    """One option, or one field of a table of settings."""

    table: str
    name: str
    type: SettingType
    description: str
    choices: tuple[str, ...]
    length: int
    """Of numbers: how many; 0 for any number of them."""
    optional: bool
    """Whether None is a value: the command chooses."""
    required: bool
    default: Any
    has_off: bool
    """Of a switch: whether `--no-NAME` turns it off."""
    is_path: bool
    limits: tuple[Any, ...]
    """What annotated-types bounds it by."""
    adapter: TypeAdapter[Any]
    how: Flag = Flag()
    input: Input | None = None
    output: Output | None = None

    @property
    def key(self) -> str:
        """'train.max_steps'"""
        return f"{self.table}.{self.name}"

    @property
    def flag(self) -> str:
        """'--max-steps'; '' of a positional option."""
        return "" if self.how.positional else f"--{self.word.replace('_', '-')}"

    @property
    def word(self) -> str:
        """'method': what its flag, and a page's link, call it."""
        return self.how.name or self.name

    @property
    def help(self) -> str:
        """The description, with the default of an option that has one worth saying."""
        usual = self.default
        if self.table != OWN or self.required or usual in (None, False, True, "", [], ()):
            return self.description
        return f"{self.description} (default: {' '.join(map(to_word, usual)) if self.is_many else to_word(usual)})"

    @property
    def is_many(self) -> bool:
        """Whether it takes several values."""
        return self.type in ("choices", "numbers", "names")


@dataclass(frozen=True)
class Presets:
    """Where the tables of a command's settings come from."""

    names: Callable[[], list[str]]
    load: Callable[[str, Mapping[str, Mapping[str, Any]]], Mapping[str, Any]]
    """(a preset or file, changes by table) -> the tables, and options that a stored config names; raises UserError."""
    memory_gib: Mapping[str, float] = field(default_factory=dict)
    """Preset -> what `--memory` counts for it, without what CUDA itself takes; empty where nothing counts."""


@dataclass(frozen=True)
class Place:
    """Where a command works: the data folder, its database's URL where it is another, the run that was queued for
    it."""

    data: Path = Path("data")
    db: str | None = None
    run: int | None = None


@dataclass(frozen=True)
class Command(Generic[O]):
    """A command of `python -m PACKAGE NAME`."""

    name: str
    """Package and subcommand: 'annotate pair'."""
    about: str
    """One line, in lower case, for the list of commands."""
    options: type[O]
    run: Callable[[O, Place], None]
    description: str = ""
    """More, for `--help`; empty for `about`."""
    settle: Callable[[O, Path], O] = field(default=lambda options, _data: options)
    """Fill in what depends on the data folder and refuse what cannot be meant, without loading anything heavy."""
    presets: Presets | None = None
    trains: bool = False
    """Whether several processes can share it."""
    aliases: tuple[str, ...] = ()
    """Older names of the subcommand."""
    check: Callable[[Place], list[Finding]] | None = None
    """What `runs doctor` shall say of what it needs; asked while a page is made, so quick and without torch."""
    uses: Callable[[O], list[dict[str, str]]] = field(default=lambda _options: [])
    """What it uses besides its inputs and what has a licence: kind and value, as `inputs` gives them."""

    @cached_property
    def settings(self) -> tuple[Setting, ...]:
        """All its options, table by table."""
        return tuple(read_settings(self.options, from_presets=self.presets is not None))

    def value(self, options: O, setting: Setting) -> Any:
        """What these options say of one of them."""
        return getattr(options if setting.table == OWN else getattr(options, setting.table), setting.name)

    def make(self, given: Mapping[str, Any]) -> O:
        """The options of these values, by the options' names; what is left out has its default or the preset's value.

        Raises:
            UserError: a value is not allowed, or there is no such option; the message names its flag.
        """
        if unknown := sorted(given.keys() - {setting.name for setting in self.settings}):
            raise UserError(f"{self.name} has no option {unknown[0]}.")
        values = {setting.name: given[setting.name] for setting in self.settings if _is_own(setting, given)}
        if self.presets:
            tables: dict[str, dict[str, Any]] = {}
            for setting in self.settings:
                if setting.table != OWN:
                    tables.setdefault(setting.table, {})
                    if setting.name in given:
                        tables[setting.table][setting.name] = given[setting.name]
            preset = str(given.get("preset") or "")
            if not preset:
                raise UserError(f"Give --preset {' | '.join(self.presets.names())}, or --config FILE.")
            values = {"preset": preset, **self.presets.load(preset, tables), **values}
        try:
            return self.options.model_validate(values)
        except ValidationError as error:
            raise UserError(self.describe(error)) from error

    def describe(self, error: ValidationError) -> str:
        """What is wrong with options, by their flags."""
        fault = error.errors()[0]
        named = [setting for setting in self.settings if setting.name in fault["loc"]]
        said = describe_fault(fault, named[-1] if named else None)
        if not named:
            return said
        return say_fault(named[-1].flag or named[-1].how.metavar or named[-1].name, said, fault)

    def config(self, options: O) -> dict[str, Any]:
        """What a run is of, as JSON values: the same whoever starts it."""
        return options.model_dump(mode="json")

    def words(self, options: O) -> list[str]:
        """The words of a command line that gives these options; those with their defaults are left out."""
        before: list[str] = []
        words: list[str] = []
        usual: Mapping[str, Any] = {}
        if self.presets:
            preset = str(getattr(options, "preset", ""))
            words.append(f"--preset={preset}" if preset in self.presets.names() else f"--config={preset}")
            with suppress(UserError):  # a file that is whole with some flags alone: all of them are written then
                usual = self.presets.load(preset, {})
        for setting in self.settings:
            value = self.value(options, setting)
            if setting.table == OWN:
                is_usual = not setting.required and value == setting.default
            else:
                is_usual = value == getattr(usual[setting.table], setting.name) if usual else value is None
            if not is_usual and not (self.presets and setting.name == "preset"):
                (before if setting.how.positional else words).extend(to_words(setting, value))
        # Positional words come first, or behind dashes: what follows a flag of several values is taken for one of them.
        return [*words, "--", *before] if any(word.startswith("-") for word in before) else before + words

    def inputs(self, options: O) -> list[dict[str, str]]:
        """What a run of these options is made from: option, kind and value, paths absolute."""
        return [
            {"option": setting.name, "kind": setting.input.kind, "value": value}
            for setting in self.settings
            if setting.input
            for value in _values_of(self.value(options, setting))
        ]

    def outputs(self, options: O) -> list[dict[str, str]]:
        """What a run of these options writes."""
        return [
            {"option": setting.name, "value": value}
            for setting in self.settings
            if setting.output
            for value in _values_of(self.value(options, setting))
        ]


def list_commands(package: str) -> tuple[Command[Any], ...]:
    """The commands of `python -m PACKAGE`, in the order of its help; none of a package without commands."""
    # By name, as a run's process is started by name: runs knows no package that stands above it.
    return import_module(f"{package}.commands").COMMANDS if package in PACKAGES else ()


def find_command(name: str) -> Command[Any] | None:
    """A command by the name that a run has as its kind; None of one that is not there (any more)."""
    package, _, subcommand = name.partition(" ")
    return next((one for one in list_commands(package) if one.name == name or subcommand in one.aliases), None)


def _is_own(setting: Setting, given: Mapping[str, Any]) -> bool:
    return setting.table == OWN and setting.name in given


def _values_of(value: Any) -> Iterator[str]:
    for item in value if isinstance(value, list | tuple) else (value,):
        if item not in (None, ""):
            text = str(item)
            path = without_name(text)
            is_path = isinstance(item, Path) or "/" in path or Path(path).expanduser().exists()
            yield str(Path(path).expanduser().absolute()) if is_path else path


def without_name(value: str) -> str:
    """The value behind NAME=, where it is not a path that exists as it stands."""
    name, equals, rest = value.partition("=")
    return rest if equals and "/" not in name and not Path(value).expanduser().exists() else value


def read_settings(model: type[BaseModel], *, from_presets: bool, table: str = OWN) -> Iterator[Setting]:
    """The fields of a model in their order, those of the tables inside it after them."""
    tables = {}
    for name, info in model.model_fields.items():
        kind = info.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            tables[name] = kind
        else:
            yield read_setting(table, name, info, has_off=(from_presets and table != OWN) or info.default is True)
    for name, kind in tables.items():
        yield from read_settings(kind, from_presets=from_presets, table=name)


def read_setting(table: str, name: str, info: FieldInfo, *, has_off: bool) -> Setting:
    """One field of a model."""
    whole: Any = info.annotation
    kind, optional = _without_none(whole)
    inner = next(iter(get_args(kind)), None) if get_origin(kind) in (tuple, list) else None
    limits = [*info.metadata, *(_metadata_of(inner) if inner is not None else ())]
    bare = get_args(inner)[0] if get_origin(inner) is Annotated else inner
    marks: dict[type, Any] = {type(mark): mark for mark in info.metadata}
    return Setting(
        table=table,
        name=name,
        type=_type_of(kind),
        description=info.description or "",
        choices=_choices_of(inner if get_origin(kind) is list else kind),
        length=len(get_args(kind)) if get_origin(kind) is tuple and Ellipsis not in get_args(kind) else 0,
        optional=optional,
        required=info.is_required(),
        default=None if info.is_required() else info.get_default(call_default_factory=True),
        has_off=has_off,
        is_path=Path in (kind, bare),
        limits=tuple(limits),
        adapter=TypeAdapter(Annotated[whole, *info.metadata] if info.metadata else whole),
        how=marks.get(Flag, Flag()),
        input=marks.get(Input),
        output=marks.get(Output),
    )


def _without_none(kind: Any) -> tuple[Any, bool]:
    """(the type, whether it may be None as well)."""
    if get_origin(kind) in (Union, types.UnionType):
        (kept,) = [arg for arg in get_args(kind) if arg is not type(None)]
        return kept, True
    return kind, False


def _metadata_of(kind: Any) -> Iterator[Any]:
    """The limits of `Annotated[float, Field(ge=0)]`."""
    for note in get_args(kind)[1:] if get_origin(kind) is Annotated else ():
        yield from note.metadata if isinstance(note, FieldInfo) else [note]


def _type_of(kind: Any) -> SettingType:
    if get_origin(kind) is Literal or (isinstance(kind, type) and issubclass(kind, enum.Enum)):
        return "choice"
    if get_origin(kind) is tuple:
        return "numbers"
    if get_origin(kind) is list:
        (inner,) = get_args(kind)
        return {"choice": "choices", "text": "names"}.get(_type_of(inner), "numbers")  # type: ignore[return-value]
    if get_origin(kind) is Annotated:
        return _type_of(get_args(kind)[0])
    plain: dict[Any, SettingType] = {bool: "switch", int: "whole number", float: "number", str: "text", Path: "text"}
    return plain[kind]


def _choices_of(kind: Any) -> tuple[str, ...]:
    if get_origin(kind) is Literal:
        return tuple(map(str, get_args(kind)))
    return tuple(str(member.value) for member in kind) if isinstance(kind, type) and issubclass(kind, enum.Enum) else ()


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser], command: Command[Any]) -> None:
    """Add a command's parser, with a flag for each of its options."""
    about = command.description or f"{command.about[0].upper()}{command.about[1:]}."
    parser = commands.add_parser(
        command.name.partition(" ")[2],
        aliases=command.aliases,
        help=command.about.replace("%", "%%"),
        description=about.replace("%", "%%"),
    )
    if command.presets:
        where = parser.add_mutually_exclusive_group(required=True)
        names = command.presets.names()
        where.add_argument("--preset", choices=names, dest="preset", help="settings that ship with the project")
        where.add_argument(
            "--config",
            metavar="FILE",
            dest="preset",
            help="settings from a TOML file like a preset, or from a config.json",
        )
    groups: dict[str, Any] = {OWN: parser}
    for setting in command.settings:
        if not command.presets or setting.name != "preset":
            if setting.table not in groups:
                groups[setting.table] = parser.add_argument_group(f"settings: {setting.table}")
            _add_flag(groups[setting.table], setting)
    parser.set_defaults(command=command)


def _add_flag(group: argparse._ActionsContainer, setting: Setting) -> None:
    """A flag of one option; without it the namespace lacks the option."""
    mark = setting.how
    options: dict[str, Any] = {"help": setting.help.replace("%", "%%"), "default": argparse.SUPPRESS}
    names = [setting.name] if mark.positional else [setting.flag]
    if not mark.positional:
        options |= {"dest": setting.name, "required": setting.required and setting.table == OWN}
    if setting.type == "switch":
        group.add_argument(
            *names, action=argparse.BooleanOptionalAction if setting.has_off else "store_true", **options
        )
        return
    if setting.choices:  # argparse would refuse another in several lines, with the usage before
        options["metavar"] = f"{{{','.join(setting.choices)}}}"
    else:
        options["metavar"] = mark.metavar or ("DIR" if setting.is_path else METAVARS.get(setting.type, "X"))
    if mark.alone is not None:
        options |= {"nargs": "*", "action": "extend"} if setting.is_many else {"nargs": "?", "const": mark.alone}
    elif mark.positional:
        options["nargs"] = {True: "+" if setting.required else "*", False: None if setting.required else "?"}[
            setting.is_many
        ]
    elif mark.rest:
        options["nargs"] = argparse.REMAINDER
    elif mark.repeated:
        options["action"] = "append"
    elif setting.is_many:
        options["nargs"] = setting.length or "+"
        if setting.type != "numbers":
            options["action"] = "extend"  # so that --methods=NAME can be given several times: a name may begin with -
    group.add_argument(*names, **options)


METAVARS = {"whole number": "N", "numbers": "N", "names": "NAME"}


def to_words(setting: Setting, value: Any) -> list[str]:
    """The words by which a command line gives this value.

    A value that begins with dashes stays a value: it is written behind the flag's equals sign, a path as one from here.

    Raises:
        UserError: a command line cannot say it: it takes away what stands there without the flag, or is just "--".
    """
    if setting.type == "switch":
        return [setting.flag] if value else [f"--no-{setting.flag[2:]}"] if setting.has_off else []
    if value is None or (setting.is_many and not value and setting.how.alone is None):
        if setting.default or setting.table != OWN:
            raise UserError(f"{setting.flag}: a command line cannot take its value away; give one.")
        return []
    words = [to_word(item) for item in (value if setting.is_many else [value])]
    if setting.is_path and (setting.how.positional or setting.is_many):
        words = [f"./{word}" if word.startswith("-") else word for word in words]
    if setting.how.positional:
        return words
    if setting.how.rest:
        return [setting.flag, *words] if words else []
    if "--" in words:  # argparse drops it
        raise UserError(f"{setting.flag}: a command line cannot hold -- as a value.")
    alone = not setting.is_many or setting.how.repeated or (len(words) == 1 and setting.type != "numbers")
    if alone or (setting.type == "names" and any(word.startswith("-") for word in words)):
        return [f"{setting.flag}={word}" for word in words]
    return [setting.flag, *words]


def to_word(value: Any) -> str:
    """A single value as a command line has it."""
    if isinstance(value, enum.Enum):
        return str(value.value)
    if isinstance(value, float):
        short = f"{value:g}"
        word = short if float(short) == value else repr(value)
        # -1e-05 would be taken for a flag
        return f"{Decimal(word):f}" if word.startswith("-") and "e" in word else word
    return str(value)


def describe_fault(fault: Mapping[str, Any], setting: Setting | None = None) -> str:
    """What to give instead, of one of pydantic's errors, as a sentence."""
    kind, limits = fault["type"], {name: _in_words(value) for name, value in fault.get("ctx", {}).items()}
    if setting and setting.is_many and (kind in ("missing", "tuple_type") or kind.startswith("too_")):
        noun = "numbers" if setting.type == "numbers" else "values"
        return f"Give {setting.length or 'one or more'} {noun} with spaces between."
    words = {
        "missing": "This is needed.",
        "int_parsing": "Give a whole number.",
        "int_from_float": "Give a whole number.",
        "float_parsing": "Give a number.",
        "string_too_short": "This may not be empty.",
        "greater_than_equal": f"Give {limits.get('ge')} or more.",
        "greater_than": f"Give more than {limits.get('gt')}.",
        "less_than_equal": f"Give {limits.get('le')} or less.",
        "less_than": f"Give less than {limits.get('lt')}.",
        "literal_error": f"Choose one of {', '.join(setting.choices) if setting else limits.get('expected')}.",
        "enum": f"Choose among {', '.join(setting.choices) if setting else limits.get('expected')}.",
    }
    said = words.get(kind) or f"{str(fault['msg']).removeprefix('Value error, ').removesuffix('.')}."
    return said if "_" in said.partition(" ")[0] or said.startswith("-") else said[0].upper() + said[1:]


def say_fault(where: str, said: str, fault: Mapping[str, Any]) -> str:
    """A fault as a line that begins with where it is, and ends with what was given."""
    if fault["type"] in ("missing", "value_error") or where in said:
        return said if where in said else f"{where}: {said}"
    return f"{where}: {said[:-1]}, got {fault['input']!r}."


def make_table(kind: type[M], values: Mapping[str, Any], where: str, changes: Mapping[str, Any] | None = None) -> M:
    """A table of settings: the values of a preset or file, and changes over them.

    Args:
        where: the values come from.
    Raises:
        UserError: a value is not allowed; said with the flag of a change, else with where it was read.
    """
    changes = changes or {}
    try:
        return kind.model_validate({**values, **changes})
    except ValidationError as error:
        fault = error.errors()[0]
        name = ".".join(map(str, fault["loc"]))
        setting = next((one for one in read_settings(kind, from_presets=True, table=where) if one.name == name), None)
        said = describe_fault(fault, setting)
        if setting and name in changes:
            raise UserError(say_fault(setting.flag, said, fault)) from error
        raise UserError(f"{where}: {say_fault(name, said, fault) if name else said}") from error


def _in_words(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:g}" if isinstance(value, float) else str(value)


def read_namespace(command: Command[O], args: argparse.Namespace) -> O:
    """The options that a parser read.

    Raises:
        UserError: a value is not allowed.
    """
    return command.make(_given(command, args))


def _given(command: Command[Any], args: argparse.Namespace) -> dict[str, Any]:
    names = (setting.name for setting in command.settings)
    return {name: getattr(args, name) for name in names if hasattr(args, name)}


class _Parser(argparse.ArgumentParser):
    """Says what is wrong by an error, where argparse's would end the program."""

    def error(self, message: str) -> Any:
        raise UserError(message)


def read_words(command: Command[O], words: Sequence[str]) -> O:
    """The options that a command line without --data, --db and --run gives.

    Raises:
        UserError: the command would refuse them.
    """
    return command.make(parse_words(command, words))


def parse_words(command: Command[Any], words: Sequence[str]) -> dict[str, Any]:
    """What a command line gives, by the options' names: texts, not checked yet.

    Raises:
        UserError: the command has no such flags.
    """
    commands: Any = _Parser().add_subparsers(parser_class=_Parser)
    add_parser(commands, command)
    parser: argparse.ArgumentParser = commands.choices[command.name.partition(" ")[2]]
    parser.add_argument(COMMERCIAL_FLAG, action="store_true")
    return _given(command, parser.parse_args(list(words)))
