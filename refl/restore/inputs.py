"""Add photos to the database as sources: an aligned face is one, a whole photo gives one per face found in it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from db.errors import UserError
from db.session import Database
from refl.faces.align import MAX_PIXELS_ENLARGED, TEMPLATE_SIZE_PX, Points, RgbImage, align_face, compute_alignment
from refl.faces.photo_files import PhotosRefused, check_photos, encode_png, find_photos, read_photo
from refl.restore.rows import add_face

FaceFinder = Callable[[RgbImage], list[Points]]
NO_FACE = {
    "dlib": "dlib sees upright faces, turned by up to 30°, of 80 pixels or more (40 in photos of up to 4 megapixels). "
    "Turn the photo upright, or try --detector facexlib, which sees smaller and more turned faces (pip install "
    "facexlib); or crop the faces and give --aligned.",
    "facexlib": "facexlib sees faces turned by up to some 45°, of 16 pixels or more. Turn the photo upright, or crop "
    "the faces and give --aligned.",
}
"""By detector: what to do where it finds no face."""


@dataclass(frozen=True)
class PhotoFaces:
    """A whole photo and where the faces lie that became sources."""

    file: Path
    faces: dict[int, Points]
    """Source id to the five points."""


@dataclass
class Inputs:
    """Sources made of the photos."""

    source_ids: list[int] = field(default_factory=list)
    photos: list[PhotoFaces] = field(default_factory=list)
    """Whole photos, those without a face too."""
    without_face: list[str] = field(default_factory=list)
    large: list[str] = field(default_factory=list)
    """Photos above MAX_PIXELS_ENLARGED, where dlib may have passed over small faces."""
    converted: list[tuple[str, str]] = field(default_factory=list)
    """(file, what was done to it before anything was looked for): transparency, EXIF, colours, 16 bits."""
    refused: list[tuple[str, str]] = field(default_factory=list)
    """(file, why) of those left out."""


def add_photos(
    database: Database,
    data: Path,
    places: Sequence[Path],
    find: FaceFinder | None,
    *,
    detector: str = "dlib",
    skip_bad: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Inputs:
    """Make sources of the photos of files and folders; those that are there already stay as they are.

    Every photo is decoded before anything is stored.

    Args:
        find: finds the faces of a whole photo; None where every photo is an aligned face.
        detector: what `find` is, one of NO_FACE.
        skip_bad: leave unfit photos out instead of refusing all.
        progress: called with (photos done, total).
    Raises:
        PhotosRefused: photos are unfit, without `skip_bad`.
        UserError: no photo, a photo of that name is stored with other pixels, or no face in any photo.
    """
    files = find_photos(places)
    fit, unfit = check_photos(files)
    if unfit and (not skip_bad or not fit):
        advice = " or leave it out with --skip-bad" if fit else ""
        raise PhotosRefused(unfit, f"Nothing was restored; mend it{advice}.")
    converted = [(str(file), probe.conversion) for file, probe in fit.items() if probe.conversion]
    inputs = Inputs(refused=unfit, converted=converted)
    if find is not None and detector == "dlib":
        large = (file for file, probe in fit.items() if probe.width_px * probe.height_px > MAX_PIXELS_ENLARGED)
        inputs.large = [str(file) for file in large]
    for done, file in enumerate(fit, 1):
        if find is None:
            with database.write() as session:
                inputs.source_ids.append(add_face(session, data, file.stem, read_photo(file)[1], name=str(file)))
        else:
            _add_whole_photo(database, data, file, find, inputs)
        if progress:
            progress(done, len(fit))
    if not inputs.source_ids:
        raise UserError(
            f"No face was found in {', '.join(inputs.without_face[:5])}{' …' if len(fit) > 5 else ''}. "
            f"{NO_FACE[detector]}"
        )
    return inputs


def _add_whole_photo(database: Database, data: Path, file: Path, find: FaceFinder, inputs: Inputs) -> None:
    """Find the faces of a photo and make each a source, all in one transaction."""
    pixels, _ = read_photo(file)
    found = find(pixels)
    faces: dict[int, Points] = {}
    with database.write() as session:
        for number, points in enumerate(found):
            alignment = compute_alignment(points, TEMPLATE_SIZE_PX)
            content = encode_png(align_face(pixels, alignment, TEMPLATE_SIZE_PX))
            key = f"{file.stem}#{number}"
            faces[add_face(session, data, key, content, group=file.stem, name=f"face {number} of {file}")] = points
    inputs.photos.append(PhotoFaces(file, faces))
    inputs.source_ids += faces
    if not found:
        inputs.without_face.append(str(file))
