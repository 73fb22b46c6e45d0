"""What the CPU has instructions for."""

import platform

import torch


def multiplies(dtype: torch.dtype) -> bool:
    """Whether the CPU has instructions for products of such numbers, and torch uses them."""
    if dtype == torch.float32:
        return True
    if dtype == torch.bfloat16:
        # Where there is AVX-512 without them, torch takes bfloat16 too, and computes it in float32.
        is_arm = platform.machine() in ("aarch64", "arm64")
        has_own = is_arm or torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
        return has_own and is_known_to_onednn(dtype)
    return torch.cpu._is_amx_fp16_supported() and is_known_to_onednn(dtype)


def is_known_to_onednn(dtype: torch.dtype) -> bool:
    """Whether torch hands such products to oneDNN here; else it computes those in 16 bits by plain loops."""
    if dtype == torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    if dtype == torch.float16:
        return bool(torch.ops.mkldnn._is_mkldnn_fp16_supported())
    return True
