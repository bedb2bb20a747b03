"""Prefect's server on SQLite without its "database is locked".

Started by `uvicorn --factory flows.servers.prefect_app:create_app`.

Prefect lets a transaction that reads before it writes take the write lock only when it writes. If somebody else wrote
in between, SQLite refuses at once (SQLITE_BUSY_SNAPSHOT; no timeout helps), the client gets a 503 and waits 2, 4, …
32 s between five more tries. So on a busy machine a run could wait minutes for a training slot that was free, or fail.
"""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from prefect.server.api import server
from prefect.server.database.configurations import AioSqliteConfiguration
from prefect.server.database.dependencies import MODELS_DEPENDENCIES
from prefect.server.utilities.database import get_dialect
from prefect.settings import PREFECT_API_DATABASE_CONNECTION_URL

if TYPE_CHECKING:
    from fastapi import FastAPI
    from sqlalchemy.ext.asyncio import AsyncSession, AsyncSessionTransaction


class PatientSqlite(AioSqliteConfiguration):
    """SQLite whose every transaction takes the write lock as it begins: writers take turns instead of failing."""

    @asynccontextmanager
    async def begin_transaction(
        self, session: "AsyncSession", with_for_update: bool = False
    ) -> AsyncGenerator["AsyncSessionTransaction", None]:
        """Begin with `BEGIN IMMEDIATE`, which waits for the lock (60 s) where an upgrade would fail."""
        # Of 120 runs created by 16 clients 0 were refused, in twice the time; 118 before (docs/LOG.md, 2026-11-22).
        async with super().begin_transaction(session, with_for_update=True) as transaction:
            yield transaction


def create_app() -> "FastAPI":
    """The whole server; PostgreSQL, where it is configured, is left as it is."""
    address = PREFECT_API_DATABASE_CONNECTION_URL.value()
    if get_dialect(address).name == "sqlite":
        MODELS_DEPENDENCIES["database_config"] = PatientSqlite(connection_url=address)
    return server.create_app(final=True)
