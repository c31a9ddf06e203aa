"""The databases of Prefect and MLflow: SQLite files in the home, or a PostgreSQL server of yours."""

from __future__ import annotations

import asyncio
import importlib.util
import os
from typing import Literal

from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError

Profile = Literal["sqlite", "postgres"]
ADDRESS = "GPT2_POSTGRES_URL"
"""postgresql://USER:PASSWORD@HOST:PORT, with ?sslmode= where needed; the password may also be in PGPASSWORD or
~/.pgpass."""
PREFECT, MLFLOW = "gpt2_prefect", "gpt2_mlflow"
"""The databases on that server. There are two because both programs keep their schema version in a table of the same
name."""
OLDEST = (14, 9)
"""Oldest version of PostgreSQL that Prefect supports."""
SQLITE_RUNS = 16
"""Most flow runs at the same time on SQLite. With 32, some waited longer for the server than the time after which a run
counts as dead (BENCHMARKS.md, `python -m tests.benchmarks concurrency`)."""
SECONDS = 10
"""Seconds after which a server that does not answer counts as absent."""


def address() -> URL:
    """Return the URL of the server that `GPT2_POSTGRES_URL` names; raises `ValueError`, without the password, if it is
    invalid."""
    text = os.environ.get(ADDRESS, "")
    example = f"{ADDRESS}=postgresql://USER:PASSWORD@HOST:5432"
    if not text:
        raise ValueError(f"--profile postgres: needs the address of a PostgreSQL server; set {example}")
    try:
        url = make_url(text)
    except (ArgumentError, ValueError):
        raise ValueError(f"{ADDRESS}: is not a URL; give it as {example}") from None
    shown = url.render_as_string()
    if url.get_backend_name() not in ("postgresql", "postgres") or not url.host or not url.username:
        raise ValueError(f"{ADDRESS}={shown}: lacks postgresql://, user or host; give it as {example}")
    if url.database:
        raise ValueError(f"{ADDRESS}={shown}: names a database; leave it out: {PREFECT} and {MLFLOW} are used")
    if unknown := set(url.query) - {"sslmode"}:
        raise ValueError(f"{ADDRESS}={shown}: {', '.join(sorted(unknown))} can't be given there, only sslmode")
    return url


def prefect_url() -> str:
    """Return the URL of Prefect's database, for its driver `asyncpg`."""
    url = address().set(drivername="postgresql+asyncpg", database=PREFECT)
    return full(url.set(query={"ssl": mode} if (mode := url.query.get("sslmode")) else {}))


def mlflow_url() -> str:
    """Return the URL of MLflow's database, for its driver `psycopg2`."""
    return full(address().set(drivername="postgresql+psycopg2", database=MLFLOW))


def full(url: URL) -> str:
    """Return the URL with its password. Use it in environments of processes only, not in command lines, files or
    logs."""
    return url.render_as_string(hide_password=False)


def check() -> None:
    """Raise `ValueError`, with the remedy, if the server, the login or a database is missing or unusable."""
    url = address()
    if importlib.util.find_spec("psycopg2") is None:
        raise ValueError("MLflow's driver for PostgreSQL is missing; pip install 'gpt2-pipeline[postgres]'")
    asyncio.run(ask_each(url))


async def ask_each(url: URL) -> None:
    for database in (PREFECT, MLFLOW):
        await ask(url, database)


async def ask(url: URL, database: str) -> None:
    """Connect to the database and check that tables can be made there; raises `ValueError` if not."""
    import asyncpg

    where = f"{url.host}:{url.port or 5432}"
    try:
        connection = await asyncpg.connect(full(url.set(drivername="postgresql", database=database)), timeout=SECONDS)
    except (asyncpg.InvalidPasswordError, asyncpg.InvalidAuthorizationSpecificationError) as error:
        raise ValueError(f"PostgreSQL at {where} refuses {url.username!r} ({error}); correct {ADDRESS}") from None
    except asyncpg.InvalidCatalogNameError:
        make = f"CREATE DATABASE {database} OWNER {url.username}"
        raise ValueError(f"PostgreSQL at {where} has no database {database!r}; make it there: {make}") from None
    except (OSError, TimeoutError) as error:
        reason = "connection refused" if isinstance(error, ConnectionRefusedError) else str(error) or "no answer"
        raise ValueError(f"no PostgreSQL at {where} ({reason}); start it, or correct {ADDRESS}") from None
    except (asyncpg.PostgresError, asyncpg.InterfaceError) as error:
        raise ValueError(f"PostgreSQL at {where} can't be used: {error}") from None
    try:
        if (version := connection.get_server_version()[:2]) < OLDEST:
            present, wanted = (".".join(map(str, v)) for v in (version, OLDEST))
            raise ValueError(f"PostgreSQL at {where} is version {present}; Prefect needs {wanted} or newer")
        if not await connection.fetchval("select has_schema_privilege('public', 'CREATE')"):
            make = f"ALTER DATABASE {database} OWNER TO {url.username}"
            raise ValueError(f"{url.username!r} can't make tables in {database!r} at {where}; run there: {make}")
        trigrams = "select count(*) from pg_available_extensions where name = 'pg_trgm'"
        if database == PREFECT and not await connection.fetchval(trigrams):
            raise ValueError(f"PostgreSQL at {where} lacks the extension pg_trgm; install its contrib package")
    finally:
        await connection.close()
