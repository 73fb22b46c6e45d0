#!/bin/sh
# The wheels that `benchmarks.gpu` needs beside torch, transformers, tokenizers and jinja2, into .whl/, for a machine
# without a network: copy the folder there, then
#   python3 -m pip install --no-index --no-deps --target /tmp/site .whl/*.whl && export PYTHONPATH=/tmp/site
set -eu
python="${1:-3.12}"
pip download --quiet --no-deps --only-binary=:all: --python-version "$python" --implementation cp \
    --platform manylinux_2_28_x86_64 --platform manylinux_2_17_x86_64 --platform manylinux2014_x86_64 \
    --dest .whl $(.venv/bin/pip freeze | grep -iE '^(pydantic|pydantic_core|annotated-types|typing-inspection|python-dotenv|typing_extensions)==')
ls .whl
