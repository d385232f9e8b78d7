"""Plan an evaluation, and find all that can be wrong before a restorer or a reward model is loaded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from db.errors import UserError
from db.session import Database
from refl.evaluate.faces import FaceSet, load_sets
from refl.evaluate.fid import is_wanted
from refl.evaluate.options import EvaluateOptions, name_rewards
from refl.evaluate.restored import to_file_name
from refl.restore.methods import AskedMethod, LoadOptions, name_methods
from refl.restorers.load import get_restorer_files
from refl.restorers.outline import Outline, outline_restorer
from reward.model.weights_folder import choose_weights_folder
from reward.score.scorer import check_scorer_captions, check_scorer_inputs, choose_photo, find_scorer
from training.device import choose_device


@dataclass(frozen=True)
class Plan:
    """Everything that was asked for, understood."""

    methods: Sequence[AskedMethod]
    """The first is the base."""
    options: LoadOptions
    sets: Sequence[FaceSet]
    seeds: Sequence[int]
    rewards: Mapping[str, str]
    """Name -> what `load_scorer` takes."""
    notes: Sequence[str]
    """Cautions for a reader of the report."""
    batch_size: int
    total: int
    """Images to restore and to measure, once for each thing that measures them."""

    @property
    def base(self) -> str:
        """The name of the method that the others are held against."""
        return self.methods[0].name


def make_plan(options: EvaluateOptions, database: Database, data: Path) -> Plan:
    """Understand and check all of it.

    Raises:
        UserError: a restorer, a reward model, a file or a face is missing or damaged, sizes do not fit, or a reward
            model lacks captions or the photos that it sees.
    """
    device, weights = choose_device(options.device), choose_weights_folder(options.weights, data)
    methods = name_methods(options.method)
    check_folders([to_file_name(method.name) for method in methods])
    get_restorer_files([method.what for method in methods], weights)
    outlines = [outline_restorer(method.what, weights) for method in methods]
    size_px = options.image_size_px or outlines[0].image_size_px
    check_sizes(size_px, {method.name: outline for method, outline in zip(methods, outlines, strict=True)})
    rewards = name_rewards(options.reward)
    scorers = {name: find_scorer(f"{name}={what}", weights) for name, what in rewards.items()}
    sets = load_sets(options, database, data, size_px)
    notes = []
    for faces in sets:
        without = sum(not face.caption for face in faces.faces)
        for name, scorer in scorers.items():
            things = f"{faces.name} faces"
            lacking = 0 if faces.has_truth or choose_photo(scorer) != "hq" else len(faces.faces)
            instead = f"Leave --wild out, or reward {name} with an evaluation of its own."
            check_scorer_inputs(scorer, lacking, len(faces.faces), things, instead)
            note = check_scorer_captions(scorer, without, len(faces.faces), things, use_prompt=options.use_prompt)
            notes += [f"reward {name}: {note}"] if note else []
    seeds = list(dict.fromkeys(options.seeds))
    images = sum(len(seeds) if outline.is_random else 1 for outline in outlines)
    return Plan(
        methods=methods,
        options=LoadOptions(device, weights, options.dtype, options.steps, work_size_px=size_px),
        sets=sets,
        seeds=seeds,
        rewards=rewards,
        notes=notes,
        batch_size=options.batch_size,
        total=sum(len(faces.faces) * (images * (2 + len(rewards)) + is_wanted(faces) * len(methods)) for faces in sets),
    )


def check_folders(names: Sequence[str]) -> None:
    """Check that no two methods have one folder.

    Raises:
        UserError: two have.
    """
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice:
        raise UserError(f"Two of the restorers would be kept in a folder {twice!r}; rename one: NAME=RESTORER.")


def check_sizes(size_px: int, outlines: Mapping[str, Outline]) -> None:
    """Check that every restorer takes images of this size.

    Raises:
        UserError: one does not.
    """
    for name, outline in outlines.items():
        if size_px % outline.multiple_px:
            raise UserError(
                f"{name} takes sides that are multiples of {outline.multiple_px} px, not {size_px}; set "
                "--image-size-px."
            )
