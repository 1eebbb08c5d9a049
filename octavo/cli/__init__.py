"""The command line. A verb is one options dataclass and one function; `VERBS` says where each one lives.

A verb's module loads when the verb is called, and what it needs loads at its own door, so `octavo --help` is quick.
"""

from octavo.cli.frame import main

__all__ = ["main"]
