"""The database that a server works on: found, locked for it alone, and opened."""

import logging
from dataclasses import dataclass

from merging.base import Base
from server.presets.database_choice import is_made_for, path_of
from server.presets.database_lock import DatabaseLock
from server.presets.store import PresetStore
from server.settings import Settings

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class HeldStore:
    """A store that no other server may open meanwhile. One in memory needs no lock."""

    store: PresetStore
    lock: DatabaseLock | None

    def close(self) -> None:
        """Close the store, and let others have it."""
        self.store.close()
        if self.lock is not None:
            self.lock.close()


def hold_store(settings: Settings, base: Base) -> HeldStore:
    """The database of the settings, or the base's own; StoreError if another server has it."""
    url = settings.database_for(base)
    path = path_of(url)
    if path is None:
        return HeldStore(PresetStore(url), None)
    lock = DatabaseLock(path)
    try:
        if settings.new_database and (aside := lock.set_aside()):
            logger.info("the database %s was set aside as %s", path, aside)
        if path.exists() and is_made_for(path, base) is False:
            logger.warning(
                "the database %s was made for another base: no preset in it is of %s (%s). Its "
                "presets and sources are tried on this one; --new-database sets it aside",
                path,
                base.name,
                base.digest,
            )
        return HeldStore(PresetStore(url), lock)
    except BaseException:
        lock.close()
        raise
