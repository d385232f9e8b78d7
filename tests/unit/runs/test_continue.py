"""A continued training goes on in the folder that it chose, whatever another version of the code would choose."""

from __future__ import annotations

import pytest

from db.models import Run
from runs.launch import _name_folder


@pytest.mark.parametrize(
    ("kind", "arguments", "continued"),
    [
        ("reward train", ["--preset=tiny"], ["--out=/data/rewards/tiny-1", "--preset=tiny"]),
        ("refl train", ["--preset=tiny", "--out", "there"], ["--preset=tiny", "--out", "there"]),
        ("refl pretrain", ["--out=there"], ["--out=there"]),
        ("annotate import", ["folder"], ["folder"]),
    ],
)
def test_the_folder_is_named_where_nobody_named_it(kind: str, arguments: list[str], continued: list[str]) -> None:
    run = Run(kind=kind, arguments=arguments, config={"out": "/data/rewards/tiny-1"})
    assert _name_folder(run) == continued
    assert _name_folder(Run(kind=kind, arguments=arguments, config={})) == arguments  # it ended before it chose
