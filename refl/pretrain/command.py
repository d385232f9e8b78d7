"""`python -m refl pretrain`: train a tiny restorer on a folder of faces, as a run."""

from __future__ import annotations

import argparse
import logging
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from db.errors import UserError
from refl.pretrain.config import (
    MAY_CHANGE,
    PHASES,
    PretrainConfig,
    check_pretrain_config,
    preset_names,
    read_settings,
)
from refl.restorers.tiny_config import TinyConfig
from reward.train.command import add_flag, choose_folder
from runs.hold import hold_folder
from runs.store import open_database_run

log = logging.getLogger(__name__)

CONFIGS: dict[str, type[BaseModel]] = {"model": TinyConfig, "train": PretrainConfig}


def add_pretrain_command(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """`pretrain`: a flag for every field of the model and of its training."""
    parser = commands.add_parser(
        "pretrain",
        help="train a tiny restorer on a folder of faces",
        description="Settings are those of a preset or a file; each can be replaced by its flag. The same command "
        "again continues a training that was stopped.",
    )
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--preset", choices=preset_names(), help="settings that ship with the project")
    where.add_argument("--config", metavar="FILE", help="settings from a TOML file like a preset")
    parser.add_argument(
        "--faces", type=Path, nargs="+", metavar="DIR", help="folders of face images of any size, with those below"
    )
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="folder of the restorer (default: in DATA/restorers, by settings)"
    )
    parser.add_argument("--phase", choices=PHASES, help="train this one alone (default: all in turn)")
    for table, fields in CONFIGS.items():
        group = parser.add_argument_group(f"settings: {table}")
        for name, field in fields.model_fields.items():
            add_flag(group, name, field.annotation, str(field.description))
    parser.set_defaults(command=run_pretrain)


def read_config(args: argparse.Namespace) -> tuple[list[Path], Path, TinyConfig, PretrainConfig]:
    """(faces, out, model, training) of the preset or file with the flags over it.

    Raises:
        UserError: no faces are named, or a value is not allowed.
    """
    name = args.preset or args.config
    settings = read_settings(name)
    for table, fields in CONFIGS.items():
        given = {field: getattr(args, field) for field in fields.model_fields}
        settings[table] |= {field: value for field, value in given.items() if value is not None}
    model, config = check_pretrain_config(settings, name)
    named = args.faces or settings.get("faces")
    if not named:
        raise UserError("No faces are named. Give --faces DIR, a folder of face images.")
    faces = [Path(folder).expanduser().absolute() for folder in ([named] if isinstance(named, str) else named)]

    def list_deciding(short: bool) -> list[Any]:
        trained = config.model_dump(mode="json", exclude=MAY_CHANGE, exclude_defaults=short)
        return [*map(str, faces), model.model_dump(mode="json", exclude_defaults=short), trained]

    out = args.out or settings.get("out") or choose_folder(args.data / "restorers", Path(name).stem, list_deciding)
    return faces, Path(out).expanduser().absolute(), model, config


def describe_run(folders: list[Path], out: Path, model: TinyConfig, config: PretrainConfig) -> dict[str, Any]:
    """What the run is of, as JSON values: what `read_config` gave."""
    return {
        "model": model.model_dump(mode="json"),
        "train": config.model_dump(mode="json"),
        "faces": [str(folder) for folder in folders],
        "out": str(out),
    }


def run_pretrain(args: argparse.Namespace) -> None:
    """Train as a run."""
    from refl.pretrain.data import load_faces
    from refl.pretrain.train import pretrain  # here: these load torch, which --help and a wrong flag need not wait for

    folders, out, model, config = read_config(args)
    resolved = {**describe_run(folders, out, model, config), "phase": args.phase}
    with open_database_run(args.data, args.db, "refl pretrain", resolved, args.run) as run, ExitStack() as held:

        def progress(phase: str, done: int, total: int, values: dict[str, float]) -> None:
            run.progress(done, total, phase=phase, **values)
            shown = ", ".join(f"{name} {value:.4g}" for name, value in values.items())
            log.info("%s: step %s of %s: %s", phase, f"{done:,}", f"{total:,}", shown)

        log.info("training in %s", out)
        for phase in [args.phase] if args.phase else PHASES:  # the first two may be trained by two runs at once
            held.enter_context(hold_folder(out / phase))
        trained, held_out, digest = load_faces(folders, model.image_size_px, config)
        out.mkdir(parents=True, exist_ok=True)
        measured = pretrain(trained, held_out, digest, model, config, out, progress, args.phase)
        run.write_result({"out": str(out), "measured": measured})
        print(f"the restorer is {out}" if "diffusion" in measured else f"{args.phase} is trained, in {out}")
