"""Command line of the tiny model's recipe: train, evaluate."""

import argparse
from pathlib import Path

CHECKPOINT = Path(__file__).parents[2] / "worker" / "tiny_model"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m builder.tiny_model", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    train_options = commands.add_parser("train", help="train from nothing, or go on from the last checkpoint")
    train_options.add_argument("--out", type=Path, default=CHECKPOINT, help="the checkpoint folder to write")
    train_options.add_argument("--work", type=Path, default=Path("build/tiny_model"), help="state for resuming")
    train_options.add_argument("--start", type=Path, help="a checkpoint folder whose weights to begin with")
    train_options.add_argument("--plan", help="one of the parts; without it all, one after the other")
    train_options.add_argument("--scale", type=float, default=1.0, help="length of the curriculum, 1.0 as published")
    train_options.add_argument("--workers", type=int, default=1, help="processes that draw pictures")
    train_options.add_argument("--device", default="cpu")
    train_options.add_argument("--seed", type=int, default=1)
    evaluate_options = commands.add_parser("evaluate", help="exact match on held-out pictures, by skill and language")
    evaluate_options.add_argument("--model", type=Path, default=CHECKPOINT, help="the checkpoint folder to read")
    evaluate_options.add_argument("--per-cell", type=int, default=100, help="cases for each skill and language")
    evaluate_options.add_argument("--seed", type=int, default=20_000_003)
    evaluate_options.add_argument("--show-wrong", action="store_true")
    options = parser.parse_args()
    if options.command == "train":
        from builder.tiny_model.train import PLANS, train

        start = options.start
        for index, (name, plan) in enumerate(PLANS.items()):
            if options.plan in (None, name):
                train(
                    options.out,
                    options.work / name,
                    plan=plan,
                    scale=options.scale,
                    workers=options.workers,
                    device=options.device,
                    seed=options.seed + index,
                    start=start,
                )
            start = start or options.out
    else:
        from builder.tiny_model.evaluate import evaluate

        print(evaluate(options.model, options.seed, options.per_cell, options.show_wrong))


if __name__ == "__main__":
    main()
