"""Write the card of a published restorer: how to load it, what it was tuned from and with, licences."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from licences.terms import Licensed, Terms, format_list
from refl.published.manifest import read_manifest
from refl.restore.choices import NEEDS
from reward.model.card import describe_data
from runs.publishing import choose_licence, format_front_matter
from runs.store import code_version

USE = """\
## Use

Without FaceReward, with torch and diffusers{more}:

```python
from diffusers import DiffusionPipeline
from PIL import Image

pipe = DiffusionPipeline.from_pretrained(FOLDER, custom_pipeline=FOLDER, trust_remote_code=True)
restored = pipe(image=Image.open("face.png"), seed=0).images[0]
```

`FOLDER` is this folder or, pushed, the repository's name. `trust_remote_code` is asked for by diffusers, since \
`pipeline.py` is code: read it. `image` may be a list; {arguments}. Faces are square, aligned as FFHQ, {size} × {size} \
pixels; of others the result is resized.\
"""
ADAPTERS = """\
`pytorch_lora_weights.safetensors` holds the adapters apart, for the model that they were trained on: \
`unet.load_lora_adapter("pytorch_lora_weights.safetensors", prefix="unet")`.\
"""
LIMITS = "It invents detail: a restored face is plausible, not evidence of a person's real appearance."


def format_card(
    source: Path, use: Mapping[str, Any], made_from: Sequence[Licensed], licence: str, *, has_adapters: bool
) -> str:
    """The README.md of a published folder.

    Args:
        source: what was published: a folder that a training wrote, or a restorer's name.
        use: the pipeline's settings, as in its `model_index.json`.
        made_from: licences of all weights and data in it.
        licence: as a person gave it; empty for the strictest of these.
    """
    training, licence = read_training(source), choose_licence(licence, made_from)
    names = training.get("names", {})
    base = str(names.get("restorer") or source.name)
    front = format_front_matter(
        licence,
        made_from,
        ["face-restoration", "image-to-image", "diffusers"],
        {
            "library_name": "diffusers",
            "pipeline_tag": "image-to-image",
            "base_model": list_base_models(base),
        },
    )
    has_swinir = any(one.name == "diffbir-swinir-face" for one in made_from)
    one_step = use.get("kind") == "one_step"
    lines = [
        *front,
        f"# Restorer {source.parent.name if source.name == 'tuned' else source.name}",
        "",
        f"Restores faces. {LIMITS} Written by FaceReward {code_version()}.",
        "",
    ]
    if use:
        arguments = "one step, no noise" if one_step else "`num_inference_steps`, `eta` and `color_fix` may be given"
        more = ", and spandrel for stage 1" if has_swinir else ""
        lines += [USE.format(more=more, arguments=arguments, size=use["image_size_px"]), ""]
    if has_adapters:
        lines += [ADAPTERS, ""]
    lines += ["## Training", "", *describe_training(training, base), ""]
    if use:
        lines += ["## Settings", "", *(f"- {name}: {value}" for name, value in use.items()), ""]
    lines += [
        "## Licence",
        "",
        f"{' '.join(licence.split())}. It was made from these, the strictest first:",
        "",
        *format_list(made_from),
        "",
    ]
    if any(one.terms is Terms.non_commercial for one in made_from):
        lines += ["**Commercial use is forbidden** by what it was made from.", ""]
    return "\n".join(lines)


def read_training(folder: Path) -> dict[str, Any]:
    """The `training.json` of a folder that a training wrote; empty of anything else."""
    try:
        found = json.loads((folder / "training.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) and "names" in found else {}


def list_base_models(base: str) -> list[str]:
    """The repositories of the hub that a restorer of this name is loaded from, ORG/NAME; none of a folder."""
    manifest = read_manifest()
    files = [place for group in NEEDS.get(base, ()) for place in manifest[group[0]].hub[:1]]
    return list(dict.fromkeys(file.rpartition("/")[0] for file in files if not file.startswith("spaces/")))


def describe_training(training: Mapping[str, Any], base: str) -> list[str]:
    """What it was tuned from, with which reward of which judgments, how long and how; paths by their last part."""
    if not training:
        return [f"{_last(base)} as it is loaded here, not tuned further."]
    lines = [f"- {name}: {_last(str(value))}" for name, value in training["names"].items() if value]
    lines += [
        f"- steps: {training.get('step', 0):,}",
        f"- faces: {training.get('faces', 0):,}",
        f"- monitor: {_say_hacking(training.get('hacking'))}",
    ]
    if reward := _read_reward(str(training["names"].get("reward", ""))):
        lines += ["- the reward's data:", *(f"  {line}" for line in describe_data(reward))]
    settings = {key: value for table in training.get("config", {}).values() for key, value in table.items()}
    return [*lines, "", "```json", json.dumps(settings, indent=2, ensure_ascii=False), "```"]


def _read_reward(name: str) -> dict[str, Any] | None:
    """What a reward model recorded of its training, where it is a folder of this machine."""
    folder = Path(name.rpartition("=")[2]).expanduser()
    for place in (folder, folder / "best"):
        if (place / "training.json").is_file():
            found: dict[str, Any] = json.loads((place / "training.json").read_text(encoding="utf-8"))
            return {**found, "dataset": _last(str(found["dataset"]))} if "labels" in found else None
    return None


def _say_hacking(step: int | None) -> str:
    return "no hacking seen" if step is None else f"hacking seen at step {step:,}"


def _last(value: str) -> str:
    """A name as it is; of a path the last part, which says nothing of the machine."""
    name, equals, what = value.rpartition("=")
    return name + equals + (Path(what).name if "/" in what else what)
