# The worker with a model's weights inside. docs/image.md explains the layers, docs/deploy.md how to deploy it.
#
#   docker build -t worker-qwen-vl --build-arg MODEL_ID=Qwen/Qwen3-VL-8B-Instruct --build-arg MODEL_REVISION=main .
#   docker build … --secret id=hf_token,src=token.txt .     a private or gated model: the token is in no layer
#   docker build … --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cpu .     torch's CPU build
#
# Without MODEL_ID the image has no weights: MODEL_ID or MODEL_PATH must say at run time where they are.
ARG BASE_IMAGE=python:3.11-slim-bookworm

# What the worker needs to run, with its bytecode. torch's pin is the CUDA build unless TORCH_INDEX has another.
FROM ${BASE_IMAGE} AS packages
ENV PIP_DISABLE_PIP_VERSION_CHECK=1
ARG BITSANDBYTES=""
ARG TORCH_INDEX=""
RUN python3 -m venv /opt/venv
COPY requirements.txt requirements-bitsandbytes.txt /src/
RUN /opt/venv/bin/pip install --no-cache-dir --no-compile -r /src/requirements.txt \
         ${BITSANDBYTES:+-r /src/requirements-bitsandbytes.txt} ${TORCH_INDEX:+--extra-index-url "${TORCH_INDEX}"} \
    && /opt/venv/bin/pip freeze > /opt/venv/packages.txt \
    && { /opt/venv/bin/python -m compileall -q -j 0 --invalidation-mode unchecked-hash /opt/venv/lib \
         || echo "files for other versions of Python have no bytecode"; }

# The weights. Only a change of these arguments or of the download itself fetches them again.
FROM packages AS weights
ARG MODEL_ID=""
ARG MODEL_REVISION=main
ARG MODEL_SOURCE=huggingface
ARG HF_ENDPOINT=https://huggingface.co
ARG MODELSCOPE_ENDPOINT=""
WORKDIR /src
COPY requirements-modelscope.txt ./
COPY builder/__init__.py builder/download.py builder/
RUN --mount=type=secret,id=hf_token mkdir -p /models \
    && if [ "${MODEL_SOURCE}" = modelscope ]; then \
         /opt/venv/bin/pip install --no-cache-dir --target /opt/modelscope -r requirements-modelscope.txt; fi \
    && if [ -n "${MODEL_ID}" ]; then \
         PYTHONPATH=/opt/modelscope /opt/venv/bin/python -m builder.download --model-id "${MODEL_ID}" \
           --revision "${MODEL_REVISION}" --source "${MODEL_SOURCE}" --token-file /run/secrets/hf_token \
           --out "/models/${MODEL_ID##*/}"; fi

# Verified complete and servable, or the build ends here. The folder's bytes and times depend on nothing but the model.
FROM weights AS baked
COPY builder builder
COPY worker worker
RUN find /models -mindepth 1 -maxdepth 1 -exec /opt/venv/bin/python -m builder.bake {} + \
    && touch -d @0 /models

FROM ${BASE_IMAGE} AS image
COPY --from=packages /opt/venv /opt/venv
COPY --from=baked /models /models
WORKDIR /app
COPY LICENSE handler.py test_input.json ./
COPY worker worker
RUN /opt/venv/bin/python -m compileall -q --invalidation-mode unchecked-hash /app
ENV PATH=/opt/venv/bin:${PATH} PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
CMD ["/opt/venv/bin/python", "handler.py"]
