"""Which database is a base's own: chosen by the base's content, whatever its folder is called."""

import json
import logging
import re
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

from pydantic import ValidationError

from merging.base import Base
from merging.errors import MergingError
from server.presets.document import PresetDocument
from server.presets.names import BASE

logger = logging.getLogger(__name__)

DTYPES = ("bfloat16", "float16", "float32")
DIGEST_CHARACTERS = 16

_NEWEST = "SELECT document, sources, digest FROM revisions ORDER BY created_at DESC LIMIT 100"


def database_of(base: Base, folder: Path) -> Path:
    """The file in `folder` for the presets of a base, which need not exist.

    Files used to be named by the base's name. One that holds presets of this base is gone on with;
    one of another base, or of a base that cannot be told, is passed over, and the log says so.
    """
    digest = base.digest.removeprefix("sha256:")
    chosen, older = folder / f"base-{digest[:DIGEST_CHARACTERS]}.db", folder / _old_name(base.name)
    if chosen.exists() or not older.is_file():
        return chosen
    if is_made_for(older, base):
        return older
    logger.warning(
        "the database %s is passed over for %s: no preset in it is of this base (%s), though it "
        "has the same name; --database-url sqlite:///%s takes it all the same",
        older,
        chosen,
        base.digest,
        older,
    )
    return chosen


def is_made_for(path: Path, base: Base) -> bool | None:
    """Whether a database holds presets of this base; None if it holds none at all.

    A revision's digest covers the base's: it is made anew from what is stored, in any dtype.
    """
    found = None
    for document, sources, digest in _revisions(path):
        try:
            recipe = document.recipe()
            own = [recipe.digest(sources, replace(base, dtype=dtype)) for dtype in DTYPES]
        except (MergingError, KeyError):  # a failed revision may be of sources that never were
            continue
        if digest in own:
            return True
        found = False
    return found


def path_of(url: str) -> Path | None:
    """The file of a database; None if it is in memory."""
    path = url.removeprefix("sqlite:///")
    return None if path in (url, "", ":memory:") else Path(path)


def _revisions(path: Path) -> Iterator[tuple[PresetDocument, dict[str, str], str]]:
    """Documents, digests of sources, and digests of the newest revisions; the file is not changed,
    whatever version made it.
    """
    try:
        with closing(
            sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)
        ) as connection:
            rows = connection.execute(_NEWEST).fetchall()
    except sqlite3.Error as error:
        logger.warning("the database %s cannot be read: %s", path, error)
        return
    for document, sources, digest in rows:
        try:
            yield PresetDocument.model_validate_json(document), _digests(sources), digest
        except ValidationError:
            continue


def _digests(sources: str) -> dict[str, str]:
    return {str(name): str(digest) for name, digest in json.loads(sources).items()}


def _old_name(model_id: str) -> str:
    """What the file was called before it was chosen by content."""
    stem = re.sub(r"[^A-Za-z0-9._-]+", "--", model_id).strip(".-") or BASE
    return f"{stem}.db"
