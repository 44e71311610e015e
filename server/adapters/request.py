"""What the merging process is asked, and what it answers: plain JSON in files."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class MergeRequest:
    """Merge the adapter in the folder `adapter` onto the base in the folder `base`.

    `start`: a safetensors file of the tensors that replace the base's before that; what the parent
    of the adapter changes. The tensors that differ from the base's are written to `out`, which must
    take no more than `max_bytes`.
    """

    base: str
    adapter: str
    start: str | None
    out: str
    max_bytes: int

    def to_json(self) -> str:
        """The text that `from_json` reads."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "MergeRequest":
        """Read what `to_json` wrote."""
        return cls(**json.loads(text))


@dataclass(frozen=True, slots=True)
class MergeAnswer:
    """What came of it: `reasons` against it, or none. `difference`: how far the logits of the
    merged model were from those of PEFT's own forward, over their norm. `peak_bytes`: the most
    memory that the process had.
    """

    reasons: tuple[str, ...] = ()
    num_tensors: int = 0
    num_bytes: int = 0
    seconds: float = 0.0
    difference: float = 0.0
    peak_bytes: int = 0

    def write(self, path: Path) -> None:
        """Write it as JSON."""
        path.write_text(json.dumps(asdict(self)))

    @classmethod
    def read(cls, path: Path) -> "MergeAnswer":
        """Read what `write` wrote; OSError or ValueError if that is not there."""
        found = json.loads(path.read_bytes())
        return cls(**{**found, "reasons": tuple(found["reasons"])})
