"""Draw the report's pictures: one function per figure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from metrics.votes import JOD
from runs.pictures import COLOURS, FAINT, INK, plot_style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MAX_LINES = 7
"""People with a line of their own in the plot over time; all others are added up in one more."""


SHOWN_CHARACTERS = 36
"""Of a name beside an axis; the tables have the whole of it."""


def _shorten(name: str) -> str:
    """A long name without its middle: what tells names apart stands at their ends."""
    return name if len(name) <= SHOWN_CHARACTERS else f"{name[: SHOWN_CHARACTERS - 13]}…{name[-12:]}"


def name_person(name: str, simulated: bool) -> str:
    """A person's name for people to read, programs marked."""
    return f"{name} (simulated)" if simulated else name


def plot_ranking(ranking: pd.DataFrame) -> Figure:
    """Scores with their intervals, the best on top; a panel for each group of methods that met."""
    from matplotlib.figure import Figure

    groups = [group for _, group in ranking.groupby("component", sort=True)]
    with plot_style():
        height = 1.3 + 0.34 * len(ranking) + 0.5 * (len(groups) - 1)
        figure = Figure(figsize=(8, height), layout="constrained")
        panels = figure.subplots(
            len(groups), sharex=True, squeeze=False, height_ratios=[len(group) + 0.6 for group in groups]
        )[:, 0]
        for place, (axes, group) in enumerate(zip(panels, groups, strict=True)):
            title = "Methods by score"
            _draw_scores(axes, group, title if len(groups) == 1 else f"{title}, group {place + 1}")
        hollow = "" if ranking["low"].notna().all() else "; hollow: no interval"
        jod = panels[0].secondary_xaxis("top", functions=(lambda score: score / JOD, lambda score: score * JOD))
        jod.set_xlabel("score in JOD: 1 more is preferred in 75 %")
        panels[-1].set_xlabel(f"score in log odds, higher is better; bars: 95 % interval{hollow}")
    return figure


def _draw_scores(axes: Axes, group: pd.DataFrame, title: str) -> None:
    heights = np.arange(len(group))[::-1]
    known = group["low"].notna().to_numpy()
    score, low, high = (group[name].to_numpy(dtype=float) for name in ("score", "low", "high"))
    axes.axvline(0, color="#BBBBBB", linewidth=1)
    # A percentile interval may lie beside its point in small samples; a bar has no negative length.
    errors = [(score - low)[known].clip(min=0), (high - score)[known].clip(min=0)]
    bars: dict[str, Any] = {"fmt": "o", "color": COLOURS[0], "capsize": 3, "elinewidth": 1.5, "markersize": 6}
    axes.errorbar(score[known], heights[known], xerr=errors, **bars)
    axes.plot(score[~known], heights[~known], "o", color=COLOURS[0], markerfacecolor="white", markersize=6)
    axes.set_yticks(
        heights, [f"{rank}.  {_shorten(name)}" for rank, name in zip(group["rank"], group["method"], strict=True)]
    )
    axes.set_ylim(-0.6, len(group) - 0.4)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="y", visible=False)
    for height, n in zip(heights, group["n_judgments"], strict=True):
        axes.text(1.01, height, f"n = {n}", transform=axes.get_yaxis_transform(), va="center", color=FAINT, fontsize=8)
    axes.set_title(title)


def plot_win_matrix(shares: pd.DataFrame, counts: pd.DataFrame) -> Figure:
    """Draw how often the row's method won over the column's, in percent, with the number of judgments below."""
    import matplotlib
    from matplotlib.figure import Figure

    n = len(shares)
    values = shares.to_numpy(dtype=float)
    names = [_shorten(name) for name in shares.index]
    longest = max(map(len, names), default=0)
    with plot_style():
        side = 0.55 * n + 0.08 * longest
        figure = Figure(figsize=(side + 2.2, side + 0.9), layout="constrained")
        axes = figure.subplots()
        colours = matplotlib.colormaps["PuOr"].with_extremes(bad="#F4F4F4")
        picture = axes.imshow(100 * np.ma.masked_invalid(values), cmap=colours, vmin=0, vmax=100)
        for row, column in zip(*np.nonzero(np.isfinite(values)), strict=True):
            share, number = values[row, column], counts.iloc[row, column]
            ink = "white" if abs(share - 0.5) > 0.33 else INK
            axes.text(column, row - 0.1, f"{100 * share:.0f}", ha="center", va="center", color=ink, fontsize=9)
            axes.text(column, row + 0.27, f"n {number}", ha="center", va="center", color=ink, fontsize=6)
        axes.set_xticks(
            range(n), [_shorten(name) for name in shares.columns], rotation=45, ha="right", rotation_mode="anchor"
        )
        axes.set_yticks(range(n), names)
        axes.set_xticks(np.arange(n + 1) - 0.5, minor=True)
        axes.set_yticks(np.arange(n + 1) - 0.5, minor=True)
        axes.grid(visible=False)
        axes.grid(which="minor", color="white", linewidth=1.5)
        axes.tick_params(which="both", length=0)
        axes.spines[:].set_visible(False)
        figure.colorbar(picture, ax=axes, shrink=0.6, label="row wins over column, %  (a tie is half a win)")
        axes.set_title("Head to head")
    return figure


def plot_over_time(judgments: pd.DataFrame) -> Figure:
    """Judgments made so far, a step line per person (UTC).

    Args:
        judgments: person, simulated and created_at, a row per judgment.
    """
    from matplotlib.dates import AutoDateLocator, ConciseDateFormatter
    from matplotlib.figure import Figure

    order = judgments["person"].value_counts().index.tolist()
    programs = set(judgments.loc[judgments["simulated"], "person"])
    shown = order if len(order) == MAX_LINES + 1 else order[:MAX_LINES]
    others = f"{len(order) - len(shown)} others together"
    lines = judgments["person"].where(judgments["person"].isin(shown), others)
    with plot_style():
        figure = Figure(figsize=(8, 4), layout="constrained")
        axes = figure.subplots()
        for place, name in enumerate([name for name in [*shown, others] if (lines == name).any()]):
            times = judgments.loc[lines == name, "created_at"].sort_values().to_numpy()
            made = np.arange(1, len(times) + 1)
            # A thousand steps are more than the picture has pixels for.
            kept = np.unique(np.linspace(0, len(times) - 1, 1000).astype(int))
            # The number first: matplotlib leaves out of a legend whatever begins with an underscore.
            label = f"{len(times)} by {name_person(_shorten(name), name in programs)}"
            axes.step(times[kept], made[kept], where="post", color=COLOURS[place], label=label)
            axes.plot(times[-1:], made[-1:], "o", color=COLOURS[place], markersize=4)
        start, end = judgments["created_at"].min(), judgments["created_at"].max()
        room = pd.Timedelta(minutes=1)  # so that a few seconds of judging have an axis too
        axes.set_xlim(start - max(room, 0.02 * (end - start)), end + max(room, 0.02 * (end - start)))
        # With 5, its default, a range of 3.5 to 5 minutes would have more ticks of 30 s than it may.
        locator = AutoDateLocator(minticks=3, maxticks=8)  # type: ignore[no-untyped-call]
        axes.xaxis.set_major_locator(locator)
        axes.xaxis.set_major_formatter(ConciseDateFormatter(locator))  # type: ignore[no-untyped-call]
        axes.set_ylim(bottom=0)
        axes.set_ylabel("judgments so far")
        axes.set_xlabel("time, UTC")
        axes.set_title("Judgments over time")
        figure.legend(loc="outside right upper")
    return figure


def plot_people(people: pd.DataFrame) -> Figure:
    """Each person's consistency on repeats and agreement with the others, with 95 % intervals."""
    from matplotlib.figure import Figure

    panels = (
        ("consistency", "repeats", "Same answer when shown again", COLOURS[0]),
        ("agreement", "shared_pairs", "Same answer as most others", COLOURS[1]),
    )
    heights = np.arange(len(people))[::-1]
    with plot_style():
        figure = Figure(figsize=(9, 1.4 + 0.4 * len(people)), layout="constrained")
        for axes, (measure, count, title, colour) in zip(figure.subplots(1, 2, sharey=True), panels, strict=True):
            known = people[measure].notna().to_numpy()
            value, low, high = (100 * people[f"{measure}{end}"].to_numpy(dtype=float) for end in ("", "_low", "_high"))
            errors = [(value - low)[known].clip(min=0), (high - value)[known].clip(min=0)]
            axes.errorbar(
                value[known],
                heights[known],
                xerr=errors,
                fmt="o",
                color=colour,
                capsize=3,
                elinewidth=1.5,
                markersize=6,
            )
            for height in heights[~known]:
                axes.text(50, height, "not enough data", ha="center", va="center", color=FAINT, fontsize=9)
            for height, n in zip(heights, people[count], strict=True):
                axes.text(
                    1.02, height, f"n = {n}", transform=axes.get_yaxis_transform(), va="center", color=FAINT, fontsize=8
                )
            axes.set_xlim(-2, 102)
            axes.set_ylim(-0.6, len(people) - 0.4)
            axes.set_yticks(heights, map(name_person, people["person"].map(_shorten), people["simulated"]))
            axes.tick_params(axis="y", length=0)
            axes.grid(axis="y", visible=False)
            axes.set_xlabel("percent; bars: 95 % interval")
            axes.set_title(title)
    return figure
