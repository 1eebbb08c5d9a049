"""The log is silent as a library and plain on the command line."""

import logging

from octavo.base.log import configure, log


def test_lines_look_like_errors_and_hints(capsys):
    before = (list(log.handlers), log.level, log.propagate)
    try:
        configure()
        configure()
        log.warning("attention runs on %s", "cpu")
        log.info("loaded")
        log.debug("unseen")
        assert capsys.readouterr().err == "warning: attention runs on cpu\nloaded\n"
    finally:
        log.handlers[:], log.propagate = before[0], before[2]
        log.setLevel(before[1])


def test_library_use_prints_nothing():
    assert any(isinstance(handler, logging.NullHandler) for handler in log.handlers)
