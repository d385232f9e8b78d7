"""The forms of the Train page: made of the configs, and nothing that they say is refused by the command itself."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from pydantic import Field

from db.errors import UserError
from runs.devices import list_devices
from runs.options import Command, Flag, Input, Options, Output, Setting, read_words
from runs.rounds import plan_round
from ui.train.fields import UNITS, Typed, parse, range_of, to_typed
from ui.train.form import WHOLE_FORM, Request, check, describe_form, first_preset, read_back, say_command
from ui.train.forms import FORMS, Form
from ui.train.inputs import Choice
from ui.train.round import read_round

NASTY = ["$(touch pwned)", "; rm -rf ~ #", "--db=sqlite:///x", "-x", "a\nb", "'\"`|&<>*?\\", "  ", "=", "ä 脸"]


@pytest.fixture
def places(tmp_path: Path) -> dict[str, str]:
    """A dataset, a reward model, a restorer, a labeler and faces, as folders are known by."""
    for file in ("dataset/pairs.jsonl", "frm/best/config.json", "tuned/trained.json", "faces/a.png"):
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_text("{}")
    (tmp_path / "data" / "runs" / "7").mkdir(parents=True)
    (tmp_path / "data" / "runs" / "7" / "labeler.json").write_text("{}")
    return {name: str(tmp_path / name) for name in ("dataset", "frm", "tuned", "faces", "data")}


def inputs_of(kind: str, places: dict[str, str]) -> dict[str, list[str]]:
    """What the kind cannot do without."""
    return {
        "reward train": {"dataset": [places["dataset"]]},
        "reward construct": {"dataset": [places["dataset"]]},
        "reward set": {"dataset": [places["dataset"]], "model": [places["frm"], "mine=hps-v2.1"]},
        "reward score": {"scorer": [places["frm"]]},
        "reward evaluate": {"dataset": [places["dataset"]], "scorer": [places["frm"], "mine=hps-v2.1"]},
        "refl pretrain": {"faces": [places["faces"]]},
        "refl train": {
            "restorer": [places["tuned"]],
            "reward": [places["frm"]],
            "dataset": [places["dataset"]],
        },
        "refl restore": {"method": ["tiny"]},
        "refl evaluate": {"method": ["tiny", places["tuned"]]},
    }.get(kind, {})


def ask(kind: str, places: dict[str, str], **values: Typed) -> Request:
    """A form with the inputs that it needs; `train__seed="1"` is the field train.seed."""
    named = {name.replace("__", "."): value for name, value in values.items()}
    return Request(kind=kind, preset=first_preset(FORMS[kind]), inputs=inputs_of(kind, places), values=named)


def others(field: Setting, default: Typed) -> Iterator[Typed]:
    """What may be typed into a field instead of its default."""
    if field.type == "switch":
        yield not default
    elif field.type == "choices":
        yield from ([choice] for choice in field.choices)
        yield list(field.choices)
    elif field.type in ("text", "names"):
        yield from ("two words", "one\ntwo words")
    yield from (word for word in field.choices if word != default)
    for word in ("1", "2", "3", "7", "16", "0.25", "0.6", "1e-3"):
        yield word
        yield " ".join([word] * (field.length or 2))


ALL_FIELDS = [(kind, key) for kind in FORMS for key in FORMS[kind].fields]


@pytest.mark.parametrize(("kind", "key"), ALL_FIELDS, ids=[f"{kind}: {key}" for kind, key in ALL_FIELDS])
def test_a_changed_field_is_one_flag_that_the_command_reads_as_meant(
    kind: str, key: str, places: dict[str, str]
) -> None:
    field, data = FORMS[kind].fields[key], Path(places["data"])
    plain = check(ask(kind, places), data)
    default = next(one for one in describe_form(FORMS[kind], {})["fields"] if one["key"] == key)["default"]
    for typed in others(field, default):
        try:
            if parse(field, typed) == parse(field, default):
                continue
        except ValueError:
            continue
        checked = check(Request(**{**ask(kind, places).model_dump(), "values": {key: typed}}), data)
        assert checked.changed == [key]
        added = [word for word in checked.words if word not in plain.words]
        assert sum(word.startswith("--") for word in added) == 1 or field.is_many
        asked = read_back(FORMS[kind], checked.words)
        assert parse(field, asked.values[key]) == parse(field, typed)
        # and from there to the same words again, beside the command's own defaults
        assert set(checked.words) <= set(check(asked, data).words)
        return
    raise AssertionError("nothing but the default could be typed")


@pytest.mark.parametrize("kind", FORMS)
def test_every_preset_is_a_form_without_faults_and_no_flags(kind: str, places: dict[str, str]) -> None:
    described = describe_form(FORMS[kind], {})
    assert described["preset"] in (described["presets"] or [""])
    assert described["preset"] in ("", "tiny", "tiny-refl")
    for preset in described["presets"] or [""]:
        asked = ask(kind, places).model_copy(update={"preset": preset})
        # every value as the page holds it: none of them is a change
        asked.values.update(
            described["presets"].get(preset, {one["key"]: one["default"] for one in described["fields"]})
        )
        checked = check(asked, Path(places["data"]))
        assert (checked.errors, checked.changed) == ({}, [])
        assert len([word for word in checked.words if word.startswith("--")]) == len(
            [value for wanted in FORMS[kind].inputs if wanted.flag for value in asked.inputs.get(wanted.word, [])]
        ) + bool(preset)
        json.dumps(checked.config)
    shown = [field["name"] for field in described["fields"] if field["shown"]]
    inputs = {wanted.word for wanted in FORMS[kind].inputs}
    assert set(shown) == FORMS[kind].shown - inputs, "a field of that name is gone"
    for field in described["fields"]:
        assert field["description"], field["key"]


def test_a_field_says_its_range_unit_and_choices() -> None:
    fields = FORMS["refl train"].fields
    assert (fields["train.max_steps"].type, range_of(fields["train.max_steps"])) == ("whole number", "1 or more")
    assert range_of(fields["train.learning_rate"]) == "above 0 to 1"
    assert range_of(fields["train.ema_decay"]) == "0 to below 1"
    assert (UNITS["px"], range_of(fields["degradation.blur_kernel_px"])) == ("pixels", "1 to 255")
    assert (fields["trajectory.gradient_window"].type, fields["trajectory.gradient_window"].length) == ("numbers", 2)
    assert range_of(fields["trajectory.gradient_window"]) == "0 to 999"
    assert fields["train.on_hacking"].choices == ("warn", "stop", "roll_back", "brake")
    assert to_typed(fields["train.learning_rate"], 5e-5) == "5e-05"
    assert to_typed(fields["trajectory.eta"], (0.0, 1.0)) == "0 1"


@pytest.mark.parametrize(
    ("kind", "values", "place", "said"),
    [
        ("reward train", {"train__max_steps": "0"}, "train.max_steps", "Give 1 or more."),
        ("reward train", {"train__max_steps": "many"}, "train.max_steps", "Give a whole number."),
        ("reward train", {"train__max_steps": ""}, "train.max_steps", "Give a whole number."),
        ("reward train", {"train__learning_rate": "0"}, "train.learning_rate", "Give more than 0."),
        ("reward train", {"train__learning_rate": "nan"}, "train.learning_rate", "Give 1 or less."),
        ("reward train", {"train__max_steps": "20"}, "train.warmup_steps", "must be below max_steps, 20"),
        ("reward train", {"model__mean": "0 1"}, "model.mean", "Give 3 numbers"),
        (
            "reward train",
            {"model__text_mode": "song"},
            "model.text_mode",
            "Choose one of caption, fixed, learned, input, input+learned.",
        ),
        ("reward train", {"model__prompt": ""}, "model.prompt", "This may not be empty."),
        ("reward train", {"model__prompt": "a\0b"}, "model.prompt", "Remove control characters"),
        ("reward train", {"train__cache_frozen": "yes"}, "train.cache_frozen", "Not a value of type switch."),
        ("reward train", {"train__none": "1"}, WHOLE_FORM, "has no setting train.none"),
        ("refl train", {"trajectory__gradient_window": "3 1"}, "trajectory.gradient_window", "The low end comes first"),
        ("refl train", {"trajectory__gradient_window": "3 10"}, "trajectory.gradient_window", "there are 10 steps"),
        ("refl train", {"degradation__blur_kernel_px": "10"}, "degradation.blur_kernel_px", "its size is odd"),
        ("refl pretrain", {"model__unet_channels": "10 10 10"}, "model.unet_channels", "multiples of norm_groups"),
        ("refl pretrain", {"train__crop_scale": "0.5 2"}, "train.crop_scale", "must lie in"),
        ("refl restore", {"options__aligned": True}, "options.aligned", "--aligned is about INPUT"),
        ("refl restore", {"options__seeds": ""}, "options.seeds", "Give one or more numbers"),
        ("refl restore", {"options__split": "val", "options__source": "a"}, "options.split", "not both"),
        ("annotate fit", {"options__folds": "1"}, "options.folds", "Give 2 or more."),
        ("annotate label", {"options__splits": ["holiday"]}, "options.splits", "Choose among train, val, test."),
        ("annotate export", {"options__min_agreement": "2"}, "options.min_agreement", "Give 1 or less."),
    ],
)
def test_what_is_wrong_is_said_at_its_field(
    kind: str, values: dict[str, Any], place: str, said: str, places: dict[str, str]
) -> None:
    checked = check(ask(kind, places, **values), Path(places["data"]))
    assert list(checked.errors) == [place]
    assert said in checked.errors[place]
    assert checked.config == {}


@pytest.mark.parametrize(
    ("kind", "inputs", "place", "said"),
    [
        ("reward train", {}, "dataset", "This is needed."),
        ("reward train", {"dataset": ["/nowhere"]}, "dataset", "There is no folder /nowhere."),
        ("reward train", {"dataset": ["{faces}"]}, "dataset", "it has no pairs.jsonl"),
        ("reward train", {"dataset": ["{dataset}", "{dataset}"]}, "dataset", "Give one."),
        ("reward train", {"dataset": ["{dataset}"], "out": ["{dataset}/pairs.jsonl"]}, "out", "is a file"),
        ("reward train", {"dataset": ["x" * 5000]}, "dataset", ""),
        ("reward train", {"dataset": ["a\0b"]}, "dataset", "Remove control characters"),
        ("reward score", {"scorer": ["{faces}"]}, "scorer", "is no reward model"),
        ("reward score", {"scorer": ["no-such-model"]}, "scorer", "no model of that name"),
        ("refl train", {"restorer": ["{faces}"], "reward": ["{frm}"]}, "restorer", "is no restorer"),
        ("refl train", {"restorer": ["feedforward:x"], "reward": ["{frm}"]}, "restorer", "no noise to learn from"),
        ("refl train", {"restorer": ["pmrf"], "reward": ["{frm}"]}, "restorer", "not tuned"),
        ("refl train", {"restorer": ["onnx:x"], "reward": ["{frm}"]}, "restorer", "no noise to learn from"),
        ("refl train", {"restorer": ["tiny"], "reward": ["{frm}"], "faces": ["/no"]}, "faces", "no folder /no"),
        ("refl restore", {"method": ["a=tiny", "b=/no"]}, "method", "no folder /no"),
        ("refl restore", {"method": ["tiny"], "inputs": ["/no.png"]}, "inputs", "no file or folder"),
        ("refl pretrain", {"faces": ["{faces}"], "phase": ["last"]}, "phase", "Choose one of"),
        ("annotate measure", {"metrics": ["nothing"]}, "metrics", "no metric list"),
        ("annotate label", {"labeler": ["99"]}, "labeler", "No such labeler."),
        ("annotate label", {"labeler": ["svm-99-0a1b"]}, "labeler", "No such labeler."),
        ("annotate label", {"labeler": ["../../x"]}, "labeler", "No such labeler."),
        ("annotate fit", {"dataset": ["x"]}, WHOLE_FORM, "takes no dataset"),
    ],
)
def test_inputs_that_are_not_there_are_said_at_their_place(
    kind: str, inputs: dict[str, list[str]], place: str, said: str, places: dict[str, str]
) -> None:
    filled = {name: [value.format(**places) for value in values] for name, values in inputs.items()}
    asked = Request(kind=kind, preset=first_preset(FORMS[kind]), inputs=filled)
    errors = check(asked, Path(places["data"])).errors
    assert list(errors) == [place]
    assert said in errors[place]


def test_presets_and_kinds_that_are_not_there_are_said(places: dict[str, str], tmp_path: Path) -> None:
    data = Path(places["data"])
    assert list(check(Request(kind="rm -rf"), data).errors) == ["kind"]
    for preset in ("none", "", "a\0b", "x" * 5000, str(tmp_path)):
        asked = ask("reward train", places).model_copy(update={"preset": preset})
        assert list(check(asked, data).errors) == ["preset"], preset
    own = tmp_path / "own.toml"
    own.write_text(
        (Path("reward/model/configs") / "tiny.toml").read_text().replace("max_steps = 1000", "max_steps = 777")
    )
    checked = check(ask("reward train", places).model_copy(update={"preset": str(own)}), data)
    assert checked.errors == {}
    assert checked.words[0] == f"--config={own}"
    assert checked.config["train"]["max_steps"] == 777


@pytest.mark.parametrize("text", NASTY)
def test_what_a_shell_would_read_otherwise_stays_a_value(text: str, places: dict[str, str], tmp_path: Path) -> None:
    data = Path(places["data"])
    folder = tmp_path / f"x{text.strip()}".replace("/", "_")
    folder.mkdir()
    (folder / "pairs.jsonl").write_text("")
    asked = ask("reward train", places, model__prompt=text)
    asked.inputs = {"dataset": [str(folder)]}
    checked = check(asked, data)
    assert checked.errors == {}
    from db.models import Run

    typed = shlex.split(say_command(data, Run(kind="reward train", arguments=checked.words, launcher={})))
    assert typed[:4] == ["python", "-m", "reward", "train"]
    options = read_words(FORMS["reward train"].command, typed[4:-1])  # the last is --data
    assert (options.model.prompt, str(options.dataset)) == (text, str(folder))
    for kind, name in (("refl restore", "source"), ("annotate label", "methods")):
        if not text.strip() or "\n" in text:
            continue
        checked = check(ask(kind, places, **{f"options__{name}": text}), data)
        assert getattr(read_words(FORMS[kind].command, checked.words), name) == [text.strip()]


def test_paths_that_look_like_flags_stay_paths(places: dict[str, str], tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "--aligned").mkdir()
    asked = Request(kind="refl pretrain", preset="tiny", inputs={"faces": ["--aligned", places["faces"]]})
    checked = check(asked, Path(places["data"]))
    assert checked.words == ["--preset=tiny", "--faces", "./--aligned", places["faces"]]
    options = read_words(FORMS["refl pretrain"].command, checked.words)
    assert options.faces == [Path("--aligned"), Path(places["faces"])]
    asked = Request(kind="refl restore", inputs={"inputs": ["--aligned"], "method": ["tiny"]})
    checked = check(asked, Path(places["data"]))
    assert (checked.errors, checked.config["aligned"]) == ({}, False)
    assert checked.config["inputs"] == [str(tmp_path / "--aligned")]


def test_a_folder_that_a_run_waited_for_will_make_need_not_be_there(places: dict[str, str], tmp_path: Path) -> None:
    asked = ask("refl train", places)
    asked.inputs["reward"] = [str(tmp_path / "later" / "best")]
    assert list(check(asked, Path(places["data"])).errors) == ["reward"]
    assert check(asked, Path(places["data"]), [tmp_path / "later"]).errors == {}
    asked = Request(kind="refl restore", inputs={"method": [f"mine={tmp_path}/later/tuned"]})
    assert list(check(asked, Path(places["data"])).errors) == ["method"]
    assert check(asked, Path(places["data"]), [tmp_path / "later"]).errors == {}


def test_reward_models_to_compare_get_names(places: dict[str, str]) -> None:
    asked = ask("refl evaluate", places)
    asked.inputs["reward"] = [places["frm"], f"{places['frm']}/best", f"mine={places['frm']}"]
    checked = check(asked, Path(places["data"]))
    assert checked.errors == {}
    assert [value.partition("=")[0] for value in checked.config["reward"]] == ["frm", "frm-2", "mine"]


def test_a_round_with_wrong_settings_is_refused_at_its_field(places: dict[str, str]) -> None:
    data = Path(places["data"])
    settings, errors = read_round({"seeds": "0 1", "max_refl_steps": "20", "include_simulated": True}, data)
    assert errors == {}
    assert settings is not None
    assert (settings.seeds, settings.max_refl_steps, settings.device) == ((0, 1), 20, list_devices()[0])
    for values, place in (
        ({"seeds": "x"}, "seeds"),
        ({"seeds": ""}, "seeds"),
        ({"target_accuracy": "0.4"}, "target_accuracy"),
        ({"restorer": "/nowhere"}, "restorer"),
        ({"device": "cuda:77"}, "device"),
        ({"nothing": "1"}, WHOLE_FORM),
    ):
        settings, errors = read_round(values, data)
        assert (settings, list(errors)) == (None, [place])


def test_a_preset_that_a_command_refuses_makes_no_plan(places: dict[str, str]) -> None:
    data = Path(places["data"])
    settings, _ = read_round({"reward_preset": "none"}, data)
    assert settings is not None
    with pytest.raises(UserError, match="reward train"):
        plan_round(data, 1, settings)
    settings, _ = read_round({}, data)
    assert settings is not None
    configs = {
        one.kind: one.command.config(one.command.settle(one.options, data)) for one in plan_round(data, 1, settings)
    }
    assert configs["reward train"]["train"]["max_steps"] == 1000
    assert configs["refl train"]["reward"] == str(data / "rounds" / "1" / "reward" / "best")


def test_a_new_command_is_a_form_at_once(tmp_path: Path) -> None:
    class Toy(Options):
        faces: Annotated[Path, Input("faces")] = Field(description="Sharp faces")
        out: Annotated[Path | None, Output()] = Field(None, description="Folder of the toys")
        turns: int = Field(3, ge=1, le=9, description="Turns per toy")
        colour: Literal["red", "blue"] = Field("red", description="Colour of the toys")
        device: Annotated[str, Flag(terminal_only=True)] = Field("auto", description="Where it computes")

    toy = Command("annotate toy", "make toys", Toy, lambda _options, _place: None)
    described = describe_form(Form(toy, "Toys", "Makes toys.", frozenset({"turns"})), {"faces": [Choice("a", "the a")]})
    assert [(one["name"], one["required"], one["folded"], one["choices"]) for one in described["inputs"]] == [
        ("faces", True, False, [{"value": "a", "words": "the a"}]),
        ("out", False, True, []),
    ]
    assert [(one["name"], one["flag"], one["type"], one["range"], one["shown"]) for one in described["fields"]] == [
        ("turns", "--turns", "whole number", "1 to 9", True),
        ("colour", "--colour", "choice", "", False),
    ]
    asked = read_back(Form(toy, "", ""), ["--turns=5", f"--faces={tmp_path}"])
    assert (asked.inputs["faces"], asked.values) == ([str(tmp_path)], {"options.turns": "5"})


def test_photos_without_their_input_are_said_in_the_form(places: dict[str, str]) -> None:
    rows = [
        {"split": split, "origin": origin, "lq": photo, "hq": None}
        for split, origin, photo in (
            ("train", "human", "images/a.png"),
            ("train", "human", None),
            ("train", "svm", None),
            ("val", "human", "images/b.png"),
            ("test", "human", None),
        )
    ]
    lines = "".join(json.dumps(row) + "\r\n" for row in rows)  # as Windows may write it
    (Path(places["dataset"]) / "pairs.jsonl").write_text(lines)

    def check_mode(text_mode: str, **values: Typed) -> dict[str, str]:
        asked = ask("reward train", places, model__text_mode=text_mode, **values)
        return check(asked, Path(places["data"])).errors

    assert check_mode("learned") == {}
    (said,) = check_mode("input").values()
    assert "sees the photo that was restored (lq) beside each image; 2 of the 4 pairs lack it." in said
    assert "import the photos with lq and export again" in said
    (said,) = check_mode("input+learned", train__svm_weight="0").values()
    assert "1 of the 3 pairs lack it" in said
    (said,) = check_mode("input", model__input_photo="hq").values()
    assert "(hq) beside each image; all 4 pairs lack it." in said
