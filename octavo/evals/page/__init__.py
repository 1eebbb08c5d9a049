"""One page from what the verbs measured: HTML that needs nothing but itself, the same in Markdown, and the JSON."""

from octavo.evals.page.write import PageOptions, write_report

__all__ = ["PageOptions", "write_report"]
