"""The icon of the Hub's listing: a picture with a speech bubble, as SVG.

python -m builder.icon

writes .runpod/icon.svg, and docs/pictures/icon.svg for the site.
"""

from pathlib import Path

ROOT = Path(__file__).parents[1]
FILES = (ROOT / ".runpod" / "icon.svg", ROOT / "docs" / "pictures" / "icon.svg")
SIDE = 256
BACK, PAPER, SUN, HILL, BUBBLE = "#4f46e5", "#eef2ff", "#f59e0b", "#10b981", "#1e1b4b"


def drawing() -> str:
    """A framed picture of a sun and hills, and a bubble with three dots that says something about it."""
    dots = "".join(f'<circle cx="{x}" cy="176" r="9" fill="{PAPER}"/>' for x in (152, 180, 208))
    return "\n".join(
        (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {SIDE} {SIDE}" width="{SIDE}" height="{SIDE}">',
            f'<rect width="{SIDE}" height="{SIDE}" rx="52" fill="{BACK}"/>',
            f'<rect x="40" y="44" width="148" height="120" rx="16" fill="{PAPER}"/>',
            f'<circle cx="82" cy="84" r="17" fill="{SUN}"/>',
            f'<path d="M40 148 L92 104 L124 132 L148 112 L188 146 L188 148 Q188 164 172 164 L56 164 Q40 164 40 148 Z" '
            f'fill="{HILL}"/>',
            f'<path d="M142 142 H218 Q234 142 234 158 V194 Q234 210 218 210 H182 L158 232 V210 H142 '
            f'Q126 210 126 194 V158 Q126 142 142 142 Z" fill="{BUBBLE}"/>',
            dots,
            "</svg>\n",
        )
    )


def main() -> None:
    for file in FILES:
        file.write_text(drawing(), encoding="utf-8")


if __name__ == "__main__":
    main()
