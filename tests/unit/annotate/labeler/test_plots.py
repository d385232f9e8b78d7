"""The report's pictures with names of any length and kind."""

from __future__ import annotations

import warnings

import pandas as pd
import pytest

from annotate.report.plots import plot_over_time, plot_people, plot_ranking, plot_win_matrix

LONG = "codeformer-" + "x" * 170 + "-seed-1"
LONG_TOO = "codeformer-" + "x" * 170 + "-seed-2"


def test_long_names_leave_room_for_what_is_drawn() -> None:
    names = [LONG, LONG_TOO]
    shares = pd.DataFrame([[float("nan"), 0.5], [0.5, float("nan")]], index=names, columns=names)
    counts = pd.DataFrame([[0, 4], [4, 0]], index=names, columns=names)
    ranking = pd.DataFrame(
        {"component": 1, "rank": [1, 2], "method": names, "score": [1.0, -1.0], "low": [0.5, -2.0], "high": [2.0, 0.0]}
    ).assign(n_judgments=4)
    people = pd.DataFrame({"person": names, "simulated": False, "repeats": 5, "shared_pairs": 5})
    people = people.assign(
        **{f"{measure}{end}": 0.5 for measure in ("consistency", "agreement") for end in ("", "_low", "_high")}
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # "axes sizes collapsed to zero"
        for figure in (plot_ranking(ranking), plot_win_matrix(shares, counts), plot_people(people)):
            figure.draw_without_rendering()
            width, height = figure.get_size_inches()
            axes = figure.axes[0].get_position()
            assert max(width, height) < 10
            assert axes.width > 0.2
            drawn = [label.get_text() for label in figure.axes[0].get_yticklabels()]
            assert len(set(drawn)) == 2, "names that differ at their end are told apart"


def test_nobody_is_left_out_of_the_legend() -> None:
    """matplotlib hides what begins with an underscore."""
    made = pd.DataFrame({"person": ["_ada", "_ada", "ben"], "simulated": False})
    made["created_at"] = pd.to_datetime(["2026-01-01", "2026-01-02", "2026-01-02"], utc=True)
    legend = plot_over_time(made).legends[0]
    assert [text.get_text() for text in legend.get_texts()] == ["2 by _ada", "1 by ben"]


@pytest.mark.parametrize("minutes", [0, 1.6, 2.5, 150, 3 * 24 * 60, 80 * 24 * 60])
def test_the_time_axis_has_ticks_however_long_people_judged(minutes: float) -> None:
    start = pd.Timestamp("2026-11-28 18:00", tz="UTC")
    made = pd.DataFrame(
        {"person": "ada", "simulated": False, "created_at": [start, start + pd.Timedelta(minutes, "min")]}
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # "AutoDateLocator was unable to pick an appropriate interval"
        figure = plot_over_time(made)
        figure.draw_without_rendering()
    assert len(figure.axes[0].get_xticks()) >= 2
