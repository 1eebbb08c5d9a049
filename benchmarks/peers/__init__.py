"""Other engines on the request set of benchmarks/throughput.py, through their own offline interfaces, where they are
installed. A file per peer."""

__all__: list[str] = []
