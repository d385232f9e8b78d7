"""Give tasks of three to six candidates their tables, and let leases and judgments be of one."""

import sqlalchemy as sa
from alembic import op
from alembic.operations import BatchOperations

import db.models

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None

SIDES, CHOICES = ("a", "b"), ("a", "b", "tie", "skip")
OLD_PICKED = ("random", "uncertain", "disagreement", "diverse", "leftover")
PICKED = (*OLD_PICKED, "information")
ASKED = ("pair", "best", "best_worst", "order")
MOMENT = db.models.UtcDateTime(timezone=True)
# Rules of a judgment and of a lease that is of a pair or of a task.
JUDGMENT_RULES = {
    "pair_or_task": "(pair_id IS NULL) <> (task_id IS NULL)",
    "side_of_pair": "(shown_left IS NULL) = (pair_id IS NULL)",
    "places_of_task": "(places IS NULL) = (task_id IS NULL)",
    "asked_pair": "(asked = 'pair') = (task_id IS NULL)",
    "choice_or_ranking": "(choice IS NULL) = (ranking IS NOT NULL)",
    "pair_has_choice": "pair_id IS NULL OR choice IS NOT NULL",
    "task_ranked_or_skip": "task_id IS NULL OR choice IS NULL OR choice = 'skip'",
    "ranking_has_no_skip_reason": "choice IS NOT NULL OR skip_reason IS NULL",
}
LEASE_RULES = {name: JUDGMENT_RULES[name] for name in ("pair_or_task", "side_of_pair", "places_of_task", "asked_pair")}
LIVE = sa.text("superseded_at IS NULL")
# Columns as older steps added them, each with its rule inside: SQLite could not drop them again otherwise.
OLD_COLUMNS = {
    "picked": "VARCHAR(16) DEFAULT 'random' NOT NULL CONSTRAINT ck_{table}_picked CHECK (picked IN ({picked}))",
    "question_id": "INTEGER CONSTRAINT fk_judgment_question_id_question REFERENCES question (id)",
    "server_seconds": "DOUBLE CONSTRAINT ck_judgment_server_seconds_not_negative CHECK (server_seconds >= 0)",
}


def upgrade() -> None:
    op.create_table(
        "task",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("key", sa.String(length=32), nullable=False),
        sa.Column("source_id", sa.Integer(), nullable=False),
        sa.Column("size", sa.Integer(), nullable=False),
        sa.Column("shuffle_key", sa.Integer(), nullable=False),
        sa.Column("reserved", sa.Boolean(), server_default=sa.true(), nullable=False),
        sa.Column("judgments_wanted", sa.Integer(), nullable=False),
        sa.Column("judgment_count", sa.Integer(), nullable=False),
        sa.Column("gold_ranking", sa.String(length=16), nullable=True),
        sa.Column(
            "queue_level",
            sa.Integer(),
            sa.Computed(
                "CASE WHEN gold_ranking IS NULL AND judgment_count < judgments_wanted THEN judgment_count END",
                persisted=True,
            ),
            nullable=True,
        ),
        sa.Column("created_at", MOMENT, nullable=False),
        sa.CheckConstraint("size BETWEEN 3 AND 6", name=op.f("ck_task_size_3_to_6")),
        sa.CheckConstraint("judgment_count >= 0", name=op.f("ck_task_count_not_negative")),
        sa.ForeignKeyConstraint(["source_id"], ["source.id"], name=op.f("fk_task_source_id_source")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_task")),
        sa.UniqueConstraint("key", name=op.f("uq_task_key")),
    )
    op.create_index("ix_task_source_id", "task", ["source_id"])
    op.create_index("ix_task_queue", "task", ["queue_level", "shuffle_key"])
    op.create_index("ix_task_reserve", "task", ["reserved", "queue_level", "shuffle_key"])
    op.create_index("ix_task_gold", "task", ["gold_ranking", "shuffle_key"])
    op.create_table(
        "task_candidate",
        sa.Column("task_id", sa.Integer(), nullable=False),
        sa.Column("letter", sa.String(length=1), nullable=False),
        sa.Column("candidate_id", sa.Integer(), nullable=False),
        sa.CheckConstraint("letter IN ('a', 'b', 'c', 'd', 'e', 'f')", name=op.f("ck_task_candidate_letter_known")),
        sa.ForeignKeyConstraint(["task_id"], ["task.id"], name=op.f("fk_task_candidate_task_id_task")),
        sa.ForeignKeyConstraint(
            ["candidate_id"], ["candidate.id"], name=op.f("fk_task_candidate_candidate_id_candidate")
        ),
        sa.PrimaryKeyConstraint("task_id", "letter", name=op.f("pk_task_candidate")),
        sa.UniqueConstraint("task_id", "candidate_id", name=op.f("uq_task_candidate_task_id_candidate_id")),
    )
    op.create_index("ix_task_candidate_candidate_id", "task_candidate", ["candidate_id"])
    links = _take_links()
    with op.batch_alter_table("judgment", copy_from=_judgment(new=False)) as batch:
        batch.alter_column("pair_id", existing_type=sa.Integer(), nullable=True)
        batch.alter_column("shown_left", existing_type=sa.String(16), nullable=True)
        batch.alter_column("choice", existing_type=sa.String(16), nullable=True)
        batch.drop_constraint(op.f("ck_judgment_picked"), type_="check")
        _add_columns(batch, "judgment")
        batch.add_column(sa.Column("ranking", sa.String(16), nullable=True))
        batch.create_check_constraint(op.f("ck_judgment_picked"), _one_of("picked", PICKED))
        for name, rule in JUDGMENT_RULES.items():
            batch.create_check_constraint(op.f(f"ck_judgment_{name}"), rule)
    op.create_index(
        "uq_judgment_live_of_task",
        "judgment",
        ["task_id", "person_id", "repeat_no"],
        unique=True,
        sqlite_where=LIVE,
        postgresql_where=LIVE,
    )
    _put_links(links)
    with op.batch_alter_table("lease", copy_from=_lease(new=False)) as batch:
        batch.alter_column("pair_id", existing_type=sa.Integer(), nullable=True)
        batch.alter_column("shown_left", existing_type=sa.String(16), nullable=True)
        batch.drop_constraint(op.f("ck_lease_picked"), type_="check")
        _add_columns(batch, "lease")
        batch.create_check_constraint(op.f("ck_lease_picked"), _one_of("picked", PICKED))
        batch.create_unique_constraint(op.f("uq_lease_task_id_person_id"), ["task_id", "person_id"])
        for name, rule in LEASE_RULES.items():
            batch.create_check_constraint(op.f(f"ck_lease_{name}"), rule)
    with op.batch_alter_table("shortlist", copy_from=_shortlist(new=False)) as batch:
        batch.alter_column("pair_id", existing_type=sa.Integer(), nullable=True)
        batch.drop_constraint(op.f("ck_shortlist_picked"), type_="check")
        batch.add_column(_task_id("shortlist"))
        batch.create_check_constraint(op.f("ck_shortlist_picked"), _one_of("picked", PICKED))
        batch.create_check_constraint(op.f("ck_shortlist_pair_or_task"), JUDGMENT_RULES["pair_or_task"])
    op.create_index("ix_shortlist_task_id", "shortlist", ["task_id"])


def downgrade() -> None:
    # Answers about tasks have no place in the older tables; the labels made of them go too.
    of_tasks = (
        "(SELECT label_id FROM label_judgment JOIN judgment ON judgment.id = judgment_id WHERE task_id IS NOT NULL)"
    )
    labels = list(op.get_bind().execute(sa.text(f"SELECT DISTINCT label_id FROM {of_tasks} AS made")).scalars())
    for label_id in labels:
        for table, column in (("label_judgment", "label_id"), ("label", "id")):
            op.execute(f"DELETE FROM {table} WHERE {column} = {label_id}")
    for table in ("judgment", "lease", "shortlist"):
        op.execute(f"DELETE FROM {table} WHERE task_id IS NOT NULL OR picked = 'information'")
    op.drop_index("ix_shortlist_task_id", "shortlist")
    with op.batch_alter_table("shortlist", copy_from=_shortlist(new=True)) as batch:
        for name in ("picked", "pair_or_task"):
            batch.drop_constraint(op.f(f"ck_shortlist_{name}"), type_="check")
        batch.drop_column("task_id")
        batch.alter_column("pair_id", existing_type=sa.Integer(), nullable=False)
        batch.create_check_constraint(op.f("ck_shortlist_picked"), _one_of("picked", OLD_PICKED))
    with op.batch_alter_table("lease", copy_from=_lease(new=True)) as batch:
        for name in ("picked", "asked", *LEASE_RULES):
            batch.drop_constraint(op.f(f"ck_lease_{name}"), type_="check")
        batch.drop_constraint(op.f("uq_lease_task_id_person_id"), type_="unique")
        for column in ("task_id", "places", "asked"):
            batch.drop_column(column)
        batch.alter_column("pair_id", existing_type=sa.Integer(), nullable=False)
        batch.alter_column("shown_left", existing_type=sa.String(16), nullable=False)
        batch.create_check_constraint(op.f("ck_lease_picked"), _one_of("picked", OLD_PICKED))
    _add_anew("lease", "picked")
    op.drop_index("uq_judgment_live_of_task", "judgment")
    links = _take_links()
    with op.batch_alter_table("judgment", copy_from=_judgment(new=True)) as batch:
        for name in ("picked", "asked", *JUDGMENT_RULES):
            batch.drop_constraint(op.f(f"ck_judgment_{name}"), type_="check")
        for column in ("task_id", "places", "asked", "ranking"):
            batch.drop_column(column)
        batch.alter_column("pair_id", existing_type=sa.Integer(), nullable=False)
        batch.alter_column("shown_left", existing_type=sa.String(16), nullable=False)
        batch.alter_column("choice", existing_type=sa.String(16), nullable=False)
        batch.create_check_constraint(op.f("ck_judgment_picked"), _one_of("picked", OLD_PICKED))
    _add_anew("judgment", "picked", "question_id", "server_seconds")
    _put_links(links)
    op.drop_table("task_candidate")
    op.drop_table("task")


def _one_of(column: str, words: tuple[str, ...]) -> str:
    return f"{column} IN ({', '.join(repr(word) for word in words)})"


def _task_id(table: str) -> sa.Column[int]:
    return sa.Column("task_id", sa.Integer(), sa.ForeignKey("task.id", name=f"fk_{table}_task_id_task"), nullable=True)


def _add_columns(batch: BatchOperations, table: str) -> None:
    """Add the columns of which a lease and a judgment have the same."""
    batch.add_column(_task_id(table))
    batch.add_column(sa.Column("places", sa.String(6), nullable=True))
    batch.add_column(sa.Column("asked", sa.String(16), server_default="pair", nullable=False))
    batch.create_check_constraint(op.f(f"ck_{table}_asked"), _one_of("asked", ASKED))


def _take_links() -> bool:
    """Put the links of labels to judgments aside: SQLite copies the table of judgments, and they point to it."""
    if op.get_bind().dialect.name != "sqlite":
        return False
    op.execute("CREATE TEMPORARY TABLE link_of_label AS SELECT label_id, judgment_id FROM label_judgment")
    op.execute("DELETE FROM label_judgment")
    return True


def _put_links(taken: bool) -> None:
    if taken:
        op.execute("INSERT INTO label_judgment (label_id, judgment_id) SELECT label_id, judgment_id FROM link_of_label")
        op.execute("DROP TABLE link_of_label")


def _add_anew(table: str, *columns: str) -> None:
    """Add columns of SQLite once more as OLD_COLUMNS says, with their values."""
    if op.get_bind().dialect.name != "sqlite":
        return
    describe = _judgment if table == "judgment" else _lease
    names = ", ".join(columns)
    op.execute("CREATE TEMPORARY TABLE value_of (id INTEGER PRIMARY KEY, picked, question_id, server_seconds)")
    op.execute(f"INSERT INTO value_of (id, {names}) SELECT id, {names} FROM {table}")
    rules = {"picked": "picked", "server_seconds": "server_seconds_not_negative"}
    with op.batch_alter_table(table, copy_from=describe(new=False)) as batch:
        for column in columns:
            if column in rules:
                batch.drop_constraint(op.f(f"ck_{table}_{rules[column]}"), type_="check")
            batch.drop_column(column)
    words = ", ".join(f"'{word}'" for word in OLD_PICKED)
    for column in columns:
        op.execute(f"ALTER TABLE {table} ADD COLUMN {column} {OLD_COLUMNS[column].format(table=table, picked=words)}")
        op.execute(f"UPDATE {table} SET {column} = (SELECT {column} FROM value_of WHERE value_of.id = {table}.id)")
    op.execute("DROP TABLE value_of")


def _new_parts(table: str, rules: dict[str, str]) -> list[sa.schema.SchemaItem]:
    return [
        sa.Column("task_id", sa.Integer(), nullable=True),
        sa.ForeignKeyConstraint(["task_id"], ["task.id"], name=f"fk_{table}_task_id_task"),
        sa.Column("places", sa.String(6), nullable=True),
        sa.Column("asked", sa.String(16), server_default="pair", nullable=False),
        sa.CheckConstraint(_one_of("asked", ASKED), name=f"ck_{table}_asked"),
        *(sa.CheckConstraint(rule, name=f"ck_{table}_{name}") for name, rule in rules.items()),
    ]


def _judgment(new: bool) -> sa.Table:
    """Describe the table before and after this step: SQLite's reflection does not tell of all of it."""
    return sa.Table(
        "judgment",
        sa.MetaData(),
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("uuid", sa.String(36), nullable=False),
        sa.Column("pair_id", sa.Integer(), nullable=new),
        sa.Column("person_id", sa.Integer(), nullable=False),
        sa.Column("question_id", sa.Integer(), nullable=True),
        sa.Column("repeat_no", sa.Integer(), nullable=False),
        sa.Column("choice", sa.String(16), nullable=new),
        sa.Column("skip_reason", sa.String(), nullable=True),
        sa.Column("reasons", sa.JSON(), nullable=False),
        sa.Column("shown_left", sa.String(16), nullable=new),
        sa.Column("picked", sa.String(16), server_default="random", nullable=False),
        sa.Column("view_mode", sa.String(), nullable=False),
        sa.Column("seconds", sa.Double(), nullable=False),
        sa.Column("server_seconds", sa.Double(), nullable=True),
        sa.Column("created_at", MOMENT, nullable=False),
        sa.Column("superseded_at", MOMENT, nullable=True),
        sa.Column("discarded_at", MOMENT, nullable=True),
        sa.CheckConstraint(_one_of("choice", CHOICES), name="ck_judgment_choice"),
        sa.CheckConstraint(_one_of("shown_left", SIDES), name="ck_judgment_side"),
        sa.CheckConstraint(_one_of("picked", PICKED if new else OLD_PICKED), name="ck_judgment_picked"),
        sa.CheckConstraint("(choice = 'skip') = (skip_reason IS NOT NULL)", name="ck_judgment_skip_has_reason"),
        sa.CheckConstraint("repeat_no >= 0", name="ck_judgment_repeat_not_negative"),
        sa.CheckConstraint("seconds >= 0", name="ck_judgment_seconds_not_negative"),
        sa.CheckConstraint("server_seconds >= 0", name="ck_judgment_server_seconds_not_negative"),
        sa.ForeignKeyConstraint(["pair_id"], ["pair.id"], name="fk_judgment_pair_id_pair"),
        sa.ForeignKeyConstraint(["person_id"], ["person.id"], name="fk_judgment_person_id_person"),
        sa.ForeignKeyConstraint(["question_id"], ["question.id"], name="fk_judgment_question_id_question"),
        sa.PrimaryKeyConstraint("id", name="pk_judgment"),
        sa.UniqueConstraint("uuid", name="uq_judgment_uuid"),
        sa.Index("ix_judgment_person_id_id", "person_id", "id"),
        sa.Index("uq_judgment_live", "pair_id", "person_id", "repeat_no", unique=True, sqlite_where=LIVE),
        *([*_new_parts("judgment", JUDGMENT_RULES), sa.Column("ranking", sa.String(16))] if new else []),
    )


def _lease(new: bool) -> sa.Table:
    return sa.Table(
        "lease",
        sa.MetaData(),
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("pair_id", sa.Integer(), nullable=new),
        sa.Column("person_id", sa.Integer(), nullable=False),
        sa.Column("repeat_no", sa.Integer(), nullable=False),
        sa.Column("shown_left", sa.String(16), nullable=new),
        sa.Column("picked", sa.String(16), server_default="random", nullable=False),
        sa.Column("leased_at", MOMENT, nullable=True),
        sa.Column("expires_at", MOMENT, nullable=False),
        sa.CheckConstraint(_one_of("shown_left", SIDES), name="ck_lease_side"),
        sa.CheckConstraint(_one_of("picked", PICKED if new else OLD_PICKED), name="ck_lease_picked"),
        sa.ForeignKeyConstraint(["pair_id"], ["pair.id"], name="fk_lease_pair_id_pair"),
        sa.ForeignKeyConstraint(["person_id"], ["person.id"], name="fk_lease_person_id_person"),
        sa.PrimaryKeyConstraint("id", name="pk_lease"),
        sa.UniqueConstraint("pair_id", "person_id", name="uq_lease_pair_id_person_id"),
        sa.Index("ix_lease_expires_at", "expires_at"),
        sa.Index("ix_lease_person_id", "person_id"),
        *(
            [
                *_new_parts("lease", LEASE_RULES),
                sa.UniqueConstraint("task_id", "person_id", name="uq_lease_task_id_person_id"),
            ]
            if new
            else []
        ),
    )


def _shortlist(new: bool) -> sa.Table:
    return sa.Table(
        "shortlist",
        sa.MetaData(),
        sa.Column("picked", sa.String(16), nullable=False),
        sa.Column("place", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("pair_id", sa.Integer(), nullable=new),
        sa.CheckConstraint(_one_of("picked", PICKED if new else OLD_PICKED), name="ck_shortlist_picked"),
        sa.CheckConstraint("picked NOT IN ('random', 'leftover')", name="ck_shortlist_active_order"),
        sa.CheckConstraint("place >= 0", name="ck_shortlist_place_not_negative"),
        sa.ForeignKeyConstraint(["pair_id"], ["pair.id"], name="fk_shortlist_pair_id_pair"),
        sa.PrimaryKeyConstraint("picked", "place", name="pk_shortlist"),
        sa.Index("ix_shortlist_pair_id", "pair_id"),
        *(
            [
                sa.Column("task_id", sa.Integer(), nullable=True),
                sa.ForeignKeyConstraint(["task_id"], ["task.id"], name="fk_shortlist_task_id_task"),
                sa.CheckConstraint(JUDGMENT_RULES["pair_or_task"], name="ck_shortlist_pair_or_task"),
            ]
            if new
            else []
        ),
    )
