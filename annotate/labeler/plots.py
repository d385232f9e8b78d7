"""Draw the pictures of a labeler's report: one function per figure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from runs.pictures import COLOURS, FAINT, draw_accuracy, draw_band, draw_ceiling, plot_style

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MACHINE, OTHER = COLOURS[1], COLOURS[0]


def plot_methods(methods: pd.DataFrame, ceiling: dict[str, Any]) -> Figure:
    """Accuracy of every method with its interval, the best on top; a line at the human ceiling."""
    from matplotlib.figure import Figure

    heights = np.arange(len(methods))[::-1]
    with plot_style():
        figure = Figure(figsize=(8, 1.3 + 0.3 * len(methods)), layout="constrained")
        axes = figure.subplots()
        colours = [MACHINE if name == "SVM" else OTHER for name in methods["method"]]
        for height, colour, row in zip(heights, colours, methods.to_dict("records"), strict=True):
            draw_accuracy(axes, row, height, colour)
        draw_ceiling(axes, ceiling)
        axes.axvline(50, color="#BBBBBB", linewidth=1)
        axes.set_yticks(heights, methods["method"])
        axes.tick_params(axis="y", length=0)
        axes.grid(axis="y", visible=False)
        axes.set_xlabel("accuracy on photos not seen, %; bars: 95 % interval")
        axes.set_title("The SVM against other ways to answer")
    return figure


def plot_coverage(coverage: pd.DataFrame, target: dict[str, Any], ceiling: dict[str, Any]) -> Figure:
    """Accuracy of the surest share of the pairs, with the target and what is labelled at it."""
    from matplotlib.figure import Figure

    with plot_style():
        figure = Figure(figsize=(8, 4), layout="constrained")
        axes = figure.subplots()
        draw_band(axes, 100 * coverage["coverage"], coverage, MACHINE)
        wanted = 100 * target["target_accuracy"]
        axes.axhline(wanted, color="#222222", linewidth=1)
        axes.text(1, wanted, f"target {wanted:.0f} %", va="bottom", ha="left", fontsize=8)
        if target["threshold"] is not None:
            share = 100 * target["coverage"]
            axes.axvline(share, color=FAINT, linewidth=1, linestyle=":")
            side = "right" if share > 70 else "left"
            axes.text(share, 46, f" {share:.0f} % labelled ", fontsize=8, color=FAINT, ha=side)
        draw_ceiling(axes, ceiling, upright=False)
        axes.set_xlim(0, 101)
        axes.set_ylim(45, 101)
        axes.set_xlabel("pairs labelled, % of all, the surest first")
        axes.set_ylabel("accuracy, %")
        axes.set_title("Accuracy by coverage, on photos not seen; band: 95 % interval")
    return figure


def plot_calibration(calibration: pd.DataFrame, error: float) -> Figure:
    """Accuracy by the confidence that the labeler gave; on the diagonal it means what it says."""
    from matplotlib.figure import Figure

    with plot_style():
        figure = Figure(figsize=(5, 4.6), layout="constrained")
        axes = figure.subplots()
        axes.plot([50, 100], [50, 100], color="#BBBBBB", linewidth=1)
        draw_band(axes, 100 * calibration["confidence"], calibration, MACHINE)
        axes.set_xlim(49, 101)
        axes.set_ylim(30, 102)
        axes.set_xlabel("confidence, %")
        axes.set_ylabel("accuracy, %")
        axes.set_title(f"Calibration (expected error {error:.3f})")
    return figure


def plot_importance(importance: pd.DataFrame) -> Figure:
    """Draw the accuracy lost without each metric."""
    from matplotlib.figure import Figure

    heights = np.arange(len(importance))[::-1]
    with plot_style():
        figure = Figure(figsize=(8, 1.3 + 0.3 * len(importance)), layout="constrained")
        axes = figure.subplots()
        axes.axvline(0, color="#BBBBBB", linewidth=1)
        rows = importance.rename(columns={"loss": "accuracy"}).to_dict("records")
        for height, row in zip(heights, rows, strict=True):
            draw_accuracy(axes, row, height, OTHER)
        axes.set_yticks(heights, importance["metric"])
        axes.tick_params(axis="y", length=0)
        axes.grid(axis="y", visible=False)
        axes.set_xlabel("accuracy lost when the metric is shuffled, percentage points; bars: 95 % interval")
        axes.set_title("What the SVM relies on")
    return figure


def plot_learning_curve(curve: pd.DataFrame, ceiling: dict[str, Any]) -> Figure:
    """Accuracy by the number of labels; still rising at the right end, more labels would help."""
    from matplotlib.figure import Figure

    with plot_style():
        figure = Figure(figsize=(8, 3.6), layout="constrained")
        axes = figure.subplots()
        draw_band(axes, curve["labels"], curve, MACHINE)
        draw_ceiling(axes, ceiling, upright=False)
        axes.set_xlim(left=0)
        axes.set_xlabel("human labels trained on")
        axes.set_ylabel("accuracy, %")
        axes.set_title("Would more labels help? Accuracy on photos not seen; band: 95 % interval")
    return figure
