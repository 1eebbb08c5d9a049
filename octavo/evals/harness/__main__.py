"""`python -m octavo.evals.harness ...` is `lm_eval ...` with the model `octavo`.

lm_eval up to 0.4.13 knows only models of its own source tree; later ones find ours by its entry point.
"""

import sys

from octavo.base.errors import OctavoError
from octavo.base.log import configure

__all__ = ["main"]


def main() -> int:
    """Hand the command line over unchanged; exit code 2 for what a user can mend."""
    try:
        from lm_eval.__main__ import cli_evaluate  # pyright: ignore[reportMissingImports]
        from lm_eval.api.registry import register_model  # pyright: ignore[reportMissingImports]

        from octavo.evals.harness.model import OctavoLM
    except ModuleNotFoundError as error:
        if error.name is None or not error.name.startswith("lm_eval"):
            raise
        sys.stderr.write("error: lm_eval is not installed\nhint: pip install 'octavo[lm-eval]'\n")
        return 2
    configure()
    register_model("octavo")(OctavoLM)
    try:
        cli_evaluate()
    except OctavoError as error:
        sys.stderr.write(f"error: {error}\n")
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
