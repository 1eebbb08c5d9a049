"""The frame around every verb: parse, run, and turn what goes wrong into a line of cause and a line of hint.

Exit codes: 0 ok, 1 a check said no (or a bug of ours), 2 wrong use, 130 interrupted, 141 the reader went away.
"""

import contextlib
import os
import sys
from collections.abc import Sequence
from importlib import metadata

from cyclopts import App, CycloptsError

from octavo.base.errors import OctavoError, UsageError
from octavo.base.log import configure
from octavo.cli.output import print_error
from octavo.cli.verbs import VERBS

__all__ = ["build_app", "main"]

_TRACEBACK = "OCTAVO_TRACEBACK"
_SPINS = "10000"
_HELP_FLAGS = ("--help", "-h")
_VERSION_FLAGS = ("--version", "-V")


def _version() -> str:
    try:
        return metadata.version("octavo")
    except metadata.PackageNotFoundError:
        return "unknown (not installed)"


def build_app() -> App:
    app = App(
        name="octavo",
        help="Serve large language models with the KV cache folded to 8 bits or fewer.",
        version=_version,
        version_flags=list(_VERSION_FLAGS),
        help_flags=list(_HELP_FLAGS),
    )
    for verb in VERBS.values():
        app.command(verb.target, name=verb.name, help=verb.summary)
    return app


def main(tokens: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code. `tokens`: the words after `octavo`; None is sys.argv's."""
    _spin_briefly()
    try:
        code = _run(sys.argv[1:] if tokens is None else list(tokens))
        sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        _leave_pipe()
        return 141
    except OSError as error:  # the flush: standard output is full or closed
        print_error(f"cannot write to standard output: {error.strerror}")
        _leave_pipe()
        return 2


def _run(tokens: list[str]) -> int:
    configure()
    try:
        _check_verb(tokens)
        command, bound, _ = build_app().parse_args(tokens, print_error=False, exit_on_error=False)
        return int(command(*bound.args, **bound.kwargs) or 0)
    except CycloptsError as error:
        print_error(_one_message(error), hint=f"see octavo {tokens[0]} --help")
        return 2
    except OctavoError as error:
        print_error(error.message, error.hint)
        return error.exit_code
    except BrokenPipeError:
        raise
    except Exception as error:
        if os.environ.get(_TRACEBACK):
            raise
        if isinstance(error, OSError) and error.strerror:  # the system refused: no bug of ours
            print_error(f"{error.strerror}: {error.filename}" if error.filename else error.strerror)
            return 2
        print_error(f"unexpected {type(error).__name__}: {error}", hint=f"set {_TRACEBACK}=1 to see where it came from")
        return 1


def _spin_briefly() -> None:
    """For torch, which is loaded later, and for the processes that a verb starts: OpenMP's threads wait for each other
    by spinning, 300,000 rounds unless it is said: a disaster on cores that other programs use (docs/deploy.md)."""
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", _SPINS)


def _check_verb(tokens: list[str]) -> None:
    """Refuse an unknown first word here: the parser's own message would load every verb to list them."""
    first = tokens[0] if tokens else "--help"
    if first.startswith("-") and first not in (*_HELP_FLAGS, *_VERSION_FLAGS):
        raise UsageError(f"unknown option: {first}", hint="options come after the verb; see octavo --help")
    if not first.startswith("-"):
        VERBS.resolve(first)


def _one_message(error: CycloptsError) -> str:
    """cyclopts' message on one line, from a small letter on, as our own are."""
    text = " ".join(str(error).split()).rstrip(".")
    return text[:1].lower() + text[1:]


def _leave_pipe() -> None:
    """Nobody reads standard output any more: let the interpreter's last flush go nowhere."""
    with contextlib.suppress(OSError, ValueError):  # a stand-in for stdout may have no descriptor
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
