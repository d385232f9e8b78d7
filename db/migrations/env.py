"""Run Alembic's migrations over the connection that db.engine passes, or that of FACEREWARD_DB in a terminal."""

import os

from alembic import context
from sqlalchemy import create_engine

import db.studies  # noqa: F401 - its tables
from db.models import Base

connection = context.config.attributes.get("connection")
if connection is None:
    connection = create_engine(os.environ["FACEREWARD_DB"]).connect()
context.configure(connection=connection, target_metadata=Base.metadata, render_as_batch=True)
with context.begin_transaction():
    context.run_migrations()
