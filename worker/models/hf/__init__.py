"""transformers as the model: every family that it knows, by its own forward. The reference, and the fallback."""
