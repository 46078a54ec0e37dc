"""Swarms on a small model with random weights."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import create_engine, make_url, text

from synthe_core.swarm.folder import SwarmFolder
from synthe_core.swarm.spec import SpecialistSpec
from tests.adapters.conftest import base, saved  # noqa: F401

POSTGRES = "SYNTHE_TEST_POSTGRES"
"""The environment variable with the URL of a Postgres database in which tests make schemas of their own."""


@pytest.fixture(params=["sqlite", "postgres"])
def location(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path | str]:
    """Where a new database is: a file, and a schema on the server that the environment names."""
    if request.param == "sqlite":
        yield tmp_path / "swarm.db"
        return
    if not (url := os.environ.get(POSTGRES)):
        pytest.skip(f"{POSTGRES} names no database")
    server = create_engine(make_url(url).set(drivername="postgresql+psycopg"), isolation_level="AUTOCOMMIT")
    schema = f"test_{uuid.uuid4().hex}"
    with server.connect() as connection:
        connection.execute(text(f"CREATE SCHEMA {schema}"))
        yield make_url(url).update_query_dict({"options": f"-csearch_path={schema}"}).render_as_string(False)
        connection.execute(text(f"DROP SCHEMA {schema} CASCADE"))
    server.dispose()


@pytest.fixture
def folder(base: Path, tmp_path: Path) -> SwarmFolder:  # noqa: F811
    """A swarm of three specialists, one of them with an adapter."""
    swarm = SwarmFolder.create(tmp_path / "team", str(base))
    adapter = saved(tmp_path / "adapter", base, {"rank": 4}).path
    swarm.add("python", SpecialistSpec(capabilities=["python", "debugging"], prompt="You write Python."), str(adapter))
    swarm.add("maths", SpecialistSpec(capabilities=["arithmetic", "algebra"], prompt="You count."))
    swarm.add("history", SpecialistSpec(capabilities=["wars", "kings"], prompt="You know the past."))
    return swarm
