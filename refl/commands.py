"""List the commands of `python -m refl`."""

from __future__ import annotations

from typing import Any

from refl.evaluate.command import EVALUATE
from refl.faces.command import DEGRADE
from refl.pretrain.command import PRETRAIN
from refl.publish.command import PUBLISH
from refl.restore.command import RESTORE
from refl.restorers.command import WEIGHTS
from refl.tune.ablate import ABLATE
from refl.tune.command import TRAIN
from runs.options import Command

COMMANDS: tuple[Command[Any], ...] = (DEGRADE, RESTORE, PRETRAIN, TRAIN, EVALUATE, ABLATE, WEIGHTS, PUBLISH)
