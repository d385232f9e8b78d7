"""`python -m refl restore`: restored faces of photos, folders or the database's sources, as candidates to judge."""

from __future__ import annotations

import argparse
import gc
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from db.errors import UserError
from reward.model.weights_folder import add_weights_flag, choose_weights_folder
from runs.hold import hold_folder
from runs.store import RunLog, open_run

if TYPE_CHECKING:
    from collections.abc import Iterator

    from db.session import Database
    from refl.restore.files import Enlarger, MadeBy
    from refl.restore.inputs import FaceFinder, Inputs
    from refl.restore.methods import AskedMethod, RestoreOptions

PROGRESS_SECONDS = 1.0
DETECTION = "facexlib-detection"
"""In the manifest."""
MAX_LISTED = 1_000
MAX_PRINTED = 20
MAX_SEED = 2**31 - 1
DESCRIPTION = """Faces are restored by each METHOD with each seed and stored as candidates of their sources, so that
they can be paired and judged. Without INPUT the sources of the database are restored. INPUT is whole photos, whose
faces are found, aligned and become sources named PHOTO#0 and so on from left to right, or with --aligned faces that
are cropped already. What is restored already is not restored again: ended at any time, the same command goes on. A
restored image has the size of its low-quality image."""
METHODS = """tiny (shipped with FaceReward), diffbir-v1, diffbir-v2.1, osediff, feedforward:FILE with a weight file or a
name of `python -m refl weights list`, or the folder of a tuned restorer; NAME= before it names its candidates. Give
the option several times for several methods (default: tiny)"""


def add_restore_command(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """`restore`: photos, folders, or the project's sources."""
    parser = commands.add_parser(
        "restore", help="restore faces with one or several restorers and seeds", description=DESCRIPTION
    )
    what = parser.add_argument_group("what is restored")
    what.add_argument("inputs", nargs="*", type=Path, metavar="INPUT", help="photos and folders of them")
    what.add_argument("--aligned", action="store_true", help="INPUT is cropped faces, not whole photos")
    what.add_argument("--skip-bad", action="store_true", help="leave unfit photos out instead of refusing all")
    what.add_argument("--detector", choices=("dlib", "facexlib"), default="dlib", help="finds faces (default: dlib)")
    what.add_argument("--source", action="append", default=[], metavar="KEY", help="only this source; several times")
    what.add_argument("--split", choices=("train", "val", "test"), help="only the sources of this split")
    how = parser.add_argument_group("how")
    how.add_argument("--method", action="append", metavar="[NAME=]METHOD", help=METHODS)
    how.add_argument("--seeds", nargs="+", type=int, default=[0], metavar="N", help="a candidate each (default: 0)")
    how.add_argument("--steps", type=int, metavar="N", help="denoising steps (default: the restorer's own)")
    how.add_argument("--strength", type=float, metavar="X", help="of a restorer tuned by LoRA: 0 untuned, 1 as tuned")
    how.add_argument("--color-fix", choices=("wavelet", "adain", "none"), help="another than the restorer's own")
    how.add_argument("--size", type=int, metavar="PX", help="longer side of what is stored (default: the photo's)")
    how.add_argument("--work-size", type=int, metavar="PX", help="restore at this size (default: the restorer's own)")
    how.add_argument("--out", type=Path, metavar="DIR", help="write files too: faces, and whole photos with them")
    how.add_argument("--background", metavar="FILE", help="enlarge the rest of whole photos by this model (with --out)")
    where = parser.add_argument_group("where it runs")
    where.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N (default: auto)")
    where.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), default="float32", help="numbers inside")
    where.add_argument("--batch-size", type=int, default=4, metavar="N", help="faces at a time (default: 4)")
    where.add_argument("--small-memory", action="store_true", help="slower, with less memory: tiles and slices")
    add_weights_flag(where)
    parser.set_defaults(command=run_restore)


def run_restore(args: argparse.Namespace) -> None:
    """Restore as a run, and say what was done."""
    check_arguments(args)
    from db.session import open_database

    methods = list(dict.fromkeys(args.method or ["tiny"]))
    config = {"methods": methods, "seeds": args.seeds, "steps": args.steps, "split": args.split}
    config |= {"inputs": [str(path) for path in args.inputs], "sources": len(args.source), "aligned": args.aligned}
    start = time.monotonic()
    database = open_database(args.data, args.db)
    try:
        with open_run(database, args.data, "refl restore", config, args.run) as run:
            result = restore(database, args, methods, run)
            run.write_result(result)
    finally:
        database.close()
    print_result(result, args, time.monotonic() - start)


def check_arguments(args: argparse.Namespace) -> None:
    """That the options can be meant together.

    Raises:
        UserError: they cannot, or a number is out of range.
    """
    for option, least in (("batch_size", 1), ("steps", 1), ("size", 1), ("work_size", 1)):
        value = getattr(args, option)
        if value is not None and not least <= value <= 10_000:
            raise UserError(f"--{option.replace('_', '-')} is {value}; give {least} to 10,000.")
    if not all(0 <= seed <= MAX_SEED for seed in args.seeds):
        raise UserError(f"--seeds are {args.seeds}; give numbers from 0 to {MAX_SEED:,}.")
    if args.inputs and (args.split or args.source):
        raise UserError("--split and --source choose among the database's sources; leave them out beside INPUT.")
    if args.split and args.source:
        raise UserError("Give --split or --source, not both.")
    if args.aligned and not args.inputs:
        raise UserError("--aligned is about INPUT; the database's sources are aligned faces already.")
    if args.background and (not args.out or not args.inputs or args.aligned):
        raise UserError("--background is for whole photos that are written as files: give INPUT and --out.")


def restore(database: Database, args: argparse.Namespace, methods: Sequence[str], run: RunLog) -> dict[str, Any]:
    """Do all of it; returns what was done, as JSON values."""
    from refl.restore.inputs import Inputs
    from refl.restore.methods import RestoreOptions, check_methods, name_methods
    from refl.restore.rows import find_sources
    from training.device import choose_device

    device, weights = choose_device(args.device), choose_weights_folder(args)
    options = RestoreOptions(
        device=device,
        weights=weights,
        dtype=args.dtype,
        steps=args.steps,
        work_size_px=args.work_size,
        size_px=args.size,
        color_fix=args.color_fix,
        strength=args.strength,
        small_memory=args.small_memory,
    )
    named = name_methods(methods)
    detects = args.inputs and not args.aligned and args.detector == "facexlib"
    check_methods(named, options, [*([args.background] if args.background else []), *([DETECTION] if detects else [])])
    without_lq = 0
    if args.inputs:
        inputs = take_photos(database, args, device, weights, run)
    else:
        with database.read() as session:
            ids, without_lq = find_sources(session, args.source, args.split)
        inputs = Inputs(source_ids=ids)
    enlarger = load_background(args.background, weights, device)
    with hold_folder(args.out) if args.out else nullcontext():
        counts, made_by = restore_all(database, args, named, options, inputs, run)
        files = write_files(database, args, inputs, made_by, enlarger, run) if args.out else {}
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


def take_photos(database: Database, args: argparse.Namespace, device: str, weights: Path, run: RunLog) -> Inputs:
    """Make sources of INPUT."""
    from refl.restore.inputs import add_photos

    with show_progress(run, "looking at photos", "photos") as show:
        return add_photos(
            database,
            args.data,
            args.inputs,
            None if args.aligned else make_finder(args.detector, device, weights),
            detector=args.detector,
            skip_bad=args.skip_bad,
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
    args: argparse.Namespace,
    methods: Sequence[AskedMethod],
    options: RestoreOptions,
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
    share = len(ids) * len(args.seeds)  # of a method in the progress
    with show_progress(run, "restoring", "faces") as show:
        for number, asked in enumerate(methods):
            method = load_method(asked, options)
            with database.write() as session:
                method_id = add_restorer_method(session, method.name, method.settings, run.run_id)
            seeds = method.seeds_of(args.seeds)
            wanted = len(ids) * len(seeds)
            done = there = wanted - count_missing(method, method_id, database, args.data, ids, seeds)
            show(number * share + share * done // wanted, share * len(methods))

            def count(more: int, number: int = number, wanted: int = wanted) -> None:
                nonlocal done
                done += more
                show(number * share + share * done // wanted, share * len(methods))

            restored += restore_missing(method, method_id, database, args.data, ids, seeds, args.batch_size, count)
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
    args: argparse.Namespace,
    inputs: Inputs,
    made_by: Sequence[MadeBy],
    enlarger: Enlarger | None,
    run: RunLog,
) -> dict[str, Any]:
    """Write the faces, and the whole photos with them."""
    from refl.restore.files import write_faces, write_photo

    written = write_faces(database, args.data, args.out, inputs.source_ids, made_by)
    photos = []
    with show_progress(run, "writing photos", "photos") as show:
        for done, photo in enumerate(inputs.photos, 1):
            files = write_photo(database, args.data, args.out, photo, made_by, enlarger)
            photos.append({"photo": str(photo.file), "faces": len(photo.faces), "files": files})
            show(done, len(inputs.photos))
    return {"face_files": written, "photos": photos[:MAX_LISTED], "photo_count": len(photos), "out": str(args.out)}


@contextmanager
def show_progress(run: RunLog, stage: str, unit: str) -> Iterator[Callable[[int, int], None]]:
    """A bar where somebody looks, and the run's progress lines."""
    last = 0.0
    with tqdm(desc=stage, unit=f" {unit}", disable=not sys.stderr.isatty()) as bar:

        def show(done: int, total: int) -> None:
            nonlocal last
            bar.total = total
            bar.update(done - bar.n)
            if time.monotonic() - last >= PROGRESS_SECONDS or done == total:
                last = time.monotonic()
                run.progress(done, total, stage=stage)

        yield show


def print_result(result: dict[str, Any], args: argparse.Namespace, seconds: float) -> None:
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
        print(NO_FACE[args.detector])
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
    if args.out:
        print(f"{result['face_files']:,} faces and {result['photo_count']:,} photos written to {args.out}")
    print("next: python -m annotate pair, then judge them on the Label page")
