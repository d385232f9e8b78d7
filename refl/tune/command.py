"""Fine-tune a restorer with a reward, as a run: `python -m refl train`."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from db.errors import UserError
from db.models import Split
from db.session import open_database
from refl.restorers.record import takes_many_steps
from refl.tune.card import write_card
from refl.tune.config import (
    Algorithm,
    AlgorithmConfig,
    ReflConfig,
    ReflTrainOptions,
    load_options,
    load_refl_config,
    preset_names,
)
from refl.tune.judge_names import PEOPLE, check_judge, is_judge
from reward.model.weights_folder import choose_weights_folder
from runs.devices import CUDA_GIB
from runs.options import Command, Place, Presets, make_absolute
from training.run import Progress, hold_training, is_first, record_training
from training.settings import choose_folder, dump_deciding

if TYPE_CHECKING:
    from refl.tune.data import Face
    from training.accounting import Phase

log = logging.getLogger(__name__)

HELD_OUT_SHARE = 0.1
MEMORY_GIB = {
    "tiny-refl": 0.2,
    "tiny-dpo": 0.2,
    "tiny-gdpo": 0.2,
    "tiny-grpo": 0.2,
    "gdpo-osediff-24gb": 7.8,
    "osediff-24gb": 12.5,
    "gdpo-24gb": 12.5,
    "grpo-24gb": 12.6,
    "dpo-24gb": 13.2,
    "lora-16gb": 13.5,
    "paper-24gb": 18.5,
    "paper": 30.7,
}
"""What `--memory` counts for each preset on one GPU, of the restorer and reward model that it is for."""
SMALL_PRESETS: dict[Algorithm, tuple[str, ...]] = {
    "refl": ("paper-24gb", "lora-16gb"),
    "dpo": ("dpo-24gb",),
    "gdpo": ("gdpo-24gb",),
    "grpo": ("grpo-24gb",),
}
"""Of each algorithm, for cards that the asked settings do not fit, the larger first."""
SMALL_PRESETS_ONE_STEP: dict[Algorithm, tuple[str, ...]] = {"refl": ("osediff-24gb",), "gdpo": ("gdpo-osediff-24gb",)}
"""The same, for restorers of one step."""


def settle_train(options: ReflTrainOptions, data: Path) -> ReflTrainOptions:
    """Choose the folder of a training that names none, such as 'data/restorers/tiny-paper-3f2a9c1b'.

    Raises:
        UserError: the restorer is one that cannot be tuned.
    """
    if options.restorer.startswith(("feedforward:", "onnx:")):
        raise UserError(
            f"{options.restorer} has no noise to learn from; tune tiny, diffbir-v1, diffbir-v2.1, osediff, hypir, "
            "osdface, pisasr or gdpo."
        )
    if options.restorer == "pmrf":
        raise UserError("pmrf is restored by and not tuned; tune tiny, diffbir-v1, diffbir-v2.1 or a one-step one.")
    check_reward_kind(options)
    asked = [
        str(value) for value in (options.restorer, options.reward, options.faces, options.held_out, options.dataset)
    ]

    def dump(short: bool) -> list[Any]:
        tables = {table: dump_deciding(getattr(options, table), short) for table in ReflConfig.model_fields}
        if options.algorithm == AlgorithmConfig():
            del tables["algorithm"]  # folders were named before there was a choice
        return [asked, tables]

    stem = f"{Path(options.restorer).name}-{Path(options.preset).stem}"
    out = options.out or choose_folder(data / "restorers", stem, dump)
    return make_absolute(options.model_copy(update={"out": out}))


def check_reward_kind(options: ReflTrainOptions) -> None:
    """Check that the algorithm can learn from the reward, as far as is known before anything is loaded.

    Raises:
        UserError: it needs a gradient that the reward has not, or the reward cannot be had.
    """
    method, reward = options.config.method, options.reward
    if reward is None or not is_judge(reward):
        if reward is None and options.train.on_hacking != "warn":
            raise UserError(
                "Nothing rewards, so that no hacking can be seen: set on_hacking to warn, or give --reward."
            )
        return
    if method == "refl":
        raise UserError(
            f"{reward} has no gradient, which algorithm refl follows. Set algorithm to gdpo or grpo, or give a reward "
            "model."
        )
    if options.live_reward.reward_every_steps:
        raise UserError(f"{reward} does not go on learning. Set reward_every_steps to 0.")
    check_judge(reward, own_faces=options.faces is None)
    if reward == PEOPLE and options.train.on_hacking != "warn":
        raise UserError("People are not asked about held-out faces, so no hacking can be seen: set on_hacking to warn.")
    if reward == PEOPLE and options.algorithm.hard_share < 1:
        raise UserError("People are not asked which faces are hard. Set hard_share to 1.")


def choose_faces(options: ReflTrainOptions, place: Place) -> tuple[list[Face], list[Face]]:
    """(faces to train on, faces held out), from folders or from the project by its stored split.

    Of a folder a tenth of the people is held out, see `split_faces`. dpo, which learns from the dataset alone, checks
    by its held-out photos where neither folder is given.
    """
    from refl.tune.data import find_faces, find_held_out_photos, load_faces, split_faces

    if options.config.method == "dpo" and options.faces is None:
        assert options.dataset is not None
        return [], find_faces(options.held_out) if options.held_out else find_held_out_photos(options.dataset)
    if options.faces is None:
        database = open_database(place.data, place.db)
        try:
            found = {split: load_faces(database, place.data, split) for split in (Split.train, Split.val)}
        finally:
            database.close()
        return found[Split.train], find_faces(options.held_out) if options.held_out else found[Split.val]
    faces = find_faces(options.faces)
    if options.held_out:
        return faces, find_faces(options.held_out)
    return split_faces(faces, options.train.seed, HELD_OUT_SHARE)


def run_train(options: ReflTrainOptions, place: Place) -> None:
    """Train as a run, or count its memory; of several processes only the first has the run."""
    weights = choose_weights_folder(options.weights, place.data)
    if options.memory:
        from training.memory import describe_memory

        print(describe_memory(count_memory(options, options.config, weights)))
        return
    out = options.out
    assert out is not None  # settled
    with record_training(TRAIN, options, place) as (run, progress):
        with hold_training(out):
            result = tune(options, place, weights, out, progress)
            if run and (out / "tuned").is_dir():
                asked = {name: getattr(options, name) for name in ("restorer", "reward", "faces", "dataset")}
                named = {name: str(value or "") for name, value in asked.items()}
                if "judge" in result:
                    named["judge"] = "{name}, {version}".format(**result["judge"])
                write_card(out / "tuned", named, options.config.method, result, run.licences)
        if run:
            run.write_result({"out": str(out), **result})
            print(format_result(result, out))


def count_memory(options: ReflTrainOptions, config: ReflConfig, weights: Path) -> dict[str, Phase]:
    """How much memory each process will need, of each phase of its training by part."""
    from refl.tune.memory import count_training
    from reward.model.checkpoint import read_shape
    from reward.model.reward_set import read_combined_shape
    from reward.score.scorer import split_name

    reward, combined = None, None
    architecture: dict[str, Any] = {}
    if options.reward is not None and not is_judge(options.reward):
        what = split_name(options.reward)[1]
        combined = read_combined_shape(what, weights)
        reward, architecture = next(iter(combined[1].values())) if combined else read_shape(what, weights)
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    return count_training(config, options.restorer, reward, architecture, processes, combined=combined).phases


def say_memory(options: ReflTrainOptions, weights: Path, card_gib: float) -> None:
    """Log how much memory each process will need, and which preset fits where the card has less.

    Args:
        card_gib: memory of the card.
    """
    from training.memory import describe_memory, find_peak

    phases = count_memory(options, options.config, weights)
    log.info("memory of each process\n%s", describe_memory(phases))
    needed = find_peak(phases) + CUDA_GIB
    if needed <= card_gib:
        return
    small = SMALL_PRESETS if takes_many_steps(options.restorer) else SMALL_PRESETS_ONE_STEP
    names = small.get(options.config.method, ())
    peaks = {name: find_peak(count_memory(options, load_refl_config(name), weights)) for name in names}
    fitting = [name for name, peak in peaks.items() if peak + CUDA_GIB <= card_gib]
    smaller = "train a smaller reward model" if options.reward and not is_judge(options.reward) else "micro_batch_size"
    advice = f"the preset {fitting[0]} fits" if fitting else f"lower image_size_px or {smaller}"
    log.warning("this needs about %.1f GiB, and the card has %.1f: %s", needed, card_gib, advice)


def tune(options: ReflTrainOptions, place: Place, weights: Path, out: Path, progress: Progress) -> dict[str, Any]:
    """Load what is asked for and train."""
    import torch  # here: --help need not wait for these

    from refl.restorers.load import ADAPTERS, Untrained, get_restorer_files, load_restorer, load_target_vae
    from refl.tune.data import leave_out_held_out
    from refl.tune.identity import check_identity
    from refl.tune.judges import load_judge
    from refl.tune.pairs import choose_pairs
    from refl.tune.setup import check_face_captions, check_reward_input
    from refl.tune.train import train
    from refl.tune.training import Material
    from reward.data import load_dataset
    from reward.score.scorer import find_scorer, load_scorer
    from training.device import choose_own_device
    from training.precision import DTYPES
    from training.processes import leave_processes

    config, reward = options.config, options.reward
    if config.method == "refl" and config.loss.identity_weight:
        check_identity()
    is_model = reward is not None and not is_judge(reward)
    found = find_scorer(reward, weights) if reward and is_model else None
    faces, held_out = choose_faces(options, place)
    pairs = load_dataset(options.dataset) if options.dataset else None
    if pairs:
        faces = leave_out_held_out(faces, pairs, out / "checked.json")
    if found:
        check_face_captions(found.config, faces or held_out, use_prompt=config.loss.use_prompt)
        check_reward_input(found.config, config)
    if pairs and found and config.method == "refl":
        pairs.with_inputs(found.config)
    if pairs and config.method == "dpo":
        choose_pairs(pairs, config.algorithm)
    get_restorer_files([options.restorer], weights)
    if torch.cuda.is_available() and is_first():
        say_memory(options, weights, torch.cuda.get_device_properties(0).total_memory / 2**30)
    dtype = DTYPES[config.train.mixed_precision]
    restorer = load_restorer(
        options.restorer, weights_dir=weights, dtype=dtype, keep_float32=("control", "text", ADAPTERS)
    )
    assert not isinstance(restorer, Untrained)
    scorer = load_scorer(reward, "cpu", weights_dir=weights) if reward and is_model else None
    judge = None
    if reward and not is_model:
        judge = load_judge(reward, choose_own_device(), weights, place, config.algorithm.people_answers)
    rewarding = scorer or judge
    material = Material(
        restorer=restorer,
        reward=scorer.model if scorer else None,
        faces=faces,
        held_out=held_out,
        pairs=pairs,
        judge=judge,
        target_vae=load_target_vae(options.restorer, weights) if config.method == "dpo" else None,
        names={"restorer": options.restorer, "reward": reward or "", "dataset": str(options.dataset or "")},
        reward_version=rewarding.version if rewarding else "",
    )
    result = train(material, config, out, progress)
    leave_processes()
    return result


def format_result(result: dict[str, Any], out: Path) -> str:
    """What training found, for a terminal."""
    cost = f"{result['step']:,} steps, {result['evaluations']:,} network evaluations"
    said = f"{cost}; the restorer is {out / 'tuned'}"
    if result["hacking"] is not None:
        said += f"\nthe monitor saw hacking at step {result['hacking']:,}: look at {out / 'grids'}"
    return said


def list_used(options: ReflTrainOptions) -> list[dict[str, str]]:
    """What it uses besides its inputs: LPIPS, where that is the perceptual term, and the identity term's network."""
    loss = options.loss
    if options.config.method != "refl":
        return []
    lpips = loss.perceptual == "lpips" and loss.perceptual_weight
    used = [{"kind": "metric", "value": "lpips-vgg"}] if lpips else []
    return used + ([{"kind": "face network", "value": "dlib"}] if loss.identity_weight else [])


TRAIN = Command(
    "refl train",
    "fine-tune a restorer on preferences: by a reward's gradient (ReFL), DPO, group DPO, GRPO",
    ReflTrainOptions,
    run_train,
    "Settings are those of a preset or a file; each can be replaced by its flag. The same command again continues a "
    "training that was stopped. On several GPUs or hosts: accelerate launch -m refl train …",
    settle_train,
    Presets(preset_names, load_options, MEMORY_GIB),
    trains=True,
    uses=list_used,
)
