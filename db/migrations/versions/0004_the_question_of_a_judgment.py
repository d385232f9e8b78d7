"""Record the question of a judgment: every version of the texts, and the version that a judgment answered."""

import hashlib
import json

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

# The settings of a project that never stored any, as they were when this migration was written.
DEFAULTS = {
    "title": "Restored faces",
    "question": "Which restoration is better?",
    "guidelines": """\
Both pictures are restorations of the same low-quality photo. **Choose the one you would rather keep as the portrait
of this person.**

- A face that looks like a *real* person of this photo beats one that is only sharper.
- Look at the eyes, the teeth, the hairline and the skin. Zoom in where you are not sure.
- Hold the input beside them: who invents a different person loses.
- No visible difference that matters: **tie**. You cannot judge at all: **skip**, with the reason.
""",
    "reasons": ["identity", "eyes", "skin", "teeth", "hair", "artefacts"],
    "skip_reasons": ["both bad", "not a face", "identical"],
}


def upgrade() -> None:
    question = op.create_table(
        "question",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("key", sa.String(length=16), nullable=False),
        sa.Column("title", sa.String(), nullable=False),
        sa.Column("question", sa.String(), nullable=False),
        sa.Column("guidelines", sa.String(), nullable=False),
        sa.Column("reasons", sa.JSON(), nullable=False),
        sa.Column("skip_reasons", sa.JSON(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_question")),
        sa.UniqueConstraint("key", name=op.f("uq_question_key")),
    )
    # In plain SQL: Alembic adds a foreign key to SQLite by copying the table.
    op.execute(
        "ALTER TABLE judgment ADD COLUMN question_id INTEGER "
        "CONSTRAINT fk_judgment_question_id_question REFERENCES question (id)"
    )
    _store_present(question)


def _store_present(question: sa.Table) -> None:
    """Keep the present words as version 1, of the judgments made since the settings were last changed.

    What was asked before that change is not known any more: those judgments keep NULL.
    """
    connection = op.get_bind()
    moment = sa.DateTime(timezone=True)
    project = sa.table("project", sa.column("settings", sa.JSON()), sa.column("updated_at", moment))
    person = sa.table("person", sa.column("created_at", moment))
    judgment = sa.table("judgment", sa.column("question_id", sa.Integer()), sa.column("created_at", moment))
    stored = connection.execute(sa.select(project.c.settings, project.c.updated_at)).one_or_none()
    settings = DEFAULTS | (stored.settings if stored else {})
    since = stored.updated_at if stored else connection.scalar(sa.select(sa.func.min(person.c.created_at)))
    if since is None:
        return  # nobody has seen anything yet
    words = {name: settings[name] for name in DEFAULTS}
    # As db.project.question_key.
    key = hashlib.sha256(json.dumps(words, sort_keys=True).encode("ascii")).hexdigest()[:16]
    connection.execute(sa.insert(question).values(id=1, key=key, created_at=since, **words))
    if connection.dialect.name == "postgresql":
        op.execute("SELECT setval(pg_get_serial_sequence('question', 'id'), 1)")
    change = sa.update(judgment).values(question_id=1)
    connection.execute(change.where(judgment.c.created_at >= since) if stored else change)


def downgrade() -> None:
    op.execute("ALTER TABLE judgment DROP COLUMN question_id")
    op.drop_table("question")
