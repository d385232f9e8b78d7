"""Show whether a reward makes faces better than what holds the restorer does: `python -m experiments.reward_worth`.

A SIMULATED annotator, whose taste `experiments/worth_taste.py` states and the holding terms do not optimise, chooses
between restored images of real faces, a share of the answers by lot. Reward models learn from the answers: a blind one,
and one with several heads that sees the low-quality photo. Each tunes the shipped tiny restorer for the same number of
steps; so do the holding terms alone, and the taste itself (`oracle`), which bounds what is possible. The judge of two
arms is the annotator's own noise-free choice between their outputs, on faces that nothing has seen.

Each seed is a folder of --out with `results.json`; finished parts are left out when the command is given again.
MARGINS and WANTED were written down before the first run. `experiments.worth_tables` prints the tables.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dataset.labelled import Split
from experiments.loop import SHARED
from experiments.worth_data import FaceSet, Sizes, construct, make_faces, make_pairs, restore, sharpen, to_bytes
from experiments.worth_first import write_first_model
from experiments.worth_taste import Taste
from metrics.compute import Request, compute_values
from refl.restorers.tiny import load_tiny
from refl.tune.config import load_refl_config
from refl.tune.live_reward import compute_rewards
from refl.tune.train import train as tune
from refl.tune.training import Material
from reward.data import Pairs
from reward.model.checkpoint import compute_version, load_model, read_architecture
from reward.model.config import load_model_config
from reward.model.model import RewardModel
from reward.model.reward_set import RewardSet, compute_spread, name_heads
from reward.model.set_config import Member, SetConfig
from reward.train.config import RewardTrainConfig
from reward.train.train import train as train_reward

MARGINS = {"psnr": 0.5, "ssim": 0.02, "gmsd": 0.005, "likeness": 0.01}
"""Largest losses of the means against the base that count as not worse."""
WANTED = {"base": 0.65, "holding": 0.60}
"""Win rates of the seeing set over these."""
ARMS = ("holding", "blind", "seeing", "heads", "set", "oracle")
"""Beside the base. `holding` has no reward, `oracle` the taste itself."""
MODES = {"blind": "learned", "seeing": "input+learned"}
"""The text mode of each reward model."""
SETS = {"heads": ("seeing",), "set": ("seeing", "blind")}
"""The arms with a reward set, braked: the models whose heads are its members."""
SPREAD_WEIGHT = 1.0
SHIFT = 3
"""Places to the other person of the pairs `sharper but another person`; inputs are shuffled by twice as many."""
SHARPER = 1.0
"""Amount of the unsharp mask on another person's output in the held-out pairs `sharper but another person`."""


@dataclass(frozen=True)
class Settings:
    """Sizes of one study."""

    sizes: Sizes = field(default_factory=Sizes)
    answers: int = 4000
    val_answers: int = 300
    constructed: int = 4000
    """Pairs with another person, which nobody need answer."""
    constructed_weight: float = 1.0
    members: int = 3
    reward_steps: int = 300
    refl_steps: int = 50
    reward_weight: float = 0.012
    """Times the reward in its own spreads over the unseen candidates of val."""
    learning_rate: float = 2e-4


class OracleReward(RewardModel):
    """The annotator's taste itself in the place of a reward model that sees the ground truth."""

    taste: Taste

    def forward(self, images: Tensor, _captions: Sequence[str | None], inputs: Tensor | None = None) -> Tensor:
        assert inputs is not None
        return self.taste(images, inputs)


@dataclass
class Study:
    """One seed."""

    folder: Path
    seed: int
    settings: Settings
    sets: dict[Split, FaceSet]
    candidates: dict[Split, dict[str, Tensor]]
    pairs: Pairs
    taste: Taste
    results: dict[str, Any]

    def has(self, *keys: str) -> bool:
        """Whether this part of the results is there."""
        at: Any = self.results
        for key in keys:
            at = at.get(key, {})
        return bool(at)

    def keep(self, value: Any, *keys: str) -> None:
        """Write a part of the results at once."""
        at = self.results
        for key in keys[:-1]:
            at = at.setdefault(key, {})
        at[keys[-1]] = value
        (self.folder / "results.json").write_text(json.dumps(self.results))


def open_study(out: Path, seed: int, settings: Settings) -> Study:
    """Faces, candidates and SIMULATED answers of a seed, and the results that are there already."""
    folder = out / f"seed{seed}"
    folder.mkdir(parents=True, exist_ok=True)
    sets = make_faces(folder / "faces", seed, settings.sizes)
    taste = Taste(sets["train"].hq)
    counts: dict[Split, int] = {"train": settings.answers, "val": settings.val_answers}
    candidates, pairs = make_pairs(folder, sets, load_tiny, taste, seed, counts)
    file = folder / "results.json"
    results = json.loads(file.read_text()) if file.is_file() else {}
    return Study(folder, seed, settings, sets, candidates, pairs, taste, results)


def learn(study: Study, name: str, answers: int | None = None, steps: int | None = None) -> RewardModel:
    """The reward model `blind` or `seeing` of the first `answers` of the training answers, trained where it is not."""
    settings = study.settings
    answers = answers or settings.answers
    out = study.folder / f"{name}-{answers}"
    if not (out / "best").is_dir():
        methods = [method for method in study.candidates["train"] if not method.startswith("other")]
        made = construct(study.sets["train"], methods, settings.constructed, study.seed)
        rows = (*study.pairs.select("train").rows[:answers], *study.pairs.select("val").rows, *made)
        members = settings.members if name == "seeing" else 1
        model = write_first_model(study.folder, study.sets["train"].hq, MODES[name], members, study.seed)
        steps = steps or settings.reward_steps
        config = RewardTrainConfig(
            max_steps=steps,
            batch_size=32,
            learning_rate=1e-3,
            warmup_steps=max(1, min(30, steps // 4)),
            weight_decay=0.05,
            constructed_weight=settings.constructed_weight,
            validate_every_steps=max(1, steps // 4),
            log_every_steps=max(1, steps // 12),
            checkpoint_every_steps=10 * steps,
            workers=0,
            seed=study.seed,
        )
        curve: list[dict[str, float]] = []
        train_reward(Pairs(study.folder, rows), model, config, out, partial(_note, curve))
        study.keep(curve, "reward", out.name, "curve")
    return load_model(out / "best")


def _note(curve: list[dict[str, float]], done: int, _total: int, values: dict[str, float]) -> None:
    if values:
        curve.append({"step": done, **values})


@torch.no_grad()
def score(reward: nn.Module, images: Tensor, inputs: Tensor) -> Tensor:
    """(N,) rewards of images; the inputs are there for a reward that sees them."""
    parts = zip(torch.split(images, 32), torch.split(inputs, 32), strict=True)
    return torch.cat([compute_rewards(reward, one, [None] * len(one), seen) for one, seen in parts])


def measure_spread(study: Study, reward: nn.Module) -> float:
    """The reward's standard deviation within photos, over val's candidates of the right person."""
    faces = study.sets["val"]
    return _spread([score(reward, images, faces.lq) for images in list_own(study)])


def list_own(study: Study) -> list[Tensor]:
    """Val's candidates that show the right person."""
    return [images for name, images in study.candidates["val"].items() if not name.startswith("other")]


def _spread(values: list[Tensor]) -> float:
    return float(torch.stack(values).std(dim=0).mean())


def make_set(study: Study, models: dict[str, RewardModel]) -> RewardSet:
    """The heads of models as one reward set, in one scale by val's candidates."""
    faces = study.sets["val"]
    members, given = [], []
    for name, model in models.items():
        with torch.no_grad():
            parts = [
                model.compute_members(images, [None] * len(images), faces.lq)
                for images in study.candidates["val"].values()
            ]
        rewards, version = torch.cat(parts, dim=1), compute_version(model)
        for head, (called, values) in enumerate(zip(name_heads(name, model.config), rewards, strict=True)):
            center, scale = float(values.mean()), float(values.std())
            members.append(Member(name=called, model=name, head=head, version=version, center=center, scale=scale))
            given.append((values - center) / scale)
    settings = SetConfig(
        members=tuple(members),
        spread_weight=SPREAD_WEIGHT,
        unit=float(np.mean([member.scale for member in members])),
        logit_scale=float(np.mean([float(model.logit_scale.detach()) for model in models.values()])),
        held_out_spread=float(compute_spread(torch.stack(given)).mean()),
        images=len(given[0]),
        dataset="SIMULATED",
        needs_input=True,
    )
    return RewardSet(settings, models)


def measure_reward(study: Study, name: str, reward: nn.Module) -> None:
    """Held-out accuracies of a reward on test's faces, (right, which photo) lists, and its gradient's direction."""
    faces, candidates = study.sets["test"], study.candidates["test"]
    given = {method: score(reward, images, faces.lq) for method, images in candidates.items()}
    liked = {method: study.taste(images, faces.hq) for method, images in candidates.items()}
    right = [((given[a] > given[b]) == (liked[a] > liked[b])).float() for a in given for b in given if a < b]
    own = candidates["own"]
    other = sharpen(own.roll(SHIFT, dims=0), torch.full((len(own),), SHARPER))
    wrong = faces.lq.roll(2 * SHIFT, dims=0)
    found = {
        "all": torch.stack(right).mean(dim=0),
        "another person": (score(reward, own, faces.lq) > score(reward, other, faces.lq)).float(),
        "another person, inputs shuffled": (score(reward, own, wrong) > score(reward, other, wrong)).float(),
        "the annotator's own": (liked["own"] > study.taste(other, faces.hq)).float(),
        "gradient": F.cosine_similarity(
            compute_gradient(lambda x: study.taste(x, faces.hq), own),
            compute_gradient(lambda x: compute_rewards(reward, x, [None] * len(x), faces.lq), own),
        ),
    }
    study.keep({what: values.tolist() for what, values in found.items()}, "reward", name, "test")


def compute_gradient(compute: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    """(N, pixels) gradient of (N,) values to (N, 3, H, W) images."""
    images = images.clone().requires_grad_(True)
    (gradient,) = torch.autograd.grad(compute(images).sum(), images)
    return gradient.flatten(1)


def run_arm(
    study: Study, arm: str, reward: RewardModel | RewardSet, spread: float, brake: dict[str, Any] | None = None
) -> None:
    """Tune the restorer with a reward, restore test's faces, and keep what the annotator and the judges say.

    Args:
        spread: what the reward's weight is divided by; infinite for no reward.
        brake: settings of the training that brake it.
    """
    if study.has("arms", arm):
        return
    settings = study.settings
    changes: dict[str, dict[str, Any]] = {
        "loss": {"reward_weight": settings.reward_weight / spread},
        "live_reward": {"reward_every_steps": 0},
        "train": {
            "max_steps": settings.refl_steps,
            "learning_rate": settings.learning_rate,
            "warmup_steps": min(10, settings.refl_steps - 1),
            "ema_decay": 0.0,
            "gradient_norms": False,
            "monitor_every_steps": 0,
            "checkpoint_every_steps": 10 * settings.refl_steps,
            "seed": study.seed,
            **(brake or {}),
        },
    }
    curve: list[dict[str, float]] = []
    restorer = load_tiny()
    material = Material(restorer, reward, study.sets["train"].faces, study.sets["val"].faces)
    began = time.monotonic()
    result = tune(
        material, load_refl_config("tiny-refl", changes), study.folder / f"tuned-{arm}", partial(_note, curve)
    )
    judge_arm(study, arm, restore(restorer.eval(), study.sets["test"].lq, study.seed))
    study.keep({"curve": curve, "seconds": time.monotonic() - began, "hacking": result["hacking"]}, "tuning", arm)


def measure_live_cost(study: Study, steps: int = 24) -> None:
    """Seconds of steps with the reward model's own update and without, of one training that updates at every second."""
    changes = {
        "live_reward": {"reward_every_steps": 2, "reward_first_step": 0},
        "train": {"max_steps": steps, "gradient_norms": False, "monitor_every_steps": 0, "log_every_steps": 1},
    }
    for name in MODES:
        curve: list[dict[str, float]] = []
        material = Material(load_tiny(), learn(study, name), study.sets["train"].faces, [])
        tune(material, load_refl_config("tiny-refl", changes), study.folder / f"live-{name}", partial(_note, curve))
        seconds = [line["seconds_per_step"] for line in curve][2:-1]  # the first warm up, the last writes a checkpoint
        with_update, without = (float(np.median(seconds[start::2])) for start in (0, 1))
        study.keep({"with": with_update, "without": without}, "live", name)
        print(f"{name}: {with_update:.2f} s a step with the live update, {without:.2f} s without: ", end="")
        print(f"{with_update / without:.2f} times as much", flush=True)


def judge_arm(study: Study, arm: str, images: Tensor) -> None:
    """Keep an arm's images of test's faces, what the annotator thinks of each, and the other judges' values."""
    faces = study.sets["test"]
    images = torch.from_numpy(to_bytes(images)).permute(0, 3, 1, 2).float() / 255
    faces.write(f"arm-{arm}", images)
    count, flat = len(images), [*to_bytes(images), *to_bytes(faces.hq)]
    requests = [Request(name, place, count + place) for name in ("psnr", "ssim", "gmsd") for place in range(count)]
    values = np.array([value.raw_value for value in compute_values(requests, flat)], dtype=float).reshape(3, count)
    found = dict(zip(("psnr", "ssim", "gmsd"), values.tolist(), strict=True))
    found["taste"] = study.taste(images, faces.hq).tolist()
    found["likeness"] = study.taste.compute_likeness(images, faces.hq).tolist()
    study.keep(found, "arms", arm)


def make_oracle(study: Study) -> OracleReward:
    """The taste as a reward that sees the ground truth."""
    config = load_model_config("tiny", text_mode="input", input_photo="hq")
    oracle = OracleReward(config, read_architecture(config))
    oracle.taste = study.taste
    return oracle


def run_seed(study: Study, arms: Sequence[str]) -> None:
    """All of one seed that is not there yet."""
    if not study.has("arms", "base"):
        judge_arm(study, "base", restore(load_tiny(), study.sets["test"].lq, study.seed))
    if "oracle" in arms:
        oracle = make_oracle(study)
        faces = study.sets["val"]
        run_arm(study, "oracle", oracle, _spread([study.taste(one, faces.hq) for one in list_own(study)]))
    if "holding" in arms:
        run_arm(study, "holding", make_oracle(study), float("inf"))
    for name in (one for one in ("blind", "seeing") if one in arms):
        model = learn(study, name)
        measure_reward(study, f"{name}-{study.settings.answers}", model)
        run_arm(study, name, model, measure_spread(study, model))
    every = max(1, study.settings.refl_steps // 3)
    brake = {"monitor_every_steps": every, "monitor_faces": 8, "on_hacking": "brake"}
    for arm in (one for one in SETS if one in arms):
        reward = make_set(study, {name: learn(study, name) for name in SETS[arm]})
        measure_reward(study, f"{arm}-{study.settings.answers}", reward)
        run_arm(study, arm, reward, measure_spread(study, reward), brake)


def run_volume(study: Study, counts: Sequence[int]) -> None:
    """The seeing model and its arm at other numbers of answers."""
    for count in counts:
        model = learn(study, "seeing", count)
        measure_reward(study, f"seeing-{count}", model)
        run_arm(study, f"seeing-{count}", model, measure_spread(study, model))


def main() -> None:
    """Run the seeds' parts that are asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of the seeds' folders")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    parser.add_argument(
        "--volume",
        type=int,
        nargs="*",
        default=[],
        help="the seeing arm at these numbers of answers instead",
    )
    parser.add_argument("--live", action="store_true", help="what the live update costs a step instead")
    for name, value in vars(Settings()).items():
        if name != "sizes":
            parser.add_argument(f"--{name.replace('_', '-')}", type=type(value), default=value)
    args = parser.parse_args()
    if not SHARED.is_dir():
        raise SystemExit("needs ../shared/faces, which is not beside this checkout")
    torch.set_num_threads(1)
    own = {name: getattr(args, name) for name in vars(Settings()) if name != "sizes"}
    for seed in args.seeds:
        began = time.monotonic()
        study = open_study(args.out.absolute(), seed, Settings(**own))
        if args.volume:
            run_volume(study, args.volume)
        elif args.live:
            measure_live_cost(study)
        else:
            run_seed(study, args.arms)
        print(f"seed {seed}: {time.monotonic() - began:.0f} s; the annotator is SIMULATED", flush=True)


if __name__ == "__main__":
    main()
