"""The tables and the domain's records have the same fields, whoever changes either."""

from dataclasses import fields

import pytest
from sqlalchemy import create_mock_engine
from sqlalchemy.exc import DBAPIError

from cloudfarm.domain.host import Host
from cloudfarm.domain.lease import Lease
from cloudfarm.domain.ledger import LedgerEntry
from cloudfarm.domain.quota import Amounts, Quota
from cloudfarm.domain.served import Account, Note, Used
from cloudfarm.domain.status import Event
from cloudfarm.domain.tenant import Credential, Tenant
from cloudfarm.domain.workload import Job, ModelVersion, Revision, Service
from cloudfarm.errors import InvalidInputError, UnavailableError
from cloudfarm.store import rows
from cloudfarm.store.columns import Json
from cloudfarm.store.connections import read_url
from cloudfarm.store.faults import our_errors
from cloudfarm.store.text import storable

QUOTA_AMOUNTS = {f"{name}_{field.name}" for name in ("guarantee", "limit") for field in fields(Amounts)}


@pytest.mark.parametrize(
    ("table", "kind", "only_stored", "not_stored"),
    [
        (rows.tenants, Tenant, set(), set()),
        (rows.credentials, Credential, set(), set()),
        (rows.leases, Lease, set(), set()),
        (rows.jobs, Job, set(), set()),
        (rows.services, Service, set(), set()),
        (rows.revisions, Revision, set(), set()),
        (rows.models, ModelVersion, set(), set()),
        (
            rows.served,
            Note,
            {"batch", "number", *(f.name for f in (*fields(Account), *fields(Used)))},
            {"account", "used"},
        ),
        (rows.ledger, LedgerEntry, set(), set()),
        (rows.events, Event, {"id"}, set()),
        (rows.hosts, Host, set(), {"nodes"}),
        (rows.quotas, Quota, QUOTA_AMOUNTS, {"guarantee", "limit"}),
    ],
)
def test_columns_are_the_fields(table, kind, only_stored, not_stored):
    assert set(table.c.keys()) - only_stored == {field.name for field in fields(kind)} - not_stored
    for field in fields(kind):
        if field.name in table.c and not table.c[field.name].primary_key:
            assert table.c[field.name].nullable == ("None" in str(field.type)), field.name


def test_every_table_is_checked_above_or_is_the_farm():
    assert len(rows.metadata.tables) == 13


def test_the_tables_can_be_made_on_both_databases():
    for url in ("sqlite://", "postgresql+asyncpg://"):
        made = []
        engine = create_mock_engine(url, lambda statement, *_, made=made, **__: made.append(statement))
        rows.metadata.create_all(engine, checkfirst=False)
        assert made


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("sqlite:////var/lib/farm.db", "sqlite+aiosqlite:////var/lib/farm.db"),
        ("sqlite:///farm.db", "sqlite+aiosqlite:///farm.db"),
        ("sqlite+aiosqlite:////a b/farm.db", "sqlite+aiosqlite:////a b/farm.db"),
        ("postgresql://u:p@h:5433/farm", "postgresql+asyncpg://u:p@h:5433/farm"),
        ("postgres://u@h/farm?sslmode=require", "postgresql+asyncpg://u@h/farm?sslmode=require"),
        ("postgresql+asyncpg://u@/farm?host=/run", "postgresql+asyncpg://u@/farm?host=/run"),
    ],
)
def test_a_url_gets_its_driver(written, read):
    assert read_url(written).render_as_string(hide_password=False) == read.replace("host=/run", "host=%2Frun")


@pytest.mark.parametrize(
    "url",
    [
        "",
        "farm.db",
        "mysql://h/farm",
        "postgresql+psycopg://h/farm",
        "sqlite://",
        "sqlite:///:memory:",
        "sqlite+pysqlite:///x",
    ],
)
def test_a_url_of_something_else_is_refused(url):
    with pytest.raises(InvalidInputError):
        read_url(url)


def test_a_bad_url_is_not_repeated_to_those_who_may_not_know_its_password():
    with pytest.raises(InvalidInputError) as caught:
        read_url("postgresql//u:geheim@h/farm")
    assert "geheim" not in str(caught.value)


@pytest.mark.parametrize("text", ["", "plain", "한글 🦊 é", "a\nb\tc"])
def test_storable_text_stays(text):
    assert storable(text) == text


def test_unstorable_text_is_replaced():
    assert storable("\x00a\udfff") == "\ufffda\ufffd"


def test_only_plain_data_is_json():
    with pytest.raises(TypeError, match="object is not plain data"):
        Json(dict).process_bind_param({"a": object()}, None)


def test_a_bug_passes_as_it_is():
    bug = DBAPIError("SELECT", {}, ValueError("no such column"))
    with pytest.raises(DBAPIError) as caught, our_errors():
        raise bug
    assert caught.value is bug


def test_a_lost_connection_is_not_a_bug():
    lost = DBAPIError("SELECT", {}, ValueError("gone"), connection_invalidated=True)
    with pytest.raises(UnavailableError), our_errors():
        raise lost
