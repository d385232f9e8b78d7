"""Presets are read strictly, and say what is wrong."""

from __future__ import annotations

import pytest

from db.errors import UserError
from reward.model.config import load_model_config, preset_names


def test_every_preset_is_valid():
    assert preset_names() == ["tiny", "vit-b-32", "vit-h-14", "vit-l-14"]
    for name in preset_names():
        config = load_model_config(name)
        assert all(field.description for field in type(config).model_fields.values())


def test_the_paper_is_a_preset():
    config = load_model_config("vit-h-14")
    assert (config.architecture, config.unlocked_image_groups, config.unlocked_text_blocks) == ("ViT-H-14", 20, 11)
    assert (config.interpolation, config.antialias) == ("bicubic", True)


def test_single_fields_are_replaced():
    assert load_model_config("tiny", text_mode="fixed").text_mode == "fixed"


def test_a_persons_own_file(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text('[model]\narchitecture = "tiny"\nunlocked_image_groups = 1\nunlocked_text_blocks = 0\n')
    assert load_model_config(str(path)).image_size_px == 224


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[train]\nsteps = 1\n", r"no table \[model\]"),
        ("[model\n", "not TOML"),
        ('[model]\narchitecture = "tiny"\nunlock = 3\n', "unlocked_image_groups: This is needed"),
        (
            '[model]\narchitecture = "tiny"\nunlocked_image_groups = 1\nunlocked_text_blocks = 0\nlayers = 3\n',
            "layers: Extra inputs are not permitted, got 3",
        ),
    ],
)
def test_a_wrong_file_is_named_with_its_fault(tmp_path, text, message):
    path = tmp_path / "mine.toml"
    path.write_text(text)
    with pytest.raises(UserError, match=message) as error:
        load_model_config(str(path))
    assert str(path) in str(error.value)


def test_an_unknown_preset_lists_those_there_are():
    with pytest.raises(UserError, match=r"'vit-g'.*tiny, vit-b-32"):
        load_model_config("vit-g")
