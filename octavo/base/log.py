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


def configure(level: str = "INFO") -> None:
    """Send the package's log to stderr, once. Called by the command line, never by the library."""
    for handler in [h for h in log.handlers if not isinstance(h, logging.NullHandler)]:
        log.removeHandler(handler)
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Plain())
    log.addHandler(handler)
    log.setLevel(level)
    log.propagate = False
