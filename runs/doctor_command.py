"""Say what works on this machine and what is missing: `python -m runs doctor`."""

from __future__ import annotations

import sys

from runs.doctor import find_all
from runs.finding import Finding, Mark
from runs.options import Command, Options, Place

WIDTHS: dict[Mark, str] = {"ok": "ok   ", "note": "note ", "care": "CARE ", "fault": "FAULT"}


class DoctorOptions(Options):
    """Nothing can be told to it."""


def run_doctor(_options: DoctorOptions, place: Place) -> None:
    """Print a line of each finding; the exit status is 1 where one is a fault."""
    findings = find_all(place, thorough=True)
    for finding in findings:
        print(format_finding(finding))
    counts = {mark: sum(finding.mark == mark for finding in findings) for mark in ("fault", "care")}
    print(f"{counts['fault']} faults, {counts['care']} to take care of")
    if counts["fault"]:
        sys.exit(1)


def format_finding(finding: Finding) -> str:
    """A finding as one line."""
    return f"{WIDTHS[finding.mark]}  {finding.name}: {finding.seen}" + (f"  → {finding.todo}" if finding.todo else "")


DOCTOR = Command(
    "runs doctor",
    "say what works on this machine, what is missing, and what to do",
    DoctorOptions,
    run_doctor,
    "One line a finding: Python, libraries, torch, devices and which presets fit them, disk, database, network, "
    "published weights. Changes nothing. The exit status is 1 where one is a fault.",
)
