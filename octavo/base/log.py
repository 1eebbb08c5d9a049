"""One logger for the package. The library only writes to it; the command line decides where it goes (stderr)."""

import logging
import sys

__all__ = ["configure", "log"]

log = logging.getLogger("octavo")
log.addHandler(logging.NullHandler())


class _Plain(logging.Formatter):
    """`warning: text`, as errors and hints look; informational lines stand alone."""

    def format(self, record: logging.LogRecord) -> str:
        text = record.getMessage()
        return text if record.levelno == logging.INFO else f"{record.levelname.lower()}: {text}"


class _Stderr(logging.StreamHandler):
    """Writes to what stderr is at the time of the message, not at the time of the set-up."""

    def __init__(self) -> None:
        super().__init__(sys.stderr)

    @property
    def stream(self):  # type: ignore[override]
        return sys.stderr

    @stream.setter
    def stream(self, _) -> None: ...


def configure(level: str = "INFO") -> None:
    """Send the package's log to stderr, once. Called by the command line, never by the library."""
    for handler in [h for h in log.handlers if not isinstance(h, logging.NullHandler)]:
        log.removeHandler(handler)
    handler = _Stderr()
    handler.setFormatter(_Plain())
    log.addHandler(handler)
    log.setLevel(level)
    log.propagate = False
