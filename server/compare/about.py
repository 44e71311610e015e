"""What a report is about, so that two reports can be told apart."""

from dataclasses import dataclass
from datetime import UTC, datetime


@dataclass(frozen=True, slots=True)
class About:
    """Where and when a comparison was made, and of what.

    `preset` is that whose parts are compared, with its revision; None where candidates were named.
    `created` is in seconds since 1970. `prompts_digest` covers prompts, references, tags and
    scorers; `prompts_file` is the file that they came from, where the client said so.
    """

    preset: str | None = None
    base: str = ""
    base_digest: str = ""
    created: int = 0
    prompts_digest: str = ""
    prompts_file: str | None = None

    @property
    def date(self) -> str:
        """Day and time, in UTC."""
        return f"{datetime.fromtimestamp(self.created, UTC):%Y-%m-%d %H:%M} UTC"


def head(digest: str) -> str:
    """The first twelve digits: enough to tell apart what anybody has."""
    return digest.removeprefix("sha256:")[:12]
