"""One server on each database: a lock that lives as long as the process that holds it."""

import fcntl
import os
import shutil
import time
from pathlib import Path
from typing import Self

from server.presets.database import StoreError

COMPANIONS = ("-wal", "-shm")
"""Endings of the files that SQLite keeps beside a database."""


class DatabaseLock:
    """Holds the lock of a database's file, which need not exist yet.

    The system frees it however the process ends. Reading, as `mergeserve export` does, needs none.
    """

    def __init__(self, path: Path) -> None:
        """StoreError if another server has it."""
        self._path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = os.open(f"{path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise StoreError(f"the database {path} cannot be locked: {error}") from error
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(self._file)
            raise StoreError(
                f"another process serves the database {path}: run one server on each; stop the "
                "other one, or give this one its own --database-url"
            ) from error

    def set_aside(self) -> Path | None:
        """Rename the database and the contents of its sources, so that a new one is begun; returns
        where it is now, or None if there was none.
        """
        if not self._path.exists():
            return None
        aside = self._path.with_name(f"{self._path.name}.{time.strftime('%Y%m%d-%H%M%S')}")
        for ending in ("", *COMPANIONS):
            if os.path.exists(f"{self._path}{ending}"):
                os.rename(f"{self._path}{ending}", f"{aside}{ending}")
        contents = self._path.parent / "contents"
        if (contents / self._path.name).is_dir():
            shutil.move(contents / self._path.name, contents / aside.name)
        return aside

    def close(self) -> None:
        """Let others have it."""
        os.close(self._file)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()
