"""List the commands of `python -m runs`."""

from __future__ import annotations

from typing import Any

from runs.doctor_command import DOCTOR
from runs.licences_command import LICENCES
from runs.options import Command
from runs.show_command import LIST, SHOW
from runs.start_command import CONTINUE, ROUND, START, SUPERVISE
from runs.stop_command import DELETE, STOP

COMMANDS: tuple[Command[Any], ...] = (LIST, SHOW, START, STOP, CONTINUE, DELETE, ROUND, SUPERVISE, DOCTOR, LICENCES)
