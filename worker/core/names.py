"""Names of fields as an error or a log may show them."""

import re

_PLAIN_NAME = re.compile(r"[A-Za-z0-9_.$-]{1,64}")


def shown_name(name: str) -> str:
    """A field's name; what does not look like a name is not repeated."""
    return name if _PLAIN_NAME.fullmatch(name) else "(a name that cannot be shown)"
