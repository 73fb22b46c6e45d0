"""A checkpoint's files: where they lie, and what they say about prompts, pictures and weights."""
