"""Find the photo that was restored of each image in a folder of photos, by its name, for rewards that see both."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path, PurePath

from db.errors import UserError
from runs.image_folders import list_images, normalize_name

ENDINGS = ("_out", "_00", "_restored")
"""What restorers write behind a photo's name: 0001_out.png, and 0001_00.png for its first face."""
Tail = tuple[str, ...]
"""A file's last folders and its stem, in one case and form: Windows and Macs take Face01 and face01 for one."""


class InputPhotos:
    """The photos of a folder, by their names."""

    def __init__(self, folder: Path) -> None:
        """List them.

        Raises:
            UserError: the folder is not there, cannot be read, or holds no image.
        """
        if not folder.is_dir():
            raise UserError(f"{folder} is no folder; --inputs names the one with the photos that were restored.")
        self.folder = folder
        self.files: dict[Tail, list[Path]] = {}
        for file in list_images(folder, recursive=True):
            self.files.setdefault(_name(file.relative_to(folder)), []).append(file)
        if not self.files:
            raise UserError(f"No image in {folder}; --inputs names the folder with the photos that were restored.")

    def find(self, image: PurePath) -> Path | None:
        """The photo that an image was made of; None where there is none of its name.

        That in the same sub-folder comes before one further up, since restorers keep sub-folders and put a folder of
        their own before them; a whole name before one without a restorer's ending.

        Args:
            image: its path below the folder that was asked for, or its name alone.
        Raises:
            UserError: two photos have the name, in another case or format.
        """
        *folders, stem = _name(image)
        stems = [stem, *(stem.removesuffix(ending) for ending in ENDINGS if stem.endswith(ending) and stem != ending)]
        for start in range(len(folders) + 1):
            for name in stems:
                found = self.files.get((*folders[start:], name), [])
                exact = [file for file in found if file.stem == image.stem] if len(found) > 1 else found
                if len(exact) == 1:
                    return exact[0]
                if found:
                    raise UserError(
                        f"{self.folder}: {_list(found)} could each be the photo of {image}; leave one of them."
                    )
        return None


def _name(path: PurePath) -> Tail:
    return tuple(normalize_name(part).casefold() for part in (*path.parts[:-1], os.path.splitext(path.name)[0]))


def _list(files: Sequence[Path]) -> str:
    return " and ".join(file.name for file in files)
