"""The address of a PostgreSQL server: what is refused, and what each driver is given."""

import pytest

from cluster.services import databases


@pytest.mark.parametrize(
    ("address", "reason"),
    [
        ("", "needs the address of a PostgreSQL server"),
        ("db.example", "is not a URL"),
        ("mysql://gpt2:hidden@db.example", "lacks postgresql://, user or host"),
        ("postgresql://db.example", "lacks postgresql://, user or host"),
        ("postgresql://gpt2:hidden@db.example/mine", "names a database; leave it out"),
        ("postgresql://gpt2:hidden@db.example?target_session_attrs=any", "target_session_attrs can't be given there"),
    ],
)
def test_addresses_of_no_use_are_refused_without_their_password(monkeypatch, address, reason):
    monkeypatch.setenv(databases.ADDRESS, address)
    with pytest.raises(ValueError, match=reason) as error:
        databases.check()
    assert "hidden" not in str(error.value)


def test_nothing_answers(monkeypatch):
    monkeypatch.setenv(databases.ADDRESS, "postgresql://gpt2:hidden@127.0.0.1:9")
    with pytest.raises(ValueError, match=r"no PostgreSQL at 127.0.0.1:9 \(connection refused\); start it") as error:
        databases.check()
    assert "hidden" not in str(error.value)


def test_each_driver_gets_its_database_and_its_spelling(monkeypatch):
    monkeypatch.setenv(databases.ADDRESS, "postgresql://gpt2:a%40b@db.example:5433?sslmode=require")
    assert databases.prefect_url() == "postgresql+asyncpg://gpt2:a%40b@db.example:5433/gpt2_prefect?ssl=require"
    assert databases.mlflow_url() == "postgresql+psycopg2://gpt2:a%40b@db.example:5433/gpt2_mlflow?sslmode=require"
