"""A worker that serves Qwen vision-language models: one request in, text and usage out."""

__version__ = "0.1.0"
