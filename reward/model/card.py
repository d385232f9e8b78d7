"""Write the card of a checkpoint: data, labels by people and by machine, recipe, results, licence of the first weights.

Made of what lies in the checkpoint folder, so that it can be made anew at any time: `config.json`, `training.json`, and
`evaluation.json`, which `python -m reward evaluate` leaves there.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from db.errors import UserError
from db.records import SIMULATED
from licences.terms import Licensed, format_list
from reward.model.config import ModelConfig
from reward.model.inputs import PHOTOS
from reward.model.licences import TAG_LICENCES
from reward.model.manifest import read_manifest
from runs.licences import read_recorded
from runs.options import make_table
from runs.store import without_nan
from training.weights import SUFFIXES

EVALUATION = "evaluation.json"
RECIPE = ("max_steps", "batch_size", "learning_rate", "warmup_steps", "weight_decay", "ema_decay", "seed")


def write_card(checkpoint: Path, evaluation: dict[str, Any] | None = None) -> None:
    """Write the checkpoint's `README.md`; with results of an evaluation, keep them there as well.

    Args:
        evaluation: JSON values, as `reward.evaluate.command.summarize_for_card` gives them; None takes those kept.
    Raises:
        UserError: the folder is not a checkpoint, or cannot be written.
    """
    config = make_table(ModelConfig, read_json(checkpoint / "config.json") or {}, str(checkpoint / "config.json"))
    training = read_json(checkpoint / "training.json")
    try:
        if evaluation is not None:
            text = json.dumps(without_nan(evaluation), indent=2, ensure_ascii=False)
            (checkpoint / EVALUATION).write_text(text + "\n", encoding="utf-8")
        evaluation = read_json(checkpoint / EVALUATION)
        made_from = read_recorded(checkpoint.resolve())
        card = format_card(checkpoint.resolve(), config, training, evaluation, made_from)
        (checkpoint / "README.md").write_text(card, encoding="utf-8")
    except OSError as error:
        raise UserError(f"{checkpoint}: the card cannot be written ({error.strerror}).") from error


def read_json(path: Path) -> dict[str, Any] | None:
    """The JSON object of a file; None where there is no such file.

    Raises:
        UserError: it is damaged.
    """
    try:
        values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({error}).") from error
    return values


def format_card(
    checkpoint: Path,
    config: ModelConfig,
    training: dict[str, Any] | None,
    evaluation: dict[str, Any] | None,
    made_from: Sequence[Licensed] = (),
) -> str:
    """The card as Markdown; what is not known is said to be."""
    name = checkpoint.parent.name if checkpoint.name in ("best", "last") else checkpoint.name
    prompt = {
        "caption": f"its caption, or where it has none with: {config.prompt}",
        "fixed": f"the prompt: {config.prompt}",
        "learned": f"a learned vector that began as the prompt: {config.prompt}",
        "input": PHOTOS[config.input_photo],
        "input+learned": f"{PHOTOS[config.input_photo]}, and a vector that began as the prompt: {config.prompt}",
    }[config.text_mode]
    return "\n".join(
        [
            f"# Reward model {name}",
            "",
            f"A {config.architecture} CLIP whose cosine of a face of {config.image_size_px} pixels with "
            f"{'what was restored' if config.needs_input else 'a text'} is its reward; higher is better. It compares "
            f"an image with {prompt}",
            *(["", f"The reward is the mean of {config.members} members."] if config.members > 1 else []),
            "",
            f"Rewards are comparable for one {'photo' if config.needs_input else 'text'} only, and never between "
            "versions of the model.",
            "",
            "## Data",
            "",
            *describe_data(training),
            "",
            "## Recipe",
            "",
            *describe_recipe(config, training),
            "",
            "## Results",
            "",
            *describe_results(training, evaluation),
            "",
            "## Licence",
            "",
            f"Starting weights: {describe_licence(config)} The labels' licence is on the dataset's card.",
            "",
            "It was made from these, the strictest first:",
            "",
            *format_list(made_from),
            "",
        ]
    )


def describe_data(training: dict[str, Any] | None) -> list[str]:
    """The dataset, and its labels by split and by who made them."""
    if training is None:
        return ["Not known: there is no training.json."]
    counts: Counter[tuple[str, str]] = Counter()
    simulated = 0
    for key, count in training["labels"].items():
        split, origin, made_by = key.split(", ", 2)
        counts[split, origin] += count
        simulated += count if made_by.endswith(SIMULATED) else 0
    splits = list(dict.fromkeys(split for split, _ in counts))
    lines = [
        f"- Dataset: {training['dataset']} (labels' SHA-256 {training['dataset_sha256'][:16]}…)",
        *(
            f"- {'Trained' if split == 'train' else 'Measured while training'} on split {split}: "
            f"{counts[split, 'human']:,} labels by people, {counts[split, 'svm']:,} by the SVM"
            + (f", {made:,} of pairs made by a program, not judged" if (made := counts[split, "constructed"]) else "")
            for split in splits
        ),
    ]
    if simulated:
        lines.append(f"- **{simulated:,} of these labels were made with answers of SIMULATED annotators, not people.**")
    return lines


def describe_recipe(config: ModelConfig, training: dict[str, Any] | None) -> list[str]:
    """Describe how the model was trained."""
    lines = [
        f"- Trained part: {config.unlocked_image_groups} image groups, {config.unlocked_text_blocks} text blocks",
        f"- Images: {config.interpolation}, {'with' if config.antialias else 'without'} antialiasing",
    ]
    if training:
        settings = training["train"]
        lines += [f"- {name}: {settings[name]}" for name in RECIPE if name in settings]
        lines += [f"- Steps taken: {training['step']:,}", f"- Code: {training['code_version']}"]
    return lines


def describe_results(training: dict[str, Any] | None, evaluation: dict[str, Any] | None) -> list[str]:
    """Describe the results of the training, and of `reward evaluate`."""
    lines = []
    measured = (training or {}).get("validation")
    if measured:
        lines.append(
            f"- Validation: accuracy {measured['accuracy']:.3f} on {measured['n']:,} labels, loss "
            f"{measured['loss']:.4f}; the checkpoint was chosen by it, so it flatters"
        )
    if evaluation:
        accuracy, ceiling = evaluation["accuracy"], evaluation["ceiling"]
        lines += [
            f"- Split {evaluation['split']} of {evaluation['dataset']}: accuracy {_number(accuracy)} on "
            f"{accuracy['n']:,} labels; human ceiling {_number(ceiling)}",
            *(
                f"- {name}: {evaluation[key]:.3f}"
                for name, key in (
                    ("Calibration error", "calibration_error"),
                    ("Spearman with people's ranking", "spearman"),
                )
                if evaluation.get(key) is not None
            ),
            f"- Version: `{evaluation['version']}`",
        ]
        if evaluation["simulated"]:
            lines.append("- **Includes SIMULATED annotators; says nothing about real people.**")
    return lines or ["Not measured. Run `python -m reward evaluate`."]


def _number(values: dict[str, Any]) -> str:
    if values["value"] is None:
        return "not known"
    return f"{values['value']:.3f}" + ("" if values["low"] is None else f" [{values['low']:.3f}, {values['high']:.3f}]")


def describe_licence(config: ModelConfig) -> str:
    """Describe the licence of the weights that training started from, as far as it is known."""
    if not config.weights:
        return "none, training started from random numbers."
    manifest = read_manifest()
    if config.weights in manifest:
        entry = manifest[config.weights]
        return f"{config.weights} ({entry.page}), licence: {entry.licence}."
    is_tag = "/" not in config.weights and Path(config.weights).suffix.lower() not in SUFFIXES
    for start, licence in TAG_LICENCES.items():
        if is_tag and config.weights.startswith(start):
            return f"open_clip's {config.architecture}, {config.weights}, licence: {licence}."
    return f"{config.weights}, licence not known here: see where it was published."
