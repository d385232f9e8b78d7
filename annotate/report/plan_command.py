"""Say how many answers a question takes, before a study or within one: `python -m annotate plan`."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import Field
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from db.models import Candidate, Source
from runs.options import Command, Flag, Options, Place
from runs.store import record

MIN_ANSWERS, MIN_PHOTOS, MIN_PEOPLE = 200, 10, 3
"""Of a project, whose own variance is taken from there on."""
USUAL_METHODS, USUAL_PHOTOS, USUAL_PEOPLE = 4, 50, 5
USUAL_PHOTO_SD, USUAL_PERSON_SD = 0.6, 0.3
"""JOD by which photos, and people, differ in how much better one method is than another; an assumption."""
USUAL_SECONDS, MORE_SECONDS = 5.0, 4.6
"""Of a pair, and of each candidate more: people took 14.3 s in the median to choose the best of four (votes/sr)."""


class PlanOptions(Options):
    """What shall be told, and what is there to tell it with; what is left out comes from the project or is assumed."""

    effect: float = Field(0.3, gt=0, le=10, description="Difference of two methods to tell, in JOD")
    power: float = Field(0.8, gt=0.05, lt=1, description="Chance of telling it")
    alpha: float = Field(0.05, gt=0, lt=0.5, description="Chance of telling a difference where there is none")
    methods: int | None = Field(None, ge=2, le=1_000, description="Methods")
    photos: int | None = Field(None, ge=1, description="Photos")
    people: int | None = Field(None, ge=1, description="People who judge")
    size: int = Field(2, ge=2, le=6, description="Candidates that are asked at once")
    asked: Literal["best", "best_worst", "order"] = Field("best", description="What is asked of more than two")
    seconds: float | None = Field(None, gt=0, description="Seconds an answer")
    photo_sd: Annotated[float | None, Flag(metavar="JOD")] = Field(
        None, ge=0, description="How much photos differ, standard deviation of a difference"
    )
    person_sd: Annotated[float | None, Flag(metavar="JOD")] = Field(
        None, ge=0, description="How much people differ, likewise"
    )


@dataclass(frozen=True)
class Known:
    """What a project tells of a study; None where it does not."""

    methods: int | None = None
    photos: int | None = None
    people: int | None = None
    seconds: float | None = None
    photo_sd: float | None = None
    person_sd: float | None = None


def read_project(session: Session, k: int, asked: str) -> Known:
    """What the project's candidates and answers tell: sizes, the pace of such answers, its own variance in JOD."""
    from annotate.report.plan import average_sd, measure_variation
    from annotate.report.rank import load_answers
    from metrics.votes import JOD

    methods = session.scalar(select(func.count(Candidate.method_id.distinct()))) or 0
    photos = session.scalar(select(func.count(Candidate.source_id.distinct())).join(Source)) or 0
    answers = load_answers(session)
    people = int(answers["person"].nunique())
    sizes = methods if methods > 1 else None, photos or None, people or None
    such = answers[(answers["methods"].map(len) == k) & ((answers["asked"] == asked) | (k == 2))]
    seconds = float(such["seconds"].median()) if len(such) else None
    if len(answers) < MIN_ANSWERS or people < MIN_PEOPLE or answers["source"].nunique() < MIN_PHOTOS:
        return Known(*sizes, seconds)
    _, numbers, covariances = measure_variation(answers)
    photo_sd, person_sd = average_sd(covariances, list(numbers.values()))
    return Known(*sizes, seconds, photo_sd / JOD, person_sd / JOD)


def run_plan(options: PlanOptions, place: Place) -> None:
    """Plan and say it."""
    with record(PLAN, options, place) as (database, run):
        with database.read() as session:
            known = read_project(session, options.size, options.asked)
        result, lines = make_plan(options, known)
        run.write_result(result)
    print("\n".join(lines))


def make_plan(options: PlanOptions, known: Known) -> tuple[dict[str, Any], list[str]]:
    """(the numbers, the sentences) of a plan; infinite numbers of answers are None."""
    from annotate.report.plan import format_time, round_number
    from metrics.power import Needed, Study
    from metrics.stopping import information_needed, single_look_information
    from metrics.votes import JOD

    usual = Known(
        *(USUAL_METHODS, USUAL_PHOTOS, USUAL_PEOPLE),
        USUAL_SECONDS + MORE_SECONDS * (options.size - 2),
        *(USUAL_PHOTO_SD, USUAL_PERSON_SD),
    )
    given: dict[str, Any] = {}
    told: dict[str, str] = {}
    for name in ("methods", "photos", "people", "seconds", "photo_sd", "person_sd"):
        for where, of in (("given", options), ("the project's", known), ("assumed", usual)):
            if name not in given and getattr(of, name) is not None:
                given[name], told[name] = getattr(of, name), where
    seconds, sizes = given["seconds"], {name: int(given[name]) for name in ("methods", "photos", "people")}
    spread = {"photo_sd": given["photo_sd"] * JOD, "person_sd": given["person_sd"] * JOD}
    what = "pairs" if options.size == 2 else f"tasks of {options.size}, {options.asked.replace('_', ' and ')}"
    lines = [
        f"{what}: "
        + ", ".join(f"{sizes[name]:,} {name} ({told[name]})" for name in sizes)
        + f", {seconds:.1f} s an answer ({told['seconds']})",
        f"photos differ by {given['photo_sd']:.2f} JOD ({told['photo_sd']}), people by {given['person_sd']:.2f} JOD "
        f"({told['person_sd']}): standard deviations of how much better one method is than another",
    ]
    study = Study(**sizes, k=options.size, asked=options.asked, **spread)
    asked = options.effect * JOD, options.power, options.alpha
    looks: dict[str, Needed] = {"once": single_look_information, "always": information_needed}
    found = {name: study.variation(1_000).answers_on_the_same(needed, *asked) for name, needed in looks.items()}
    goal = f"{options.effect:g} JOD with {options.power:.0%} power"
    words = {"once": "if you look once, at the end", "always": "if you stop as soon as the report says decided"}
    for name, n in found.items():
        if math.isfinite(n):
            n = round_number(n)
            each = format_time(n * seconds / sizes["people"])
            lines.append(f"{goal} takes about {n:,} answers {words[name]}: {sizes['people']} people × {each}")
            continue
        times = 2 * study.variation(1_000).floor * looks[name](*asked, math.inf)
        larger = Study(
            **{**sizes, "photos": math.ceil(sizes["photos"] * times), "people": math.ceil(sizes["people"] * times)},
            k=options.size,
            asked=options.asked,
            **spread,
        )
        n = round_number(larger.variation(1_000).answers_on_the_same(looks[name], *asked))
        lines.append(
            f"{goal} takes more than any number of answers on these photos by these people {words[name]}; with "
            f"{larger.photos:,} photos and {larger.people:,} people about {n:,} answers do: {larger.people} people × "
            f"{format_time(n * seconds / larger.people)}"
        )
    least = math.sqrt(study.variation(1_000).floor * single_look_information(1.0, options.power, options.alpha)) / JOD
    lines.append(
        f"more answers on the same {sizes['photos']:,} photos by the same {sizes['people']:,} people never tell less "
        f"than {least:.2f} JOD with that power: that is what photos and people differ by"
    )
    numbers = {name: None if math.isinf(n) else round(n) for name, n in found.items()}
    result = {
        **given,
        "from": told,
        "answers_looking_once": numbers["once"],
        "answers_looking_always": numbers["always"],
    }
    return {**result, "least_jod": least}, lines


PLAN = Command(
    "annotate plan",
    "say how many answers it takes to tell two methods apart, and how long",
    PlanOptions,
    run_plan,
    "From the project's own variance where it has enough answers; before a study from its size.",
)
