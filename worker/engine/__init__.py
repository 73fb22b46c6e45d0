"""The rooms that know torch: loading, prompts, sequences, batching, sampling, streaming.

Knows no dialect and no network. `Engine` is the face; everything else is a room behind it.
"""
