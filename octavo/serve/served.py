"""Which model a server has, as its `/v1/models` says."""

from typing import Any

from octavo.base.errors import RequestError, UsageError
from octavo.serve.client import Client, Unreachable, error_text

__all__ = ["served_model"]


async def served_model(client: Client, name: str | None) -> dict[str, Any]:
    """The server's entry of the model `name`; None: of the only one. A name that the server does not list, or a server
    that lists none, is no error here: the entry is then the name alone. Raises UsageError and RequestError."""
    try:
        listed = await client.get("/v1/models")
    except Unreachable as error:
        raise UsageError(f"{client.url}: {error}") from error
    if listed.status in (401, 403):
        raise RequestError(f"{client.url}: {error_text(listed)}", hint="give --api-key, or set OPENAI_API_KEY")
    found = listed.json() if listed.status == 200 else None
    data = found.get("data") if isinstance(found, dict) else None
    entries = [entry for entry in data or () if isinstance(entry, dict) and "id" in entry]
    if name is not None:
        return next((entry for entry in entries if entry["id"] == name), {"id": name})
    if len(entries) != 1:
        names = ", ".join(str(entry["id"]) for entry in entries[:20])
        hint = "name the model that you mean"
        raise UsageError(f"{client.url} lists {len(entries)} models{': ' + names if names else ''}", hint=hint)
    return entries[0]
