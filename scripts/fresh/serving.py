"""`make serve` of a clone, on a port of its own."""

import os
import signal
import socket
import subprocess
import time
import urllib.request
from contextlib import suppress

from scripts.fresh.clone import Clone, last_lines
from scripts.fresh.failure import FreshError

START_SECONDS = 1200
STOP_SECONDS = 60


class Serving:
    """The process group of `make serve`. It is ended with the block, and its log shown if that
    ended with an error.
    """

    def __init__(self, clone: Clone) -> None:
        self._clone = clone
        self._log = clone.work / "serve.log"
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        self._file = self._log.open("wb")
        self._process = subprocess.Popen(
            ["make", "serve", f"PORT={port}"],
            cwd=clone.project,
            env=dict(clone.variables),
            stdin=subprocess.DEVNULL,
            stdout=self._file,
            stderr=subprocess.STDOUT,
            # A make that gets SIGTERM dies of it, whatever its command does. One that was started
            # with the signal ignored waits, and hands the exit code of the server on.
            preexec_fn=ignore_sigterm,
            start_new_session=True,
        )

    def __enter__(self) -> "Serving":
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        self._signal(signal.SIGKILL)
        self._process.wait()
        self._file.close()
        if kind is not None:
            print(f"The log of make serve ended with:\n{last_lines(self.log)}", flush=True)

    @property
    def log(self) -> str:
        """What the server and the installation have said."""
        return self._log.read_text("utf-8", errors="replace")

    def wait_until_ready(self) -> None:
        """Wait for /readyz. Raises FreshError if the process ends before, or takes too long."""
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            try:
                with urllib.request.urlopen(f"{self.url}/readyz", timeout=5):
                    return
            except OSError:
                pass
            if (code := self._process.poll()) is not None:
                raise FreshError(f"make serve ended with exit code {code} before it was ready")
            time.sleep(0.2)
        raise FreshError(f"make serve was not ready after {START_SECONDS} s")

    def stop(self) -> None:
        """SIGTERM to the group: it has to end with 0, and the log to be free of tracebacks."""
        self._signal(signal.SIGTERM)
        try:
            code = self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            raise FreshError(f"it runs on {STOP_SECONDS} s after SIGTERM") from None
        if code != 0:
            raise FreshError(f"its exit code after SIGTERM is {code}, not 0")
        if "Traceback (most recent call last)" in self.log:
            raise FreshError("there is a traceback in its log")

    def _signal(self, number: signal.Signals) -> None:
        with suppress(ProcessLookupError):  # it has ended
            os.killpg(self._process.pid, number)


def ignore_sigterm() -> None:
    """Run in the new process, before make."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
