"""Restore photos, folders or the database's sources, as candidates to judge: `python -m refl restore`."""

from __future__ import annotations

import gc
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from db.models import Split
from db.records import MAX_SEED
from reward.model.weights_folder import WeightsFolder, choose_weights_folder
from runs.hold import hold_folder
from runs.options import Command, Flag, Input, Options, Output, Place, make_absolute
from runs.progress import show_progress
from runs.store import RunLog, record

if TYPE_CHECKING:
    from db.session import Database
    from refl.restore.files import Enlarger, MadeBy
    from refl.restore.inputs import FaceFinder, Inputs
    from refl.restore.methods import AskedMethod, LoadOptions

DETECTION = "facexlib-detection"
"""In the manifest."""
WITH_FACEXLIB = {"kind": "weights file", "value": DETECTION}
MAX_LISTED = 1_000
MAX_PRINTED = 20
SIZE_LIMIT = 10_000
"""Of counts and of sides in pixels."""


class RestoreOptions(Options):
    """What is restored, by which restorers, and how."""

    inputs: Annotated[list[Path], Input("photos"), Flag(positional=True, metavar="INPUT")] = Field(
        [], description="Photos and folders of them (default: the project's photos)"
    )
    methods: Annotated[
        list[str], Input("restorer", "Restorers"), Flag(name="method", repeated=True, metavar="[NAME=]METHOD")
    ] = Field(
        [],
        description="tiny (shipped with FaceReward), diffbir-v1, diffbir-v2.1, osediff, hypir, osdface, pisasr, gdpo, "
        "pmrf, feedforward:FILE or onnx:FILE with a weight file or a name of `python -m refl weights list`, or a tuned "
        "restorer's folder; NAME= before it names its candidates; repeatable (default: tiny)",
    )
    seeds: list[Annotated[int, Field(ge=0, le=MAX_SEED)]] = Field(
        [0], min_length=1, description="Seeds of the noise, a candidate each"
    )
    steps: int | None = Field(None, ge=1, le=SIZE_LIMIT, description="Denoising steps (default: the restorer's own)")
    strength: float | None = Field(
        None, ge=0, le=10, description="Of a restorer tuned by LoRA: 0 is untuned, 1 as tuned (default: 1)"
    )
    fidelity: float | None = Field(
        None,
        ge=0,
        le=1,
        description="Of CodeFormer as ONNX: 0 trusts what it knows of faces, 1 the photo (default: 0.5)",
    )
    lambda_pix: float | None = Field(
        None, ge=0, le=10, description="Of pisasr: how much the adapters for pixels count (default: 1)"
    )
    lambda_sem: float | None = Field(
        None, ge=0, le=10, description="Of pisasr: how much the adapters for semantic detail count (default: 1)"
    )
    split: Split | None = Field(None, description="Only the project's photos of this split (default: all)")
    source: Annotated[list[str], Flag(repeated=True, metavar="KEY")] = Field(
        [], description="Only this photo of the project; repeatable"
    )
    aligned: bool = Field(False, description="The photos given are cropped faces already, not whole photos")
    skip_bad: bool = Field(False, description="Leave unfit photos out instead of refusing all")
    detector: Literal["dlib", "facexlib"] = Field("dlib", description="What finds faces in whole photos")
    color_fix: Literal["wavelet", "adain", "none"] | None = Field(
        None, description="How the result takes the photo's colours (default: the restorer's own)"
    )
    size: Annotated[int | None, Flag(metavar="PX")] = Field(
        None, ge=1, le=SIZE_LIMIT, description="Longer side of what is stored, pixels (default: the photo's)"
    )
    work_size: Annotated[int | None, Flag(metavar="PX")] = Field(
        None, ge=1, le=SIZE_LIMIT, description="Side at which faces are restored, pixels (default: the restorer's own)"
    )
    out: Annotated[Path | None, Output("Folder of files")] = Field(
        None, description="Write files too: faces, and whole photos with them"
    )
    background: Annotated[str | None, Flag(metavar="FILE")] = Field(
        None, description="Model that enlarges the rest of whole photos (with --out)"
    )
    device: Annotated[str, Flag(terminal_only=True)] = Field("auto", description="auto, cpu, cuda or cuda:N")
    dtype: Literal["float32", "bfloat16", "float16"] = Field("float32", description="Compute dtype")
    batch_size: int = Field(4, ge=1, le=SIZE_LIMIT, description="Faces that go through the restorer together")
    small_memory: bool = Field(False, description="Slower, with less memory: tiles and slices")
    weights: WeightsFolder = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.inputs and (self.split or self.source):
            raise ValueError("--split and --source choose among the database's sources; leave them out beside INPUT")
        if self.split and self.source:
            raise ValueError("Give --split or --source, not both")
        if self.aligned and not self.inputs:
            raise ValueError("--aligned is about INPUT; the database's sources are aligned faces already")
        if self.background and (not self.out or not self.inputs or self.aligned):
            raise ValueError("--background is for whole photos that are written as files: give INPUT and --out")
        return self


def settle_restore(options: RestoreOptions, _data: Path) -> RestoreOptions:
    """Name each restorer once, the shipped one where none is named."""
    return make_absolute(options.model_copy(update={"methods": list(dict.fromkeys(options.methods or ["tiny"]))}))


def run_restore(options: RestoreOptions, place: Place) -> None:
    """Restore as a run, and say what was done."""
    start = time.monotonic()
    with record(RESTORE, options, place) as (database, run):
        result = restore(database, place.data, options, run)
        run.write_result(result)
    print_result(result, options, time.monotonic() - start)


def restore(database: Database, data: Path, options: RestoreOptions, run: RunLog) -> dict[str, Any]:
    """Do all of it; returns what was done, as JSON values."""
    from refl.restore.inputs import Inputs
    from refl.restore.methods import LoadOptions, check_methods, name_methods
    from refl.restore.rows import find_sources
    from training.device import choose_device

    device, weights = choose_device(options.device), choose_weights_folder(options.weights, data)
    load = LoadOptions(
        device=device,
        weights=weights,
        dtype=options.dtype,
        steps=options.steps,
        work_size_px=options.work_size,
        size_px=options.size,
        color_fix=options.color_fix,
        strength=options.strength,
        fidelity=options.fidelity,
        lambda_pix=options.lambda_pix,
        lambda_sem=options.lambda_sem,
        small_memory=options.small_memory,
    )
    named = name_methods(options.methods)
    detects = options.inputs and not options.aligned and options.detector == "facexlib"
    besides = [*([options.background] if options.background else []), *([DETECTION] if detects else [])]
    check_methods(named, load, besides)
    without_lq = 0
    if options.inputs:
        inputs = take_photos(database, data, options, load, run)
    else:
        with database.read() as session:
            ids, without_lq = find_sources(session, options.source, options.split)
        inputs = Inputs(source_ids=ids)
    enlarger = load_background(options.background, weights, device)
    out = options.out
    with hold_folder(out) if out else nullcontext():
        counts, made_by = restore_all(database, data, options, named, load, inputs, run)
        files = write_files(database, data, out, inputs, made_by, enlarger, run) if out else {}
    return {
        **counts,
        "sources": inputs.source_ids[:MAX_LISTED],
        "source_count": len(inputs.source_ids),
        "sources_without_lq": without_lq,
        "without_face": inputs.without_face[:MAX_LISTED],
        "without_face_count": len(inputs.without_face),
        "large_count": len(inputs.large),
        "converted": inputs.converted[:MAX_LISTED],
        "converted_count": len(inputs.converted),
        "refused": inputs.refused[:MAX_LISTED],
        "refused_count": len(inputs.refused),
        **files,
    }


def load_background(asked: str | None, weights: Path, device: str) -> Enlarger | None:
    """The model that enlarges backgrounds, its name and its file's SHA-256."""
    if asked is None:
        return None
    from refl.published.weights import find_file
    from refl.restore.background import load_enlarger

    found = find_file(asked, weights)
    return found.path.stem, found.sha256, load_enlarger(found.path, device)


def take_photos(database: Database, data: Path, options: RestoreOptions, load: LoadOptions, run: RunLog) -> Inputs:
    """Make sources of INPUT."""
    from refl.restore.inputs import add_photos

    with show_progress(run, "looking at photos", "photos") as show:
        return add_photos(
            database,
            data,
            options.inputs,
            None if options.aligned else make_finder(options.detector, load.device, load.weights),
            detector=options.detector,
            skip_bad=options.skip_bad,
            progress=show,
        )


def make_finder(detector: str, device: str, weights: Path) -> FaceFinder:
    """The function that finds faces."""
    from refl.faces.align import find_faces, find_faces_with_facexlib

    if detector == "dlib":
        return find_faces
    from refl.published.weights import find_file

    file = find_file(DETECTION, weights).path
    return lambda photo: find_faces_with_facexlib(photo, file, device)


def restore_all(
    database: Database,
    data: Path,
    options: RestoreOptions,
    methods: Sequence[AskedMethod],
    load: LoadOptions,
    inputs: Inputs,
    run: RunLog,
) -> tuple[dict[str, Any], list[MadeBy]]:
    """Restore by one method after the other, so that one restorer at a time is in the memory."""
    from refl.restore.files import list_made
    from refl.restore.methods import load_method
    from refl.restore.restore import count_missing, restore_missing
    from refl.restore.rows import add_restorer_method

    ids, restored, already = inputs.source_ids, 0, 0
    names: list[str] = []
    made_by: list[MadeBy] = []
    share = len(ids) * len(options.seeds)  # of a method in the progress
    with show_progress(run, "restoring", "faces") as show:
        for number, asked in enumerate(methods):
            method = load_method(asked, load)
            with database.write() as session:
                method_id = add_restorer_method(session, method.name, method.settings, run.run_id)
            seeds = method.seeds_of(options.seeds)
            wanted = len(ids) * len(seeds)
            done = there = wanted - count_missing(method, method_id, database, data, ids, seeds)
            show(number * share + share * done // wanted, share * len(methods))

            def count(more: int, number: int = number, wanted: int = wanted) -> None:
                nonlocal done
                done += more
                show(number * share + share * done // wanted, share * len(methods))

            restored += restore_missing(method, method_id, database, data, ids, seeds, options.batch_size, count)
            already += there
            made_by += list_made(method, method_id, seeds)
            names.append(method.name)
            del method
            if number + 1 < len(methods):
                gc.collect()  # before the next restorer takes as much memory again
    counts = {"restored": restored, "already": already, "methods": names}
    return {**counts, "made_by": [asdict(made) for made in made_by]}, made_by


def write_files(
    database: Database,
    data: Path,
    out: Path,
    inputs: Inputs,
    made_by: Sequence[MadeBy],
    enlarger: Enlarger | None,
    run: RunLog,
) -> dict[str, Any]:
    """Write the faces, and the whole photos with them."""
    from refl.restore.files import write_faces, write_photo

    written = write_faces(database, data, out, inputs.source_ids, made_by)
    photos = []
    with show_progress(run, "writing photos", "photos") as show:
        for done, photo in enumerate(inputs.photos, 1):
            files = write_photo(database, data, out, photo, made_by, enlarger)
            photos.append({"photo": str(photo.file), "faces": len(photo.faces), "files": files})
            show(done, len(inputs.photos))
    return {"face_files": written, "photos": photos[:MAX_LISTED], "photo_count": len(photos), "out": str(out)}


def print_result(result: dict[str, Any], options: RestoreOptions, seconds: float) -> None:
    """What was restored, what was left out, and what comes next."""
    from refl.faces.align import MAX_PIXELS_ENLARGED
    from refl.restore.inputs import NO_FACE

    rate = f" ({result['restored'] / seconds:.2f} faces/s)" if result["restored"] else ""
    print(
        f"{result['restored']:,} faces restored in {seconds:.0f} s{rate}, {result['already']:,} were there: "
        f"{result['source_count']:,} sources, by {', '.join(result['methods'])}"
    )
    for name, done in result["converted"][:MAX_PRINTED]:
        print(f"converted: {name}: {done}")
    for name in result["without_face"][:MAX_PRINTED]:
        print(f"no face found: {name}")
    if result["without_face"]:
        print(NO_FACE[options.detector])
    if result["large_count"]:
        print(
            f"{result['large_count']:,} photos are above {MAX_PIXELS_ENLARGED // 10**6} megapixels: dlib sees no faces "
            "below 80 pixels there; --detector facexlib does"
        )
    for name, why in result["refused"][:MAX_PRINTED]:
        print(f"left out: {name}: {why}")
    for kind in ("converted", "without_face", "refused"):
        if result[f"{kind}_count"] > MAX_PRINTED:
            print(f"and {result[f'{kind}_count'] - MAX_PRINTED:,} more of these")
    if result["sources_without_lq"]:
        print(f"{result['sources_without_lq']:,} sources have no low-quality image and were left out")
    if options.out:
        print(f"{result['face_files']:,} faces and {result['photo_count']:,} photos written to {options.out}")
    print("next: python -m annotate pair, then judge them on the Label page")


def list_used(options: RestoreOptions) -> list[dict[str, str]]:
    """What it uses besides its restorers: what finds faces in whole photos, and what enlarges the rest of them."""
    used = []
    if options.inputs and not options.aligned:
        is_dlib = options.detector == "dlib"
        used.append({"kind": "metric", "value": "landmark_distance"} if is_dlib else WITH_FACEXLIB)
    if options.background:
        used.append({"kind": "weights file", "value": options.background})
    return used


RESTORE = Command(
    "refl restore",
    "restore faces with one or several restorers and seeds",
    RestoreOptions,
    run_restore,
    "Faces are restored by each METHOD with each seed and stored as candidates of their sources, so that they can be "
    "paired and judged. Without INPUT the sources of the database are restored. INPUT is whole photos, whose faces are "
    "found, aligned and become sources named PHOTO#0 and so on from left to right, or with --aligned faces that are "
    "cropped already. What is restored already is not restored again: ended at any time, the same command goes on. A "
    "restored image has the size of its low-quality image.",
    settle_restore,
    uses=list_used,
)
