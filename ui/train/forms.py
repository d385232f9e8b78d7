"""List the commands that the Train page starts, with what it says of each and what it shows at once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from annotate.exchange.command import EXPORT
from annotate.judging.command import PAIR
from annotate.labeler.command import FIT, LABEL
from annotate.measure.command import MEASURE
from refl.evaluate.command import EVALUATE as EVALUATE_RESTORERS
from refl.pretrain.command import PRETRAIN
from refl.restore.command import RESTORE
from refl.tune.command import TRAIN as TUNE
from reward.combine.command import SET
from reward.construct.command import CONSTRUCT
from reward.evaluate.command import EVALUATE as EVALUATE_REWARDS
from reward.score.command import SCORE
from reward.train.command import TRAIN as TRAIN_REWARD
from runs.options import OWN, Command, Setting


@dataclass(frozen=True)
class Form:
    """A command on the Train page."""

    command: Command[Any]
    title: str
    about: str
    shown: frozenset[str] = frozenset()
    """Options that are seen at once, beside those that are needed; the others are folded."""
    needs_device: bool = True
    """Whether it is worth waiting for a free GPU."""
    preset: str = ""
    """The one that it begins with, where several are as small."""

    @property
    def inputs(self) -> list[Setting]:
        """What the run is made from or writes, beside its settings."""
        return [found for found in self.command.settings if found.table == OWN and (found.input or found.output)]

    @property
    def fields(self) -> dict[str, Setting]:
        """Key -> setting, table by table."""
        return {
            found.key: found
            for found in self.command.settings
            if found not in self.inputs and not found.how.terminal_only and found.name != "preset"
        }


def _form(
    command: Command[Any], title: str, about: str, shown: str, *, needs_device: bool = True, preset: str = ""
) -> Form:
    return Form(command, title, about, frozenset(shown.split()), needs_device, preset)


FORMS: dict[str, Form] = {
    form.command.name: form
    for form in (
        _form(
            MEASURE,
            "Measure the restored images",
            "Fills in the metric values that are not stored yet; the SVM learns from them.",
            "metrics",
        ),
        _form(
            FIT,
            "Fit the SVM labeler",
            "Learns from people's judgments which of two images they would choose, from metric values alone.",
            "metrics kernel target_accuracy confidence include_simulated quick",
            needs_device=False,
        ),
        _form(
            LABEL,
            "Label the unjudged pairs",
            "The SVM labels the pairs of which it is sure enough; a person's judgment always wins.",
            "labeler target_accuracy splits dry_run",
            needs_device=False,
        ),
        _form(
            EXPORT,
            "Export a dataset",
            "Writes the labels and their images as a folder, from which a reward model is trained.",
            "out format origin ties resolve include_simulated",
            needs_device=False,
        ),
        _form(
            PAIR,
            "Make pairs to judge",
            "Pairs the restored images of each photo, so that people can judge them on the Label page.",
            "per_source against",
            needs_device=False,
        ),
        _form(
            TRAIN_REWARD,
            "Train a reward model",
            "Learns from labelled pairs to give the image that people prefer the higher reward.",
            "dataset out max_steps batch_size learning_rate validate_every_steps seed",
        ),
        _form(
            CONSTRUCT,
            "Construct pairs whose answer is known",
            "Adds pairs to a copy of a dataset, one side of each wrong: another person, odd colours, a blurred eye.",
            "dataset out kinds per_photo seed",
            needs_device=False,
        ),
        _form(
            SET,
            "Combine rewards into a set",
            "Makes one reward of several models and metrics, which is low where they disagree.",
            "dataset out model metric spread_weight",
        ),
        _form(
            SCORE,
            "Score the restored images",
            "Stores the reward of every restored image of the project, like a metric value.",
            "",
        ),
        _form(
            EVALUATE_REWARDS,
            "Evaluate reward models",
            "Compares reward models, metrics and other scorers with people's held-out labels, in one report.",
            "scorer split include_simulated robustness_pairs",
        ),
        _form(
            PRETRAIN,
            "Pretrain a tiny restorer",
            "Learns to restore small faces from nothing but a folder of sharp ones.",
            "faces out stage1_steps vae_steps diffusion_steps batch_size image_size_px seed",
        ),
        _form(
            TUNE,
            "Tune a restorer on preferences",
            "Trains a restorer by a reward's gradient (ReFL), by labelled pairs alone (DPO), or by comparing its own "
            "results (group DPO, GRPO); independent judges watch it.",
            "reward dataset faces out algorithm budget max_steps batch_size learning_rate monitor_every_steps",
            preset="tiny-refl",
        ),
        _form(
            RESTORE,
            "Restore photos",
            "Makes restored images of the project's photos, or of others, as candidates to pair and judge.",
            "inputs method seeds split steps strength",
        ),
        _form(
            EVALUATE_RESTORERS,
            "Evaluate restorers",
            "Compares tuned restorers with the one they began as, on held-out faces, in one report.",
            "reward faces seeds steps limit",
        ),
    )
}
