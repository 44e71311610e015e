"""The folders from which HTTP clients may register sources."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from server.errors import ForbiddenError, InvalidRequestError


class SourceFolders:
    """What `--source-dir` names, links followed."""

    def __init__(self, folders: Sequence[Path]) -> None:
        self._folders = tuple(Path(os.path.realpath(folder)) for folder in folders)

    def allowed_path(self, text: str) -> Path:
        """The folder that a client names, symlinks followed; an error if it is not allowed.

        What lies outside the source folders gets one answer, whether it exists or not.
        """
        if not self._folders:
            raise ForbiddenError(
                "sources cannot be registered over HTTP: the server was started without "
                "--source-dir, which names the folders that they may come from",
                param="path",
            )
        inside = [path for path in self.candidates(text) if self._is_inside(path)]
        if not inside:
            raise _not_allowed(text)
        path = next((path for path in inside if os.path.isdir(path)), inside[0])
        try:
            entries = list(_entries(path))
        except OSError as error:
            raise _not_allowed(text) from error
        if not all(self._is_inside(entry) for entry in entries):
            raise _not_allowed(text)
        return path

    def candidates(self, text: str) -> Iterator[Path]:
        """What a path may mean, relative to each folder; it need not be allowed."""
        if not text or "\0" in text or text.encode(errors="replace").decode() != text:
            return
        for folder in self._folders:
            # An absolute path replaces the folder, as pathlib's "/" does.
            yield Path(os.path.realpath(folder / text))

    def _is_inside(self, path: Path) -> bool:
        return any(path.is_relative_to(folder) for folder in self._folders)


def _entries(folder: Path) -> Iterator[Path]:
    """What the files of a folder really are: a link may lead out of it."""
    if os.path.isdir(folder):
        yield from (Path(os.path.realpath(entry)) for entry in folder.iterdir())


def _not_allowed(text: str) -> InvalidRequestError:
    return InvalidRequestError(
        f"{text!r} is not inside a folder that --source-dir names: give a path relative to one "
        "of them",
        param="path",
        code="path_not_allowed",
    )
