"""What Overview and the filled demo ask of the database, on SQLite and on PostgreSQL."""

from __future__ import annotations

from pathlib import Path

from sqlalchemy import select

from annotate.judging.people import add_person
from annotate.judging.simulate import get_annotator
from db.models import Method, MetricValue, Pair, Run, RunState
from db.session import Database
from runs.store import insert_run
from tests.making import add_image_row, add_pairs, fetch, judge
from ui.context import Context
from ui.filling import clear_demo, look_at_demo
from ui.overview.routes import describe_overview


def test_the_overview_counts_and_the_demo_is_cleared(any_database: Database, data: Path, database_url: str) -> None:
    with any_database.write() as session:
        add_pairs(session, 3)
        pairs = session.scalars(select(Pair.id).order_by(Pair.id)).all()
        program, ada = get_annotator(session).id, add_person(session, "ada").id
        judge(session, program, pairs[0])
        judge(session, ada, pairs[1])
        session.add(MetricValue(image_id=add_image_row(session, "e").id, metric="m", version="1", value=1.0))
        kinds = ("annotate fit", "refl restore")
        done = {"person_id": program, "state": RunState.finished, "inputs": [], "outputs": []}
        made = [insert_run(session, data, kind, {}, **done).id for kind in kinds]
        session.scalars(select(Method).order_by(Method.id)).all()[-1].run_id = made[1]
    with any_database.read() as session:
        stages = {one["name"]: one for one in describe_overview(session, data)["stages"]}
    assert (stages["pairs"]["count"], stages["judgments"]["count"]) == ("3", "2")
    demo = look_at_demo(any_database)
    assert (demo.is_demo, demo.answers, demo.runs) == (False, 1, 2)
    context = Context(database=any_database, data=data, url=database_url)
    assert "People judged images" in clear_demo(context)
    with any_database.write() as session:
        for name in ("judgment", "label_judgment"):
            session.connection().exec_driver_sql(f"DELETE FROM {name}")
    assert "2 runs" in clear_demo(context)
    assert fetch(any_database, select(Run)) == []
    assert len(fetch(any_database, select(Method))) == 1
    assert fetch(any_database, select(Pair)) == []
