"""What a licence's words allow, what installed packages say, and what is kept of it."""

from __future__ import annotations

from importlib import metadata

import pytest

from licences import packages
from licences.packages import list_code, list_needed, read_package
from licences.terms import Licensed, Terms, format_list, from_json, normalise, read_terms, sort_strictest, to_json


@pytest.mark.parametrize(
    ("words", "terms"),
    [
        ("PolyForm-Noncommercial-1.0.0", Terms.non_commercial),
        ("NTU S-Lab License 1.0: non-commercial", Terms.non_commercial),
        ("Apache-2.0; its decoder began as NVIDIA's StyleGAN2, which is non-commercial", Terms.non_commercial),
        ("CC-BY-NC-SA-4.0", Terms.non_commercial),
        ("for research only", Terms.non_commercial),
        ("CC BY NC 4.0", Terms.non_commercial),
        ("cc_by_nc_sa", Terms.non_commercial),
        ("non\N{NON-BREAKING HYPHEN}commercial", Terms.non_commercial),
        ("non \N{EN DASH} commercial", Terms.non_commercial),
        ("No commercial use", Terms.non_commercial),
        ("Not for commercial use", Terms.non_commercial),
        ("commercial use is prohibited", Terms.non_commercial),
        ("academic use only", Terms.non_commercial),
        ("for research use only", Terms.non_commercial),
        ("only for personal use", Terms.non_commercial),
        ("commercial use allowed", Terms.unknown),
        ("MIT, bought for commercial use", Terms.permissive),
        ("not stated", Terms.unknown),
        ("none stated by its authors; another model of theirs is Apache-2.0", Terms.unknown),
        ("", Terms.unknown),
        ("whatever Bob says", Terms.unknown),
        ("CreativeML Open RAIL++-M", Terms.own_terms),
        ("LicenseRef-NVIDIA-Proprietary", Terms.own_terms),
        ("GPL-3.0-or-later", Terms.copyleft),
        ("LGPL-3.0-only", Terms.weak_copyleft),
        ("MPL-2.0 AND (Apache-2.0 OR MIT)", Terms.weak_copyleft),
        ("Apache-2.0 OR GPL-2.0", Terms.permissive),
        ("MIT AND GPL-3.0", Terms.copyleft),
        ("BSD-3-Clause AND 0BSD AND MIT AND Zlib AND CC0-1.0", Terms.permissive),
        ("public domain", Terms.permissive),
        ("CC BY 4.0", Terms.permissive),
    ],
)
def test_words_say_what_is_asked_for(words, terms):
    assert read_terms(words) is terms


@pytest.mark.parametrize(
    ("words", "known"),
    [
        ("Apache 2.0 License", "Apache-2.0"),
        ("MIT License", "MIT"),
        ("BSD 3-Clause License", "BSD-3-Clause"),
        ("Mozilla Public License 2.0 (MPL 2.0)", "MPL-2.0"),
        ("Boost Software License", "BSL-1.0"),
        ("Beerware", "Beerware"),
    ],
)
def test_other_names_of_a_licence_become_its_id(words, known):
    assert normalise(words) == known


def test_the_strictest_comes_first_and_each_once():
    mild, unknown, strict = (
        Licensed("code", name, words) for name, words in (("a", "MIT"), ("b", ""), ("c", "CC-BY-NC"))
    )
    assert sort_strictest([mild, strict, unknown, mild]) == [strict, unknown, mild]
    assert from_json(to_json([mild, strict, unknown])) == [strict, unknown, mild]
    assert format_list([mild, strict])[0] == "- c (code): CC-BY-NC. **non-commercial**"
    for damaged in ("{", "[1]", '[{"kind": "code"}]'):
        with pytest.raises(ValueError, match=r"."):
            from_json(damaged)


def fake_metadata(monkeypatch, text):
    import email

    told = metadata._adapters.Message(email.message_from_string(f"Name: x\nVersion: 1\n{text}\n"))
    monkeypatch.setattr(packages.metadata, "metadata", lambda _name: told)


@pytest.mark.parametrize(
    ("told", "licence"),
    [
        ("License-Expression: MIT OR Apache-2.0\nLicense: proprietary", "MIT OR Apache-2.0"),
        ("License: BSD", "BSD"),
        ("License: Copyright (c) 2001 somebody\nClassifier: License :: OSI Approved :: BSD License", "BSD"),
        ("License: UNKNOWN\nClassifier: License :: OSI Approved :: MIT License", "MIT"),
        ("Classifier: Programming Language :: Python", "not stated"),
    ],
)
def test_a_package_says_its_licence_in_one_of_three_places(monkeypatch, told, licence):
    fake_metadata(monkeypatch, told)
    assert read_package("x") == Licensed("code", "x 1", licence)


def test_no_package_that_is_asked_for_is_of_unknown_terms():
    found = list_code()
    assert len(found) > 20
    assert [str(one) for one in found if one.terms is Terms.unknown] == []
    assert [one.name.split()[0] for one in found if one.terms is Terms.non_commercial] in ([], ["pyiqa"])


def test_what_a_package_needs_is_found():
    found = list_needed(["pytest", "no-such-package"])
    assert "pluggy" in found
    assert "no-such-package" not in found
