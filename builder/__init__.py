"""What happens before the worker runs: training the tiny model, baking checkpoints, writing documents."""
