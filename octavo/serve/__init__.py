"""The server: an OpenAI-compatible front process, and the engine in a process of its own behind it."""

__all__: list[str] = []
