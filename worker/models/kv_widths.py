"""How wide a row of the KV cache is, and how many rows a pool has memory for. Pure arithmetic."""

SMALLEST_WIDTH = 256


def token_bytes(layers: int, kv_heads: int, head_dim: int, itemsize: int) -> int:
    """Keys and values of a token in all layers that attend."""
    return 2 * layers * kv_heads * head_dim * itemsize


def width_for(tokens: int) -> int:
    """The width of the pool for a sequence of up to `tokens`: 256, 384, 512, 768, 1024, … tokens."""
    width = SMALLEST_WIDTH
    while width < tokens:
        width = width * 3 // 2 if width & (width - 1) == 0 else width * 4 // 3
    return width


def bytes_alone(num_prompt_tokens: int, num_positions: int, num_answers: int, bytes_per_token: int) -> int:
    """Memory that a request needs when there is no other: its rows, and its prompt on the way there."""
    in_rows = rows_for(num_answers) * width_for(num_positions)
    return (in_rows + num_prompt_tokens) * bytes_per_token


def rows_for(count: int) -> int:
    """The rows that a pool has memory for when it holds `count`: doubled up to 8, then eight more at a time."""
    return 1 << (count - 1).bit_length() if count <= 8 else -(-count // 8) * 8


def max_positions(num_prompt_tokens: int, num_answers: int, max_bytes: int, bytes_per_token: int) -> int:
    """The longest that prompt and answer may become so that `bytes_alone` is at most `max_bytes`; 0 for none."""
    widest = (max_bytes // bytes_per_token - num_prompt_tokens) // rows_for(num_answers)
    width = SMALLEST_WIDTH
    while (wider := width_for(width + 1)) <= widest:
        width = wider
    return width if width <= widest else 0
