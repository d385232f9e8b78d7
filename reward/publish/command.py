"""Write a reward model as a folder that others load without this project: `python -m reward publish`."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Annotated

from pydantic import Field

from db.errors import UserError
from licences.terms import Licensed, format_list
from reward.model.weights_folder import WeightsFolder, choose_weights_folder
from runs.files import write_folder_whole
from runs.hub import OWN_FOLDER
from runs.licences import find_licences, write_recorded
from runs.options import Command, Flag, Input, Place
from runs.publishing import (
    PublishOptions,
    check_push,
    choose_licence,
    finish_publish,
    format_front_matter,
    settle_publish,
)


class PublishRewardOptions(PublishOptions):
    """What is published."""

    reward: Annotated[str, Input("reward", "Reward model"), Flag(positional=True, metavar="MODEL")] = Field(
        description="A checkpoint folder (`best/` of a training), or a published model's name"
    )
    weights: WeightsFolder = None


def run_publish(options: PublishRewardOptions, place: Place) -> None:
    """Write the folder, whole or not at all, and push it where that is asked for."""
    made_from = find_licences(PUBLISH.inputs(options), place.data)
    check_push(options, made_from)
    from reward.model.checkpoint import load_named  # here: --help need not wait for torch
    from reward.model.set_config import find_set
    from reward.publish.folder import write_folder

    if find_set(options.reward) is not None:
        raise UserError(
            f"{options.reward} is a reward set, which is numbers about several models: publish each of its models."
        )
    model = load_named(options.reward, weights_dir=choose_weights_folder(options.weights, place.data))
    source = Path(options.reward).expanduser()
    with write_folder_whole(options.out) as folder:
        write_folder(model, folder)
        (folder / "README.md").write_text(
            format_card(source, model.config.text_mode, made_from, options.licence), encoding="utf-8"
        )
        write_recorded(folder, made_from)
        if (source / "config.json").is_file():  # so that hf:ORG/NAME is this model here
            shutil.copytree(source, folder / OWN_FOLDER)
    finish_publish(options, f"the reward model {source.name}")


def format_card(source: Path, text_mode: str, made_from: list[Licensed], licence: str) -> str:
    """The README.md: front matter for the hub, how it is loaded, and the card that its training wrote."""
    own = source / "README.md"
    trained = own.read_text(encoding="utf-8") if own.is_file() else f"# Reward model {source.name}\n"
    tags = ["open_clip", "face-restoration", "reward-model"]
    lines = format_front_matter(
        choose_licence(licence, made_from), made_from, tags, {"library_name": "open_clip", "pipeline_tag": ""}
    )
    plain = "The cosine of its image and text features is the reward; " if text_mode in ("fixed", "caption") else ""
    return "\n".join(
        [
            *lines,
            trained.rstrip(),
            "",
            "## Load it without FaceReward",
            "",
            "```python",
            "from score import Reward  # in this folder; needs torch, open_clip_torch and safetensors",
            "",
            'rewards = Reward(".")(images)  # (B, 3, H, W) RGB in [0, 1] -> (B,), higher is better',
            "```",
            "",
            f'{plain}`open_clip.create_model_from_pretrained("local-dir:.")` gives the CLIP alone; `score.py` has the',
            "formula of what is more, in `reward_head.safetensors`.",
            "",
            "## Licences of what it was made from",
            "",
            *format_list(made_from),
            "",
        ]
    )


PUBLISH = Command(
    "reward publish",
    "write a reward model as an open_clip folder that works without FaceReward",
    PublishRewardOptions,
    run_publish,
    "open_clip loads the folder as local-dir:FOLDER; score.py in it gives the reward with torch and open_clip alone. "
    "With --push it becomes a repository of the Hugging Face hub, and hf:ORG/NAME is the model here.",
    settle_publish,
)
