"""`python -m octavo` is `octavo`."""

import sys

from octavo.cli import main

__all__: list[str] = []

if __name__ == "__main__":
    sys.exit(main())
