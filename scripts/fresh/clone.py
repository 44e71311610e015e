"""A clone of the project, and the environment of somebody who has nothing else."""

import os
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from scripts.fresh.failure import FreshError

KEPT = ("PATH", "TORCH_INDEX", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "ALL_PROXY", "all_proxy")
KEPT_PREFIXES = ("PIP_", "SSL_CERT_", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY")
PERSONAL = ("PIP_CACHE_DIR", "PIP_USER", "PIP_TARGET", "PIP_PREFIX", "PIP_CONSTRAINT")
COMMAND_SECONDS = 600
LAST_LINES = 60


def clean_environment(variables: Mapping[str, str], home: Path) -> dict[str, str]:
    """Nothing of the caller's but PATH, where packages come from, and how they are reached."""
    kept = {
        name: value
        for name, value in variables.items()
        if name in KEPT or name.upper().startswith(KEPT_PREFIXES)
    }
    own = {"HOME": str(home), "LANG": "C.UTF-8", "PYTHONUNBUFFERED": "1"}
    return {name: value for name, value in kept.items() if name not in PERSONAL} | own


@dataclass(frozen=True, slots=True)
class Clone:
    """A clone of HEAD in `project`, and the variables that its commands see."""

    project: Path
    work: Path
    variables: Mapping[str, str]

    @classmethod
    def of_head(cls, root: Path, folder: Path) -> "Clone":
        """Clone what is committed in `root` into `folder`, beside an empty home."""
        home, work, project = (folder / name for name in ("home", "work", "mergeserve"))
        home.mkdir()
        work.mkdir()
        clone = cls(project, work, clean_environment(os.environ, home))
        clone.run(f"git clone --quiet --no-hardlinks {root.as_uri()} {project}", cwd=folder)
        return clone

    def run(self, script: str, *, cwd: Path) -> str:
        """What a script of a shell prints; FreshError with all of it if it fails."""
        try:
            done = subprocess.run(
                ["bash", "-euo", "pipefail", "-c", script],
                cwd=cwd,
                env=dict(self.variables),
                capture_output=True,
                text=True,
                timeout=COMMAND_SECONDS,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise FreshError(f"took more than {COMMAND_SECONDS} s:\n{script}") from None
        if done.returncode != 0:
            said = last_lines(done.stdout + done.stderr)
            raise FreshError(f"exit code {done.returncode} of:\n{script}\n\n{said}")
        return done.stdout


def last_lines(text: str) -> str:
    """The end of a log, indented."""
    return "\n".join(f"    {line}" for line in text.splitlines()[-LAST_LINES:])
