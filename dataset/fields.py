"""Name the types of fields that rows of a dataset share."""

from __future__ import annotations

from typing import Annotated

from pydantic import ConfigDict, Field, StringConstraints

from db.records import MAX_SEED

STRICT = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)
Text = Annotated[str, StringConstraints(pattern=r"^[^\x00]*$")]  # PostgreSQL stores no NUL
Name = Annotated[str, StringConstraints(min_length=1, pattern=r"^[^\x00]+$")]
Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
Key = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{32}$")]
QuestionKey = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{16}$")]
Uuid = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$")]
Seed = Annotated[int, Field(ge=0, le=MAX_SEED)]
