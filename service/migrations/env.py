"""Alembic's entry: runs the migrations on the connection that ``service.migrations.migrate`` hands
over.
"""

from __future__ import annotations

from alembic import context

from service.tables import Base

connection = context.config.attributes["connection"]
context.configure(
    connection=connection,
    target_metadata=Base.metadata,
    # SQLite cannot alter a table in place; Alembic then copies it.
    render_as_batch=connection.dialect.name == "sqlite",
)
with context.begin_transaction():
    context.run_migrations()
