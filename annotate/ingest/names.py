"""Match the names of restored images with those of photos, and report those without a match.

Restorers write 0001_out.png or 0001_00.png for 0001.png; Windows and Macs take Face01 and face01 for one name, and
spreadsheets turn 0012 into 12.
"""

from __future__ import annotations

import os
import shlex
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

NO_LQ = "no lq image of that name"
SEPARATORS = "_-. ("
"""An ending begins with one of these."""


class Matching:
    """Match of file stems to photos.

    Args:
        photos: stem to file of the images in lq/.
        strip_suffixes: endings that are taken off where that gives a photo's name; of the photos where all have it.
        ignore_case: whether names that differ only in case are one.
    """

    def __init__(
        self, photos: Mapping[str, str] | None = None, strip_suffixes: Sequence[str] = (), *, ignore_case: bool = False
    ) -> None:
        photos = photos or {}
        self.suffixes = sorted(strip_suffixes, key=len, reverse=True)
        self.ignore_case = ignore_case
        self.photo_suffix = next((end for end in self.suffixes if _have_ending(photos, end)), "")
        self.files = {self.photo_key(stem): file for stem, file in photos.items()}
        self.by_folded: dict[str, list[str]] = {}
        self.by_number: dict[str, str] = {}
        for key in self.files:
            self.by_folded.setdefault(key.casefold(), []).append(key)
            self.by_number[_drop_zeros(key)] = key

    def photo_key(self, stem: str) -> str:
        """A photo's name: its stem, without the ending that all photos have and that is to be taken off."""
        return stem.removesuffix(self.photo_suffix)

    def match(self, stem: str) -> str:
        """The name of the photo that this is an image of; the stem itself where there is none."""
        shorter = [stem, *(stem.removesuffix(end) for end in self.suffixes if stem.endswith(end))]
        for name in [*shorter, *(name.removesuffix(self.photo_suffix) for name in shorter)]:
            if name in self.files:
                return name
            folded = self.by_folded.get(name.casefold(), [])
            if self.ignore_case and len(folded) == 1:
                return folded[0]
        return stem

    def explain(self, stem: str) -> str:
        """Explain why a stem matches no photo."""
        folded = self.by_folded.get(stem.casefold(), [])
        if folded:
            return f"differs only in case from {self.files[folded[0]]}"
        same_number = self.by_number.get(_drop_zeros(stem))
        if same_number is not None:
            return f"{NO_LQ}, but there is {self.files[same_number]}: a spreadsheet may have dropped the zeros"
        return NO_LQ

    def advise(self, unmatched: Iterable[str]) -> list[str]:
        """Suggest options, in words, that would match left-over files to their photos.

        Args:
            unmatched: files, each with its folder.
        """
        by_folder: dict[str, list[str]] = {}
        for name in unmatched:
            folder, file = os.path.split(name)
            by_folder.setdefault(folder, []).append(os.path.splitext(file)[0])
        endings = {folder: ending for folder, stems in by_folder.items() if (ending := self._common_ending(stems))}
        for ending in [] if endings else _endings(self.files):  # that of the photos, and others in other folders
            bare = Matching({stem.removesuffix(ending): file for stem, file in self.files.items()})
            found = {folder: bare._common_ending(stems) for folder, stems in by_folder.items()}
            if all(found.values()):
                endings = {os.path.dirname(next(iter(self.files.values()))): ending, **found}
                break
        shorter = [stem.removesuffix(endings.get(folder, "")) for folder, stems in by_folder.items() for stem in stems]
        cased = any(name not in self.files and name.casefold() in self.by_folded for name in shorter)
        advice = []
        if endings:
            named = ", ".join(f"{folder} end in {ending!r}" for folder, ending in list(endings.items())[:5])
            wanted = dict.fromkeys(endings.values())
            options = " ".join(shlex.quote(f"--strip-suffix={ending}") for ending in wanted)
            advice.append(
                f"Names in {named}: {options} takes that off (on the Data page: Endings of names, {' '.join(wanted)})."
            )
        advice += [
            f"Names in {folder} begin with {start!r}: take that off, or name the files in a manifest."
            for folder, stems in by_folder.items()
            if folder not in endings and (start := self._common_start(stems))
        ]
        if cased and not self.ignore_case:
            advice.append("Names differ only in case: --ignore-case takes them for one (on the Data page: Any case).")
        return advice

    def _common_ending(self, stems: Sequence[str]) -> str:
        """The ending that most of a folder's stems have after a photo's name, or that all photos have after theirs."""
        found = Counter(ending for stem in stems if (ending := self._find_ending(stem)))
        if found:
            return found.most_common(1)[0][0]
        for ending in _endings(self.files):
            if sum(stem + ending in self.files for stem in stems) == len(stems):
                return ending
        return ""

    def _common_start(self, stems: Sequence[str]) -> str:
        """Return the start that all of a folder's stems have before a photo's name; empty where there is none."""
        starts = [
            {
                stem[:place]
                for place in range(1, len(stem))
                if stem[place:] in self.files and not stem[place - 1].isalnum()
            }
            for stem in stems
        ]
        return min(set.intersection(*starts), key=len, default="") if starts else ""

    def _find_ending(self, stem: str) -> str:
        """Return what follows the longest photo's name that begins the stem, in any case; empty where none does."""
        for place in range(len(stem) - 1, 0, -1):
            name, ending = stem[:place], stem[place:]
            # 10 is not 1 with an ending, nor is anna an ann; 0001x4 is 0001 with one.
            parted = not ending[0].isalnum() or (name[-1].isdigit() and not ending[0].isdigit())
            if parted and name.casefold() in self.by_folded:
                return ending
        return ""


def _have_ending(stems: Iterable[str], ending: str) -> bool:
    """Whether all stems have the ending, and something before it."""
    stems = list(stems)
    return bool(ending) and bool(stems) and all(stem.endswith(ending) and stem != ending for stem in stems)


def _endings(stems: Iterable[str]) -> list[str]:
    """The endings, from a separator on, that all stems have, the shortest first."""
    stems = list(stems)
    shortest = min(stems, key=len, default="")
    endings = (shortest[place:] for place in range(len(shortest) - 1, 0, -1) if shortest[place] in SEPARATORS)
    return [ending for ending in endings if _have_ending(stems, ending)]


def _drop_zeros(stem: str) -> str:
    return stem.lstrip("0") or "0"
