"""The types of requests, each field with its bounds: they make the OpenAPI document and refuse what is out of range."""

__all__: list[str] = []
