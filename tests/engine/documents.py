"""Documents that repeat themselves and are none the less true, and loops: what a guard must tell apart. All are made
from a seed."""

import random
from collections.abc import Callable

WORDS = (
    *("invoice", "total", "amount", "date", "name", "street", "city", "paid", "open", "order", "item", "price", "tax"),
    *("sum", "page", "table", "figure", "red", "blue", "green", "small", "large", "left", "right", "before", "after"),
    *(
        "value",
        "result",
        "error",
        "list",
        "count",
        "index",
        "start",
        "end",
        "first",
        "second",
        "third",
        "room",
        "floor",
    ),
)
ZH = "发票金额日期名称街道城市已付订单价格税页表图红蓝绿小大左右前后值结果错误列表计数开始结束第一第二房间楼层"


def _word(rng: random.Random) -> str:
    return rng.choice(WORDS)


def _phrase(rng: random.Random, low: int, high: int) -> str:
    if rng.random() < 0.2:
        return "".join(rng.choice(ZH) for _ in range(rng.randint(2 * low, 2 * high)))
    return " ".join(_word(rng) for _ in range(rng.randint(low, high)))


def table_with_equal_rows(rng: random.Random) -> str:
    """At most four in a row."""
    columns = rng.randint(2, 5)
    head = "| " + " | ".join(_word(rng) for _ in range(columns)) + " |\n" + "|---" * columns + "|\n"
    rows = []
    for _ in range(rng.randint(2, 5)):
        cells = [rng.choice((_word(rng), str(rng.randint(0, 999)), "N/A", "0.00")) for _ in range(columns)]
        row = "| " + " | ".join(cells) + " |\n"
        rows += [row] * rng.choice((1, 1, 2, 3, 4)) if row not in rows else []
    return head + "".join(rows)


def empty_form(rng: random.Random) -> str:
    columns, rows = rng.randint(2, 5), rng.randint(5, 20)
    return "|" + "  |" * columns + "\n" + ("|" + "   |" * columns + "\n") * rows


def html_table(rng: random.Random) -> str:
    columns = rng.randint(2, 4)
    filled = "".join(f"<tr>{''.join(f'<td>{_word(rng)}</td>' for _ in range(columns))}</tr>\n" for _ in range(3))
    return "<table>\n" + filled + ("<tr>" + "<td></td>" * columns + "</tr>\n") * rng.randint(2, 12) + "</table>"


def zeros(rng: random.Random) -> str:
    columns = rng.randint(2, 8)
    rows = [",".join("0" if rng.random() < 0.9 else str(rng.randint(1, 99)) for _ in range(columns)) for _ in range(12)]
    return "\n".join(rows)


def numbers(rng: random.Random) -> str:
    start, step = rng.randint(0, 100), rng.randint(1, 7)
    joint = rng.choice((", ", "\n", " "))
    return joint.join(str(start + step * index) for index in range(rng.randint(20, 60)))


def readings(rng: random.Random) -> str:
    return "\n".join(f"{hour:02d}:00  {rng.choice(('20.1', '20.2', '20.1'))} C" for hour in range(12))


def records(rng: random.Random) -> str:
    name, other = _word(rng), _word(rng)
    rows = [f'{{"{name}": {rng.randint(0, 99)}, "{other}": "{_word(rng)}", "box": [{rng.randint(0, 999)}, 0, 10, 10]}}'
            for _ in range(rng.randint(4, 9))]  # fmt: skip
    return "[\n" + ",\n".join(rows) + "\n]"


def code(rng: random.Random) -> str:
    name = _word(rng)
    body = "".join(f"    {name}.append({rng.choice(('0', 'None', _word(rng)))})\n" for _ in range(rng.randint(3, 6)))
    same = f"    {name} += 1\n" * rng.randint(2, 5)
    return f"def {_word(rng)}({name}):\n" + body + same + f"    return {name}\n"


def refrain(rng: random.Random) -> str:
    lines = [_phrase(rng, 3, 6) for _ in range(4)]
    chorus = _phrase(rng, 4, 7) + "\n"
    return "".join(line + "\n" + chorus * rng.randint(1, 3) for line in lines)


def contents(rng: random.Random) -> str:
    return "\n".join(f"{_phrase(rng, 1, 3)} {'.' * rng.randint(20, 90)} {page}" for page in range(1, 7))


def rulers(rng: random.Random) -> str:
    return f"{rng.choice('-=_*~') * rng.randint(10, 100)}\n{_phrase(rng, 3, 9)}\n" * 2 + _phrase(rng, 5, 20)


def prose(rng: random.Random) -> str:
    return ". ".join(_phrase(rng, 4, 14) for _ in range(rng.randint(3, 9))) + "."


def prices(rng: random.Random) -> str:
    """Columns that are alike to the end of the page, as most of the tables below."""
    cell = rng.choice(("$0.00", "€ 0,00", "0.00 EUR", "USD 10.00", "£5", "¥0", "0元", "0%", "100 %", "0 kg", "20.0 °C"))
    row = "| " + " | ".join([cell] * rng.randint(1, 3)) + " |\n"
    return f"| {_word(rng)} |\n|---|\n" + row * rng.randint(6, 25)


def matrix(rng: random.Random) -> str:
    joint, end = rng.choice(((" & ", " \\\\\n"), (" ", "\n"), ("\t", "\n"), (", ", ",\n")))
    row = joint.join([rng.choice(("0", "1", "0.0", "-1"))] * rng.randint(2, 6)) + end
    lined = rng.choice(("", "\\hline\n")) if "&" in row else ""
    return "\\begin{matrix}\n" + (row + lined) * rng.randint(5, 20) + "\\end{matrix}"


def bytes_of_a_program(rng: random.Random) -> str:
    sign = rng.choice(("0x00", "0xFF", "0x00000000UL", "0", "'\\0'"))
    row = "    " + ", ".join([sign] * rng.choice((4, 8))) + ",\n"
    return f"static const uint8_t {_word(rng)}[] = {{\n" + row * rng.randint(4, 10) + "};"


def check_boxes(rng: random.Random) -> str:
    sign = rng.choice(("☐", "□", "○", "●", "✓", "★", "[ ]", "[x]", "X", "(  )"))
    row = rng.choice((f"{sign}\n", f"| {sign} | {sign} |\n", f"- {sign} \n", f"{sign} {sign} {sign} {sign} {sign}\n"))
    return _phrase(rng, 2, 5) + "\n" + row * rng.randint(6, 30)


def empty_records(rng: random.Random) -> str:
    names = [_word(rng) for _ in range(rng.randint(1, 3))]
    values = ('""', "null", "[]", "{}", "0", "false", '{"of": ""}')
    record = "{" + ", ".join(f'"{name}": {rng.choice(values)}' for name in names) + "}"
    return "[" + ",\n ".join([record] * rng.randint(6, 20)) + "]"


def log_lines(rng: random.Random) -> str:
    time = rng.choice(("1970-01-01T00:00:00Z", "00:00:00", "01.01.1970", "1970-01-01 00:00:00.000"))
    return "\n".join([f"{time}; 0; -; N/A"] * rng.randint(5, 20))


TRUE: tuple[Callable[[random.Random], str], ...] = (
    table_with_equal_rows, empty_form, html_table, zeros, numbers, readings, records, code, refrain, contents, rulers,
    prose, prices, matrix, bytes_of_a_program, check_boxes, empty_records, log_lines,
)  # fmt: skip


def document(rng: random.Random) -> str:
    """One that may stand in an answer."""
    parts = [rng.choice(TRUE)(rng) for _ in range(rng.choice((1, 1, 1, 2)))]
    return "\n\n".join(parts)


def looped(rng: random.Random) -> str:
    """What a model says again and again."""
    kind = rng.randrange(6)
    if kind == 0:
        return rng.choice(("!", "ha ", _word(rng) + " ", "的", "好的，"))
    if kind == 1:
        return _phrase(rng, 2, 6) + ". "
    if kind == 2:
        return f"| {_word(rng)} | {rng.randint(0, 99)} | {_word(rng)} |\n"
    if kind == 3:
        return f'{{"bbox_2d": [{rng.randint(0, 999)}, 1, 2, 3], "label": "{_word(rng)}"}},\n'
    if kind == 4:
        return f"- {_phrase(rng, 3, 8)}\n- {_phrase(rng, 3, 8)}\n"
    return prose(rng) + "\n"
