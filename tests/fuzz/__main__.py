"""`python -m tests.fuzz [libFuzzer's options]`: minutes of bytes that grow from the seeds by what code they reach.

What is found stays in `build/fuzz`; a fault is written there as `crash-…` and belongs, once mended, into `seeds/`.
"""

import sys
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["PIL", "worker.media"]):
    from tests.fuzz.structure import changed
    from tests.fuzz.target import open_anything

SEEDS = Path(__file__).parent / "seeds"
FOUND = Path("build/fuzz")


def _changed(data: bytes, max_size: int, seed: int) -> bytes:
    """By turns bytes are changed, and structure."""
    return atheris.Mutate(data, max_size) if seed % 2 else changed(data, seed)[:max_size]


def main() -> None:
    corpus = FOUND / "corpus"
    corpus.mkdir(parents=True, exist_ok=True)
    options = ["-max_len=16384", "-timeout=20", "-rss_limit_mb=3072", "-print_final_stats=1"]
    options += [f"-artifact_prefix={FOUND}/", *sys.argv[1:], str(corpus), str(SEEDS)]
    atheris.Setup([sys.argv[0], *options], open_anything, custom_mutator=_changed)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
