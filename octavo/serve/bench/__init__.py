"""The load generator: any server with OpenAI's API, timed from outside, one stream at a time or many."""

__all__: list[str] = []
