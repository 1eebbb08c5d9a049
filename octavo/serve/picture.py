"""What `GET /live` answers: the server's state at this moment, for the page and for `octavo top`."""

import base64
from typing import Any

from octavo.serve.wire import Picture

__all__ = ["picture_json"]


def picture_json(picture: Picture | None) -> dict[str, Any]:
    """Pages by state, the map (base64, a byte a cell), and the sequences that run; empty while no engine lives."""
    if picture is None:
        return {"pages": None, "map": "", "pages_per_cell": 1, "sequences": []}
    free, cached, held, shared = picture.free, picture.cached, picture.held, picture.shared
    return {
        "pages": {"total": free + cached + held, "free": free, "cached": cached, "held": held, "shared": shared},
        "map": base64.b64encode(picture.cells).decode(),
        "pages_per_cell": picture.pages_per_cell,
        "sequences": [
            {"id": one.id, "status": one.status, "prompt_tokens": one.prompt_tokens,
             "output_tokens": one.output_tokens, "pages": one.pages}
            for one in picture.sequences
        ],
    }  # fmt: skip
