"""Many requests on one model at once: scheduling, prefill, decode, sampling, and what a failure costs.

`engine.py` is the entry point. Knows no dialect and no network.
"""
