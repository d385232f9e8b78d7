"""Show the results of a restoring run beside its photos: two pictures under one movable line."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from PIL import Image as PilImage
from sqlalchemy import select
from sqlalchemy.orm import Session

from db.models import Candidate, Image, Method, Run, Source
from runs.store import LIVE_STATES
from ui.context import Context
from ui.html import read_result, render

PHOTO = "the photo"
MAX_ITEMS = 200
FACE_WIDTH_PX = 640
ON_SLIDE = """
const draw = () => {
  const range = element.querySelector('.fr-compare input');
  if (range) range.parentNode.style.setProperty('--at', range.value + '%');
};
element.addEventListener('input', draw);
watch('value', () => requestAnimationFrame(draw));  // other pictures: the range stays where it was
"""
NOTHING = '<p class="fr-note">Nothing to compare yet.</p>'


@dataclass(frozen=True)
class Picture:
    """A picture of a browser's page."""

    address: str
    width_px: int
    height_px: int


Pictures = dict[str, Picture]
"""PHOTO and the names of what made the others, such as 'tiny, seed 0'."""


def choices_of(context: Context, run: Run | None) -> tuple[list[tuple[str, str]], list[str]]:
    """(words and value of what can be looked at: whole photos, then faces; names of what made restored images)."""
    result = _result_of(context, run)
    if not result:
        return [], []
    items = [
        (f"{Path(photo['photo']).name}, the whole photo", f"photo {number}")
        for number, photo in enumerate(result.get("photos", []))
    ]
    with context.database.read() as session:
        ids = result["sources"][:MAX_ITEMS]
        keys = {row.id: row.key for row in session.execute(select(Source.id, Source.key).where(Source.id.in_(ids)))}
    items += [(keys[source_id], f"source {source_id}") for source_id in ids if source_id in keys]
    return items, [made["folder"] for made in result["made_by"]]


def compare_html(context: Context, run: Run | None, item: str | None, left: str | None, right: str | None) -> str:
    """Two pictures of an item over each other; what is left of the line is `left`'s."""
    result = _result_of(context, run)
    if not result or not item or not left or not right:
        return NOTHING
    with context.database.read() as session:
        pictures = _pictures_of(session, result, item)
    missing = [side for side in (left, right) if side not in pictures]
    if missing:
        return render("note.html", text=f"There is no {missing[0]} of this one.")
    return slider_html(pictures[left], pictures[right], left, right)


def slider_html(left: Picture, right: Picture, left_name: str, right_name: str) -> str:
    """The slider: a range under the pictures' whole area, so that mouse, touch and arrow keys move the line."""
    return render(
        "restore/compare.html",
        left=left,
        right=right,
        left_name=left_name,
        right_name=right_name,
        ratio=f"{right.width_px / right.height_px:.4f}",
        largest=max(left.width_px, right.width_px, FACE_WIDTH_PX),
    )


def _result_of(context: Context, run: Run | None) -> dict[str, Any]:
    """Read the result of the latest run; empty where there is none, or it is not finished."""
    if run is None or run.state in LIVE_STATES:
        return {}
    return read_result(context.data, run.id)


def _pictures_of(session: Session, result: dict[str, Any], item: str) -> Pictures:
    """The pictures of an item as `choices_of` names it; none where it is none."""
    kind, _, number = item.partition(" ")
    if not number.isdecimal():
        return {}
    if kind == "photo" and int(number) < len(result.get("photos", [])):
        photo = result["photos"][int(number)]
        files = {PHOTO: photo["photo"], **photo["files"]}
        return {name: _measure(Path(file)) for name, file in files.items() if Path(file).is_file()}
    source = session.get(Source, int(number)) if kind == "source" else None
    if source is None or source.lq is None or source.id not in result["sources"]:
        return {}
    pictures = {PHOTO: _picture(source.lq)}
    folders = {(made["method"], made["seed"]): made["folder"] for made in result["made_by"]}
    made = (
        select(Method.name, Candidate.seed, Image)
        .join(Candidate, Candidate.method_id == Method.id)
        .join(Image, Image.id == Candidate.image_id)
        .where(Candidate.source_id == source.id)
    )
    for name, seed, image in session.execute(made):
        if (name, seed) in folders:
            pictures[folders[name, seed]] = _picture(image)
    return pictures


def _picture(image: Image) -> Picture:
    return Picture(f"../img/{image.sha256}", image.width_px, image.height_px)


def _measure(file: Path) -> Picture:
    """A whole photo, as the browser will show it."""
    with PilImage.open(file) as image:
        width, height = image.size
        if image.getexif().get(0x0112, 1) >= 5:  # lies on its side; the browser turns it
            width, height = height, width
    return Picture(f"gradio_api/file={quote(str(file))}", width, height)
