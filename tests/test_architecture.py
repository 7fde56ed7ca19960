"""The rooms of ARCHITECTURE.md: none imports from one above it."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_no_room_imports_from_one_above_it() -> None:
    rows = re.findall(r"^\| (`.+?`) \|", (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8"), re.MULTILINE)
    level = {name: i for i, row in enumerate(rows) for name in re.findall(r"`(\w+)[/.]", row)}
    files = [path.relative_to(ROOT / "fewshot_mcl") for path in (ROOT / "fewshot_mcl").rglob("*.py")]
    rooms = {path: path.parts[0].removesuffix(".py") for path in files}
    assert set(rooms.values()) - {"__init__", "__main__"} == set(level), "every room stands in the table"
    upward = [
        f"{path} imports {name}"
        for path, room in rooms.items()
        for name in re.findall(r"from fewshot_mcl\.(\w+)", (ROOT / "fewshot_mcl" / path).read_text(encoding="utf-8"))
        if room in level and level[name] < level[room]
    ]
    assert upward == []
