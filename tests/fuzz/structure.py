"""Changes to the structure of a file: boxes of MP4 and AVIF and elements of Matroska are repeated, dropped, moved and
given extreme numbers, and all sizes around them are put right again. A fuzzer that changes bytes alone seldom gets past
them.
"""

import random
import struct
from collections.abc import Callable
from dataclasses import dataclass, field

from worker.media import ebml, iso_boxes
from worker.media.iso_boxes import Box
from worker.media.sniff import sniff

EXTREMES = (0, 1, 2, 0x7F, 0xFF, 0x7FFF, 0xFFFF, 80_000_000, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFE, 0xFFFFFFFF)
MAX_CHANGES = 4


@dataclass
class Node:
    """A box or an element: its name, what stands before what is in it, and that, or its bytes."""

    name: bytes
    head: bytes = b""
    inside: list["Node"] = field(default_factory=list)
    body: bytes = b""


Written = Callable[[Node], bytes]


def changed(data: bytes, seed: int) -> bytes:
    """The file with a few changes; as it is where it has no structure that is known here."""
    form = sniff(data)
    draw = random.Random(seed)
    if form.video == "matroska,webm":
        return _changed(_elements(data, 0, len(data)), draw, _element)
    if form.picture in ("AVIF", "HEIF") or (form.video or "").startswith("mov"):
        return _changed(_boxes(data, 0, len(data)), draw, _box)
    return data


def _changed(nodes: list[Node], draw: random.Random, written: Written) -> bytes:
    for _ in range(draw.randint(1, MAX_CHANGES)):
        lists = list(_lists(nodes))
        siblings = draw.choice([one for one in lists if one] or [nodes])
        if not siblings:
            break
        at = draw.randrange(len(siblings))
        match draw.randrange(5):
            case 0:
                siblings.insert(at, siblings[at])
            case 1:
                del siblings[at]
            case 2:
                target = draw.choice(lists)
                if not any(one is target for one in _lists(siblings[at].inside)):  # not into itself
                    target.append(siblings[at])
            case 3:
                siblings[at : at + 1] = [siblings[at]] * draw.choice((2, 5, 60))
            case _:
                siblings[at] = _with_an_extreme(siblings[at], draw)
    return b"".join(map(written, nodes))


def _lists(nodes: list[Node]) -> list[list[Node]]:
    found, seen = [nodes], {id(nodes)}
    for each in found:
        for node in each:
            if node.inside and id(node.inside) not in seen:
                seen.add(id(node.inside))
                found.append(node.inside)
    return found


def _with_an_extreme(node: Node, draw: random.Random) -> Node:
    body = node.body
    if len(body) < 4:
        return Node(node.name, node.head, node.inside, bytes([draw.choice(EXTREMES) & 0xFF]) * len(body))
    at = draw.randrange(0, min(len(body) - 3, 32))
    return Node(
        node.name, node.head, node.inside, body[:at] + struct.pack(">I", draw.choice(EXTREMES)) + body[at + 4 :]
    )


def _boxes(data: bytes, begin: int, end: int) -> list[Node]:
    nodes = []
    for box in iso_boxes.boxes(data, begin, end):
        parts = iso_boxes.inner(data, box)
        if parts and box.kind != b"free":
            part: Box = parts[-1]
            nodes.append(Node(box.kind, data[box.begin : part.begin], _boxes(data, part.begin, part.end)))
        else:
            nodes.append(Node(box.kind, body=data[box.begin : box.end]))
    return nodes


def _box(node: Node, depth: int = 0) -> bytes:
    inside = b"".join(_box(one, depth + 1) for one in node.inside) if depth < iso_boxes.MAX_DEPTH else b""
    body = node.head + inside + node.body
    return struct.pack(">I4s", 8 + len(body), node.name) + body


def _elements(data: bytes, begin: int, end: int, depth: int = 0) -> list[Node]:
    nodes = []
    for element in ebml.elements(data, begin, end):
        name = element.id.to_bytes((element.id.bit_length() + 7) // 8, "big")
        if ebml.is_master(element.id) and depth < ebml.MAX_DEPTH:
            nodes.append(Node(name, inside=_elements(data, element.begin, element.end, depth + 1)))
        else:
            nodes.append(Node(name, body=data[element.begin : element.end]))
    return nodes


def _element(node: Node, depth: int = 0) -> bytes:
    inside = b"".join(_element(one, depth + 1) for one in node.inside) if depth < ebml.MAX_DEPTH else b""
    body = inside + node.body
    return node.name + (len(body) | 1 << 56).to_bytes(8, "big") + body
