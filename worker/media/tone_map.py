"""HDR films (PQ, HLG) to what a common screen shows, by a table of colors made once for each curve.

The steps are those of ffmpeg's `zscale=t=linear:npl=100,zscale=p=bt709,tonemap=hable:desat=0,zscale=t=bt709`: light
where 1 is 100 cd/m², BT.2020's primaries to BT.709's, Hable's curve over the largest of the three, gamma 2.4.
"""

from functools import cache
from typing import Literal

import numpy as np
from PIL import Image, ImageFilter

from worker.core.opened import RGB

Curve = Literal["PQ", "HLG"]
CURVES: dict[int, Curve] = {16: "PQ", 18: "HLG"}  # FFmpeg's numbers of transfer characteristics
TABLE_SIDE = 65
WHITE_NITS = 100.0
PEAK = 10.0  # of the curve, in white's: 1000 cd/m²
_HLG_PEAK_NITS, _HLG_GAMMA = 1000.0, 1.2
_GAMMA = 2.4
_2020_TO_709 = np.array([[1.6605, -0.5876, -0.0728], [-0.1246, 1.1329, -0.0083], [-0.0182, -0.1006, 1.1187]])
_2020_LUMINANCE = np.array([0.2627, 0.6780, 0.0593])


def mapped(rgb: RGB, curve: Curve) -> RGB:
    """(height, width, 3) of the same size, in BT.709."""
    return np.asarray(Image.fromarray(rgb).filter(_table(curve)))


@cache
def _table(curve: Curve) -> ImageFilter.Color3DLUT:
    """Made one level of blue after the other, which takes little memory."""
    steps = np.linspace(0, 1, TABLE_SIDE)
    green, red = np.meshgrid(steps, steps, indexing="ij")
    table = np.empty((TABLE_SIDE, TABLE_SIDE * TABLE_SIDE, 3), np.float32)
    for index, blue in enumerate(steps):
        table[index] = _shown(np.stack([red, green, np.full_like(red, blue)], axis=-1).reshape(-1, 3), curve)
    return ImageFilter.Color3DLUT(TABLE_SIDE, table.ravel())


def _shown(colors: np.ndarray, curve: Curve) -> np.ndarray:
    light = (_pq_light(colors) if curve == "PQ" else _hlg_light(colors)) / WHITE_NITS @ _2020_TO_709.T
    largest = np.maximum(light.max(axis=1, keepdims=True), 1e-6)
    shown: np.ndarray = (light * (_hable(largest) / _hable(np.array(PEAK)) / largest)).clip(0, 1) ** (1 / _GAMMA)
    return shown


def _pq_light(values: np.ndarray) -> np.ndarray:
    """cd/m². Source: SMPTE ST 2084."""
    m1, m2, c1, c2, c3 = 2610 / 16384, 2523 / 4096 * 128, 3424 / 4096, 2413 / 4096 * 32, 2392 / 4096 * 32
    root = values ** (1 / m2)
    light: np.ndarray = 10_000 * (np.maximum(root - c1, 0) / (c2 - c3 * root)) ** (1 / m1)
    return light


def _hlg_light(values: np.ndarray) -> np.ndarray:
    """cd/m² on a screen of 1000. Source: ITU-R BT.2100."""
    a, b, c = 0.17883277, 0.28466892, 0.55991073
    scene = np.where(values <= 0.5, values**2 / 3, (np.exp((values - c) / a) + b) / 12)
    luminance = (scene @ _2020_LUMINANCE)[:, None]
    light: np.ndarray = _HLG_PEAK_NITS * np.maximum(luminance, 1e-9) ** (_HLG_GAMMA - 1) * scene
    return light


def _hable(value: np.ndarray) -> np.ndarray:
    a, b, c, d, e, f = 0.15, 0.50, 0.10, 0.20, 0.02, 0.30
    curve: np.ndarray = (value * (value * a + b * c) + d * e) / (value * (value * a + b) + d * f) - e / f
    return curve
