"""List the commands of `python -m reward`."""

from __future__ import annotations

from typing import Any

from reward.combine.command import SET
from reward.construct.command import CONSTRUCT
from reward.evaluate.command import EVALUATE
from reward.publish.command import PUBLISH
from reward.score.command import SCORE
from reward.serve.command import SERVE
from reward.train.command import TRAIN
from runs.options import Command

COMMANDS: tuple[Command[Any], ...] = (CONSTRUCT, TRAIN, SET, EVALUATE, SCORE, SERVE, PUBLISH)
