"""Draw the pictures of an evaluation: one function per figure.

A scorer's colour is that of its place among the shown ones, the same in every picture of lines.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from reward.evaluate.compare import AGREEMENT_NAMES
from runs.pictures import COLOURS, FAINT, INK, draw_accuracy, draw_band, draw_ceiling, plot_style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

KIND_COLOURS = {"reward model": COLOURS[1], "pair predictor": COLOURS[3], "metric": COLOURS[0]}
MAX_BARS, MAX_LINES, MAX_METHODS, MAX_METHOD_PAIRS = 40, 6, 12, 30
"""Scorers with a bar, or with a line; methods, and pairs of them, that are drawn. The CSV files have all."""


def plot_accuracy(scorers: pd.DataFrame, ceiling: dict[str, Any]) -> Figure:
    """Accuracy of every scorer with its interval, the best on top; a line at the human ceiling."""
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    table = scorers.sort_values("accuracy", ascending=False, kind="stable").head(MAX_BARS)
    heights = np.arange(len(table))[::-1]
    with plot_style():
        figure = Figure(figsize=(8, 1.7 + 0.3 * len(table)), layout="constrained")
        axes = figure.subplots()
        for height, row in zip(heights, table.to_dict("records"), strict=True):
            draw_accuracy(axes, row, float(height), KIND_COLOURS[row["kind"]])
        draw_ceiling(axes, ceiling)
        axes.axvline(50, color="#BBBBBB", linewidth=1)
        name_rows(axes, heights, table["scorer"])
        lines, names = axes.get_legend_handles_labels()
        for kind in dict.fromkeys(table["kind"]):
            lines.append(Line2D([], [], color=KIND_COLOURS[kind], marker="o", linestyle=""))
            names.append(kind)
        legend = axes.get_legend()
        if legend:
            legend.remove()
        figure.legend(lines, names, loc="outside lower center", ncols=4)
        axes.set_xlabel("accuracy, % of people's answers; bars: 95 % interval")
        axes.set_title("Scorers against people, on photos not seen")
    return figure


def name_rows(axes: Axes, heights: Any, names: Sequence[str] | pd.Series[str]) -> None:
    """Names at the rows of a picture of points."""
    axes.set_yticks(heights, list(names))
    axes.set_ylim(-0.7, len(heights) - 0.3)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="y", visible=False)


def plot_calibration(curves: pd.DataFrame, shown: Sequence[str]) -> Figure:
    """Accuracy by the confidence that a scorer gave; on the diagonal it means what it says."""
    from matplotlib.figure import Figure

    with plot_style():
        figure = Figure(figsize=(6, 5), layout="constrained")
        axes = figure.subplots()
        axes.plot([50, 100], [50, 100], color="#BBBBBB", linewidth=1)
        for name in [name for name in shown if (curves["scorer"] == name).any()]:
            curve = curves[curves["scorer"] == name]
            draw_band(axes, 100 * curve["confidence"], curve, COLOURS[shown.index(name)])
            axes.lines[-1].set_label(name)
        axes.set_xlim(49, 101)
        axes.set_ylim(max(0.0, min(30.0, 100 * curves["low"].min() - 3)), 102)
        axes.set_xlabel("confidence, %")
        axes.set_ylabel("accuracy, % of people's answers")
        axes.set_title("Calibration; band: 95 % interval")
        figure.legend(loc="outside lower center", ncols=3)
    return figure


def plot_conditions(agreement: pd.DataFrame, margin: pd.DataFrame, shown: Sequence[str]) -> Figure:
    """Accuracy by how far people agreed, and by how far apart the scorer sees the two images."""
    from matplotlib.figure import Figure

    known = [name for name in AGREEMENT_NAMES if (agreement["agreement"] == name).any()] or ["not known"]
    bins = sorted(margin["bin"].unique())
    with plot_style():
        figure = Figure(figsize=(9, 4.2), layout="constrained")
        left, right = figure.subplots(1, 2, sharey=True)
        for place, name in enumerate(shown):
            aside = 0.08 * (place - (len(shown) - 1) / 2)
            by_agreement = agreement[agreement["scorer"] == name].set_index("agreement").reindex(known)
            by_margin = margin[margin["scorer"] == name].set_index("bin").reindex(bins)
            for axes, table in ((left, by_agreement), (right, by_margin)):
                value, low, high = (100 * table[column].to_numpy(dtype=float) for column in ("accuracy", "low", "high"))
                errors = np.nan_to_num([(value - low).clip(min=0), (high - value).clip(min=0)])
                axes.errorbar(
                    np.arange(len(table)) + aside,
                    value,
                    yerr=errors,
                    fmt="o-",
                    color=COLOURS[place],
                    label=name if axes is left else None,
                    markersize=4,
                    linewidth=1,
                    elinewidth=1,
                )
        for axes in (left, right):
            axes.axhline(50, color="#BBBBBB", linewidth=1)
            axes.grid(axis="x", visible=False)
        left.set_xticks(range(len(known)), known)
        left.set_xlim(-0.5, len(known) - 0.5)
        left.set_title("By agreement of people")
        left.set_ylabel("accuracy, % of people's answers")
        right.set_xticks(range(len(bins)), ["closest", *[""] * (len(bins) - 2), "furthest apart"][: len(bins)])
        right.set_xlim(-0.5, len(bins) - 0.5)
        right.set_title("By margin of the scorer, in quarters of the pairs")
        figure.legend(loc="outside lower center", ncols=3)
    return figure


def plot_method_pairs(method_pairs: pd.DataFrame, shown: Sequence[str]) -> Figure:
    """Accuracy of scorers on each pair of methods, in percent; pairs with the most labels first."""
    import matplotlib
    from matplotlib.figure import Figure

    counts = (
        method_pairs.groupby("methods")["n"].max().sort_values(ascending=False, kind="stable").head(MAX_METHOD_PAIRS)
    )
    table = method_pairs.pivot(index="methods", columns="scorer", values="accuracy").loc[counts.index, list(shown)]
    values = table.to_numpy(dtype=float)
    longest = max(len(name) for name in table.index)
    with plot_style():
        figure = Figure(figsize=(2.6 + 0.08 * longest + 0.8 * len(shown), 2.2 + 0.3 * len(table)), layout="constrained")
        axes = figure.subplots()
        colours = matplotlib.colormaps["PuOr"].with_extremes(bad="#F4F4F4")
        picture = axes.imshow(100 * np.ma.masked_invalid(values), cmap=colours, vmin=0, vmax=100, aspect="auto")
        for row, column in zip(*np.nonzero(np.isfinite(values)), strict=True):
            ink = "white" if abs(values[row, column] - 0.5) > 0.27 else INK
            axes.text(column, row, f"{100 * values[row, column]:.0f}", ha="center", va="center", color=ink, fontsize=9)
        axes.set_xticks(range(len(shown)), shown, rotation=30, ha="right", rotation_mode="anchor")
        axes.set_yticks(range(len(table)), [f"{name}  (n {counts[name]})" for name in table.index])
        axes.grid(visible=False)
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        figure.colorbar(picture, ax=axes, shrink=0.8, label="accuracy, %")
        axes.set_title("By pair of methods")
    return figure


def plot_rankings(methods: pd.DataFrame, shown: Sequence[str]) -> Figure:
    """Ranks of the methods by people and by scorers, a line per method."""
    from matplotlib.figure import Figure

    table = methods.sort_values("people", ascending=False, kind="stable").head(MAX_METHODS)
    columns = ["people", *shown]
    ranks = table[columns].rank(ascending=False, method="first")
    with plot_style():
        figure = Figure(figsize=(3.4 + 1.1 * len(columns), 1.6 + 0.35 * len(table)), layout="constrained")
        axes = figure.subplots()
        for place, (name, row) in enumerate(zip(table["method"], ranks.to_numpy(dtype=float), strict=True)):
            colour = COLOURS[place % len(COLOURS)]
            axes.plot(range(len(columns)), row, "o-", color=colour, linewidth=1.5)
            axes.text(-0.12, row[0], f"{int(row[0])}.  {name}", ha="right", va="center")
        axes.set_xticks(range(len(columns)), columns, rotation=30, ha="right", rotation_mode="anchor")
        axes.set_xlim(-0.1, len(columns) - 0.9)
        axes.set_ylim(len(table) + 0.5, 0.5)
        axes.set_yticks([])
        axes.spines["left"].set_visible(False)
        axes.grid(visible=False)
        axes.set_title("Methods ranked by people and by scorers")
    return figure


def plot_robustness(robustness: pd.DataFrame, shown: Sequence[str]) -> Figure:
    """Share of pairs whose preference stays when both images change alike."""
    from matplotlib.figure import Figure

    conditions = list(dict.fromkeys(robustness["condition"]))
    names = [name for name in shown if (robustness["scorer"] == name).any()]
    heights = np.arange(len(conditions))[::-1]
    height_of = dict(zip(conditions, heights, strict=True))
    with plot_style():
        figure = Figure(figsize=(8, 1.7 + 0.4 * len(conditions)), layout="constrained")
        axes = figure.subplots()
        for place, name in enumerate(names):
            rows = robustness[robustness["scorer"] == name].assign(accuracy=lambda table: table["same"])
            aside = min(0.22, 0.8 / len(names)) * ((len(names) - 1) / 2 - place)
            for row in rows.to_dict("records"):
                draw_accuracy(axes, row, height_of[row["condition"]] + aside, COLOURS[shown.index(name)])
            axes.plot([], [], "o", color=COLOURS[shown.index(name)], label=name)
        axes.axvline(100, color=FAINT, linewidth=1)
        name_rows(axes, heights, conditions)
        axes.set_xlabel("pairs with the same preference as before, %; bars: 95 % interval")
        axes.set_title("Do answers stay when images change a little?")
        figure.legend(loc="outside lower center", ncols=3)
    return figure
