"""`make fresh`: a server is started as the README says, and has to end as it should."""

import os
from pathlib import Path

import pytest

from scripts.fresh.clone import Clone
from scripts.fresh.failure import FreshError
from scripts.fresh.serving import Serving

SERVER = """
import signal, sys
from http.server import HTTPServer, SimpleHTTPRequestHandler
signal.signal(signal.SIGTERM, lambda *given: sys.exit(CODE))
print("SAID", flush=True)
HTTPServer(("127.0.0.1", int(sys.argv[1])), SimpleHTTPRequestHandler).serve_forever()
"""


def project(tmp_path: Path, server: str) -> Clone:
    """A project whose `make serve` runs `server`."""
    (tmp_path / "readyz").touch()
    (tmp_path / "server.py").write_text(server)
    (tmp_path / "Makefile").write_text("serve:\n\tpython3 server.py $(PORT)\n")
    return Clone(tmp_path, tmp_path, {"PATH": os.environ["PATH"]})


def serve_and_stop(clone: Clone) -> None:
    with Serving(clone) as server:
        server.wait_until_ready()
        server.stop()


def test_a_good_server_stops_with_0(tmp_path: Path) -> None:
    """A server that ends with 0 after SIGTERM to its process group passes, make and all."""
    serve_and_stop(project(tmp_path, SERVER.replace("CODE", "0")))


@pytest.mark.parametrize(
    ("code", "said", "wanted"),
    [
        ("3", "", "exit code after SIGTERM is"),
        ("0", "Traceback (most recent call last):", "a traceback in its log"),
    ],
)
def test_a_bad_end_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], code: str, said: str, wanted: str
) -> None:
    """Another exit code, or a traceback in the log, is an error, and the log is shown."""
    clone = project(tmp_path, SERVER.replace("CODE", code).replace("SAID", said))
    with pytest.raises(FreshError, match=wanted):
        serve_and_stop(clone)
    assert "The log of make serve ended with" in capsys.readouterr().out


def test_a_server_that_does_not_start_is_told(tmp_path: Path) -> None:
    """A `make serve` that ends before it is ready is not waited for."""
    with pytest.raises(FreshError, match="before it was ready"):
        serve_and_stop(project(tmp_path, "raise SystemExit(1)"))
