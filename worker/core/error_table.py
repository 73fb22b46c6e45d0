"""All errors that can end a request, those of the HTTP server too.

`python -m worker.core.error_table` prints the table that docs/errors.md shows.
"""

from collections.abc import Iterator

from worker.core import http_errors  # noqa: F401 - its classes are a branch of the tree
from worker.core.errors import InputError, MediaError, ServerError, WorkerError


def request_errors() -> Iterator[type[WorkerError]]:
    """The errors that can end a request, in the order above."""
    for branch in (InputError, MediaError, ServerError):
        yield from _leaves(branch)


def _leaves(error: type[WorkerError]) -> Iterator[type[WorkerError]]:
    if "code" in vars(error):
        yield error
    for child in error.__subclasses__():
        yield from _leaves(child)


def statuses_of(error: type[WorkerError]) -> list[int]:
    """That it may have over HTTP."""
    return [error.status] if error.retryable_status is None else [error.status, error.retryable_status]


def table() -> str:
    """All errors as the Markdown table of docs/errors.md."""
    rows = ["| code | status | retry | when | what to do |", "|---|---|---|---|---|"]
    for error in request_errors():
        meaning = " ".join((error.__doc__ or "").split())
        retry = "yes" if error.retryable else "no"
        if error.retryable_status is not None:
            retry = f"if {error.retryable_status}"
        statuses = ", ".join(map(str, statuses_of(error)))
        rows.append(f"| `{error.code}` | {statuses} | {retry} | {meaning} | {error.remedy} |")
    return "\n".join(rows) + "\n"


if __name__ == "__main__":
    print(table(), end="")
