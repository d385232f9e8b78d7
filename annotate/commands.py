"""List the commands of `python -m annotate`."""

from __future__ import annotations

from typing import Any

from annotate.exchange.command import EXPORT
from annotate.exchange.push_command import PUSH
from annotate.ingest.check_command import CHECK
from annotate.ingest.command import IMPORT, MEND
from annotate.judging.command import PAIR, PEOPLE, PROJECT
from annotate.judging.simulate_command import SIMULATE
from annotate.labeler.command import FIT, LABEL
from annotate.measure.command import MEASURE
from annotate.prolific.command import PROLIFIC
from annotate.report.command import RANK
from annotate.report.plan_command import PLAN
from annotate.studies.command import STUDY
from runs.options import Command

COMMANDS: tuple[Command[Any], ...] = (
    *(IMPORT, PAIR, MEND, PEOPLE, PROJECT, SIMULATE),
    *(MEASURE, CHECK, FIT, LABEL, RANK, PLAN, EXPORT, PUSH, STUDY, PROLIFIC),
)
