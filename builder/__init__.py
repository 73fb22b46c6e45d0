"""What happens before the worker runs: making the tiny model, and later building the image."""
