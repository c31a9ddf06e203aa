"""A real PostgreSQL for tests, of Debian's packages, with a password and on a free port of loopback."""

import contextlib
import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.services import free_port

PASSWORD = "canary-of-postgres"
USER = "gpt2"


def programs() -> Path:
    """Where `initdb` and `pg_ctl` are; installed where they are not, or the test is skipped."""

    def find() -> Path | None:
        found = sorted(Path("/usr/lib/postgresql").glob("*/bin/pg_ctl"), key=lambda p: int(p.parts[-3]))
        return found[-1].parent if found else None

    if there := find():
        return there
    if os.getuid() or not shutil.which("apt-get"):
        pytest.skip("PostgreSQL is not installed, and only root can install Debian's package")
    quiet = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for words in (("update",), ("install", "--yes", "--no-install-recommends", "postgresql")):
        done = subprocess.run(["apt-get", "-qq", *words], env=quiet, capture_output=True, text=True, check=False)
    if (there := find()) is None:
        pytest.skip(f"Debian's package of PostgreSQL could not be installed: {done.stderr[-300:]}")
    return there


@dataclass
class Postgres:
    """A server; its user `gpt2` owns databases that he makes, and is no superuser."""

    port: int
    folder: Path
    call: list[str]

    def url(self, password: str = PASSWORD, user: str = USER) -> str:
        return f"postgresql://{user}:{password}@127.0.0.1:{self.port}"

    def do(self, *statements: str) -> str:
        """Run statements as the superuser."""
        words = [w for s in statements for w in ("-c", s)]
        command = ["psql", "-X", "-A", "-t", "-h", str(self.folder), "-p", str(self.port), "-d", "postgres", *words]
        return subprocess.run(
            [*self.call, *command], check=True, capture_output=True, text=True, cwd=self.folder
        ).stdout.strip()


@contextlib.contextmanager
def postgres() -> Iterator[Postgres]:
    """A server with an empty database cluster until the block ends."""
    bin, port = programs(), free_port()
    folder = Path(tempfile.mkdtemp(prefix="gpt2-pg-"))
    call: list[str] = []
    if not os.getuid():  # it refuses to run as root
        owner = pwd.getpwnam("postgres")
        os.chown(folder, owner.pw_uid, owner.pw_gid)
        call = ["runuser", "-u", "postgres", "--"]
    data = str(folder / "data")

    def run(*words: str) -> None:
        subprocess.run([*call, *words], check=True, stdout=subprocess.DEVNULL, cwd=folder)

    try:
        run(str(bin / "initdb"), "-D", data, "-A", "scram-sha-256", "--auth-local=trust", "-E", "UTF8", "--no-sync")
        options = f"-c listen_addresses=127.0.0.1 -c port={port} -c unix_socket_directories={folder}"
        run(str(bin / "pg_ctl"), "-D", data, "-w", "-l", str(folder / "log"), "-o", options, "start")
        try:
            server = Postgres(port, folder, call)
            server.do(f"CREATE ROLE {USER} LOGIN CREATEDB PASSWORD '{PASSWORD}'")
            yield server
        finally:
            run(str(bin / "pg_ctl"), "-D", data, "-m", "immediate", "stop")
    finally:
        shutil.rmtree(folder)
