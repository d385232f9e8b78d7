"""Write a restorer as a folder that others load without this project: `python -m refl publish`."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path
from typing import Annotated

from pydantic import Field

from refl.restorers.record import RECORD_FILE, TRAINED_FILE, find_base
from reward.model.weights_folder import WeightsFolder, choose_weights_folder
from runs.files import write_folder_whole
from runs.hub import OWN_FOLDER
from runs.licences import find_licences, write_recorded
from runs.options import Command, Flag, Input, Place
from runs.publishing import PublishOptions, check_push, finish_publish, settle_publish

log = logging.getLogger(__name__)

OWN_FILES = (RECORD_FILE, TRAINED_FILE, "config.json", "model.safetensors")
"""Of a restorer's folder, all that this project loads it from."""


class PublishRestorerOptions(PublishOptions):
    """What is published, and how much of it."""

    restorer: Annotated[str, Input("restorer", "Restorer"), Flag(positional=True, metavar="RESTORER")] = Field(
        description="Folder of a tuned restorer (`tuned/` of a training), or a restorer's name such as tiny"
    )
    adapters_only: bool = Field(False, description="Only the adapters of a restorer tuned by LoRA")
    weights: WeightsFolder = None


def run_publish(options: PublishRestorerOptions, place: Place) -> None:
    """Write the folder, whole or not at all, and push it where that is asked for."""
    made_from = find_licences(PUBLISH.inputs(options), place.data)
    check_push(options, made_from)
    from refl.publish.card import format_card  # here: --help need not wait for torch
    from refl.publish.folder import check_publishable, list_adapters, read_use, write_adapters, write_folder
    from refl.restorers.load import load_restorer

    weights = choose_weights_folder(options.weights, place.data)
    restorer = check_publishable(load_restorer(options.restorer, weights_dir=weights), options.restorer)
    use = {} if options.adapters_only else read_use(restorer)
    source = Path(options.restorer).expanduser()
    has_adapters = bool(list_adapters(restorer))
    with write_folder_whole(options.out) as folder:
        if options.adapters_only:
            write_adapters(restorer, folder, options.restorer)
        else:
            write_folder(restorer, folder)
        card = format_card(source, use, made_from, options.licence, has_adapters=has_adapters)
        (folder / "README.md").write_text(card, encoding="utf-8")
        write_recorded(folder, made_from)
        copy_own(source, folder / OWN_FOLDER)
    finish_publish(options, f"the restorer {source.name}")


def copy_own(source: Path, folder: Path) -> None:
    """Copy what this project loads a restorer's folder from, so that `hf:ORG/NAME` is that restorer.

    Nothing of one that was tuned from a folder or file of this machine, which nobody else has.
    """
    base = find_base(str(source))
    if base is not None and "/" in base:
        log.warning("%s was tuned from %s, which only this machine has: without %s/", source, base, OWN_FOLDER)
        return
    for name in OWN_FILES if source.is_dir() else ():
        if (source / name).is_file():
            folder.mkdir(exist_ok=True)
            shutil.copyfile(source / name, folder / name)


PUBLISH = Command(
    "refl publish",
    "write a restorer as a diffusers folder that works without FaceReward",
    PublishRestorerOptions,
    run_publish,
    "The folder is one that diffusers loads: DiffusionPipeline.from_pretrained(FOLDER, custom_pipeline=FOLDER, "
    "trust_remote_code=True) restores as `refl restore` does. Adapters are merged, and written apart in diffusers' own "
    "keys. With --push it becomes a repository of the Hugging Face hub, and hf:ORG/NAME is the restorer here.",
    settle_publish,
)
