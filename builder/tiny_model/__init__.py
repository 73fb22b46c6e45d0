"""The recipe of the tiny model: generated pictures, questions with true answers, training, evaluation.

`python -m builder.tiny_model train|evaluate` runs it. Nothing in `worker/` imports this package.
"""
