"""Define the settings of fitting a labeler, apart from the fitting, so that pages need not load scikit-learn."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field
from sqlalchemy.orm import Session

from db.project import load_settings
from metrics.lists import choose_usual
from runs.options import Input, Options


class FitSettings(Options):
    """How a labeler is fitted."""

    metrics: Annotated[str, Input("metrics", "Metric list")] = Field(
        "offline", min_length=1, description="Metric list: a shipped one's name, or a TOML file"
    )
    kernel: Literal["auto", "linear", "rbf"] = Field(
        "auto", description="Kernel of the SVM; auto takes the one with the smaller held-out loss"
    )
    target_accuracy: float = Field(
        0.9, gt=0.5, lt=1, description="Target accuracy of machine labels; the SVM abstains on the others"
    )
    confidence: float = Field(
        0.9, gt=0.5, lt=1, description="Confidence that the target is kept; without it the SVM abstains wholly"
    )
    folds: int = Field(5, ge=2, le=50, description="Held-out folds, grouped by the person in the photo")
    seed: int = Field(0, ge=0, description="Seed of folds, resampling and the parts drawn")
    include_simulated: bool = Field(False, description="Learn from simulated annotators too; the labels then say so")
    quick: bool = Field(
        False,
        description="Leave out the other classifiers, importance and the learning curve, which take most of the time",
    )


def choose_metrics(session: Session) -> str:
    """The metric list that pages offer first in this project."""
    return choose_usual(commercial=load_settings(session).commercial)


SVM, LOGISTIC, BOOSTING, SIDE = "SVM", "logistic regression", "gradient boosting", "majority side"
"""Rows of a fit's methods.csv that are not a metric alone."""
MIN_ANSWERS = 30
"""Answers that are no ties before the first fit: annotate.labeler.svm.MIN_LABELS, which would load scikit-learn."""
