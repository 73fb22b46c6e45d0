"""Media references to pixels: guard and fetch addresses, decode base64, tell formats by their bytes, open pictures.

Knows no model: sizes, patches and tokens are the engine's.
"""
