"""Train a tiny restorer on a folder of faces, as a run: `python -m refl pretrain`."""

from __future__ import annotations

import logging
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from db.errors import UserError
from refl.pretrain.config import PHASES, PretrainOptions, load_options, preset_names
from runs.hold import hold_folder
from runs.licences import write_recorded
from runs.options import Command, Place, Presets, make_absolute
from runs.store import record
from training.settings import choose_folder, dump_deciding

log = logging.getLogger(__name__)


def settle_pretrain(options: PretrainOptions, data: Path) -> PretrainOptions:
    """Choose the folder of a training that names none.

    Raises:
        UserError: no faces are named.
    """
    options = make_absolute(options)
    if not options.faces:
        raise UserError("No faces are named. Give --faces DIR, a folder of face images.")

    def dump(short: bool) -> list[Any]:
        model = options.model.model_dump(mode="json", exclude_defaults=short)  # what its sampling is as well
        return [*map(str, options.faces), model, dump_deciding(options.train, short)]

    out = options.out or choose_folder(data / "restorers", Path(options.preset).stem, dump)
    return make_absolute(options.model_copy(update={"out": out}))


def run_pretrain(options: PretrainOptions, place: Place) -> None:
    """Train as a run."""
    from refl.pretrain.data import load_faces
    from refl.pretrain.train import pretrain  # here: these load torch, which --help and a wrong flag need not wait for

    out, model, config = options.out, options.model, options.train
    assert out is not None  # settled
    with record(PRETRAIN, options, place) as (_, run), ExitStack() as held:

        def progress(phase: str, done: int, total: int, values: dict[str, float]) -> None:
            run.progress(done, total, phase=phase, **values)
            shown = ", ".join(f"{name} {value:.4g}" for name, value in values.items())
            log.info("%s: step %s of %s: %s", phase, f"{done:,}", f"{total:,}", shown)

        log.info("training in %s", out)
        # the first two may be trained by two runs at once; the third reads them
        for phase in PHASES if options.phase in (None, "diffusion") else [options.phase]:
            held.enter_context(hold_folder(out / phase))
        trained, held_out, digest = load_faces(options.faces, model.image_size_px, config)
        out.mkdir(parents=True, exist_ok=True)
        write_recorded(out, run.licences)  # the card has them
        measured = pretrain(trained, held_out, digest, model, config, out, progress, options.phase)
        run.write_result({"out": str(out), "measured": measured})
        print(f"the restorer is {out}" if "diffusion" in measured else f"{options.phase} is trained, in {out}")


PRETRAIN = Command(
    "refl pretrain",
    "train a tiny restorer on a folder of faces",
    PretrainOptions,
    run_pretrain,
    "Settings are those of a preset or a file; each can be replaced by its flag. The same command again continues a "
    "training that was stopped.",
    settle_pretrain,
    Presets(preset_names, load_options),
    uses=lambda options: [{"kind": "data terms", "value": options.train.data_terms}],
)
