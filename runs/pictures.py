"""Set the look of the pictures in a run's report, and write one as PNG and SVG.

Figures are made without pyplot, so that nothing is shared between threads. Colours are Okabe and Ito's, which people
with any colour vision tell apart.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from runs.files import write_whole

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#8C8C8C"]
INK, FAINT = "#222222", "#8A8A8A"
PEOPLE = COLOURS[2]
"""Colour of people, beside machines."""
PNG_DPI = 150
STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#BBBBBB",
    "axes.labelcolor": INK,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.grid": True,
    "grid.color": "#E6E6E6",
    "axes.axisbelow": True,
    "legend.frameon": False,
    "text.parse_math": False,  # a $ in a method's name is a $
    "svg.hashsalt": "facereward",
}


@contextmanager
def plot_style() -> Iterator[None]:
    """The pictures' fonts and lines, for what is drawn in the block."""
    import matplotlib

    with matplotlib.rc_context(STYLE):
        yield


def save_figure(figure: Figure, folder: Path, name: str) -> None:
    """Write `name`.png and `name`.svg; the same figure gives the same bytes."""
    png, svg = io.BytesIO(), io.BytesIO()
    with plot_style():
        figure.savefig(png, format="png", dpi=PNG_DPI, metadata={"Software": None})
        figure.savefig(svg, format="svg", metadata={"Date": None})
    for kind, drawn in (("png", png), ("svg", svg)):
        write_whole(folder / f"{name}.{kind}", drawn.getvalue())


def mark_simulated(figure: Figure) -> None:
    """Say on the picture that programs' answers are among the labels."""
    figure.suptitle("Simulated annotators are among the labels: not about people", color="#B91C1C", fontsize=9)


def draw_accuracy(axes: Axes, row: Mapping[Any, Any], height: float, colour: str) -> None:
    """A point at a share in percent, with its interval where there is one: accuracy, low and high of the row."""
    value, low, high = (100 * float(row[name]) for name in ("accuracy", "low", "high"))
    errors = None if np.isnan(low) else [[max(0.0, value - low)], [max(0.0, high - value)]]
    axes.errorbar([value], [height], xerr=errors, fmt="o", color=colour, capsize=3, elinewidth=1.5, markersize=6)


def draw_ceiling(axes: Axes, ceiling: dict[str, Any], *, upright: bool = True) -> None:
    """A line where people are, where that is known."""
    value = ceiling.get("value")
    if value is None or np.isnan(value):
        return
    draw = axes.axvline if upright else axes.axhline
    draw(100 * value, color=PEOPLE, linestyle="--", linewidth=1.5, label=f"human ceiling, {100 * value:.0f} %")
    axes.legend(loc="lower right")


def draw_band(axes: Axes, at: pd.Series[float], table: pd.DataFrame, colour: str) -> None:
    """A line of accuracies in percent with the band of their intervals: accuracy, low and high of the table."""
    axes.plot(at, 100 * table["accuracy"], "o-", color=colour, markersize=4)
    axes.fill_between(at, 100 * table["low"], 100 * table["high"], color=colour, alpha=0.15, linewidth=0)
