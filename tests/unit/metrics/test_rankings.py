"""Rankings as text."""

from __future__ import annotations

import pytest

from metrics.rankings import contradicts, derive_pairs, read_ranking, rename_letters, write_ranking


@pytest.mark.parametrize(
    ("tiers", "worst", "size", "text"),
    [
        (["c"], [], 4, "c>?"),
        (["c"], ["b"], 4, "c>?>b"),
        (["c"], ["b"], 3, "c>a>b"),
        (["c", "da"], ["b"], 4, "c>a=d>b"),
        (["c", "a"], [], 4, "c>a>?"),
        (["c", "a", "d"], [], 4, "c>a>d>b"),
        (["abcd"], [], 4, "a=b=c=d"),
        ([], ["e"], 6, "?>e"),
        (["b"], [], 2, "b>a"),
        (["ab"], [], 2, "a=b"),
    ],
)
def test_a_ranking_is_written_in_one_form_and_read_back(
    tiers: list[str], worst: list[str], size: int, text: str
) -> None:
    assert write_ranking(tiers, size, worst) == text
    best, rest, last = read_ranking(text, size)
    assert write_ranking(best, size, last) == text
    assert sorted("".join([*best, rest, *last])) == list("abcdef"[:size])


@pytest.mark.parametrize(
    ("text", "size"),
    [("", 4), ("?", 4), ("c", 4), ("c>?>", 4), ("c>a", 4), ("c>?>c", 4), ("e>?", 4), ("d=a>?", 4), ("b>?", 2),
     ("c>a>d>?", 4), ("a>b>?>?", 6), ("a>?", 7), ("a>?", 1), ("A>?", 4), ("a>b\n", 2)],
)  # fmt: skip
def test_what_is_no_ranking_is_refused(text: str, size: int) -> None:
    with pytest.raises(ValueError, match=r"rank|task|letters"):
        read_ranking(text, size)


def test_a_ranking_tells_of_pairs() -> None:
    assert derive_pairs("c>?", 4) == [("a", "c", "b"), ("b", "c", "b"), ("c", "d", "a")]
    assert len(derive_pairs("c>?>b", 4)) == 5, "all but the two in the middle"
    assert derive_pairs("c>a=d>b", 4)[2] == ("a", "d", "tie")
    assert len(derive_pairs("c>a=d>b", 4)) == 6
    assert len(derive_pairs("a=b=c=d", 4)) == 6
    assert derive_pairs("b>a", 2) == [("a", "b", "b")]


def test_letters_can_be_renamed() -> None:
    assert rename_letters("c>a=d>?", {"c": "a", "a": "d", "d": "b"}) == "a>b=d>?"


def test_an_answer_contradicts_what_is_known_only_the_other_way_round() -> None:
    assert not contradicts("c>?", "c>?>b", 4)
    assert contradicts("b>?", "c>?>b", 4)
    assert not contradicts("b=c>?", "c>b>?", 4), "a tie is not the other way round"
    assert contradicts("a>?", "c>?", 4)
