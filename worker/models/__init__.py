"""Models on a device: our own code, transformers', and the KV cache between them and the engine."""
