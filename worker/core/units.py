"""Numbers as messages show them."""

MIB = 2**20


def plain(value: object) -> object:
    """`10` instead of `10.0`; what is no number stays."""
    return f"{value:g}" if isinstance(value, float) else value


def of_bytes(count: int) -> str:
    """`20 MiB`, `1.5 MiB`, or `900 bytes`."""
    return f"{round(count / MIB, 1):g} MiB" if count >= MIB else f"{count} bytes"


def of_pixels(width: int, height: int) -> str:
    """`9000x7000 (63 MP)`."""
    return f"{width}x{height} ({megapixels(width * height)})"


def megapixels(count: int) -> str:
    """`50 MP`, `0.6 MP`, or `900 pixels`."""
    return f"{round(count / 1e6, 1):g} MP" if count >= 100_000 else f"{count} pixels"


def over(limit: int, count: int | None = None) -> str:
    """How much too large a file is; count: its bytes, where they are known."""
    return f"limit {of_bytes(limit)}" if count is None else f"{of_bytes(count)}, limit {of_bytes(limit)}"


def context_length(num_tokens: int) -> str:
    """In the words by which client libraries recognise that a prompt was too long."""
    return f"this model's maximum context length is {num_tokens} tokens"
