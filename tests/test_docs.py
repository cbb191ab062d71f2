"""Runs every Python block of README.md and docs/*.md, and checks their links and figures.

A comment above a block says how it is treated:

    <!-- not run -->         shown only
    <!-- slow -->            marked slow
    <!-- extra: MODULE -->   skipped where MODULE, which an extra brings, is not installed
    <!-- file: NAME.py -->   also saved as NAME.py for the blocks that need it
    <!-- needs: NAME.py -->  NAME.py of the same page lies in the working folder
"""

import re
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
_BLOCK = re.compile(r"((?:^<!-- .*? -->\n)*)^```python\n(.*?)^```$", re.M | re.S)


@dataclass(frozen=True)
class Block:
    page: Path
    line: int
    code: str
    marks: tuple[str, ...]

    def named(self, key: str) -> list[str]:
        return [mark.split(":", 1)[1].strip() for mark in self.marks if mark.startswith(f"{key}:")]


def blocks_of(page: Path) -> list[Block]:
    text = page.read_text(encoding="utf-8")
    return [
        Block(page, text[: found.start(2)].count("\n") + 1, found[2], tuple(re.findall(r"<!-- (.*?) -->", found[1])))
        for found in _BLOCK.finditer(text)
    ]


BLOCKS = [block for page in PAGES for block in blocks_of(page)]
RUN = [
    pytest.param(block, id=f"{block.page.name}:{block.line}", marks=[pytest.mark.slow] if "slow" in block.marks else [])
    for block in BLOCKS
    if "not run" not in block.marks
]


@pytest.mark.parametrize("block", RUN)
def test_block_runs(block, tmp_path, monkeypatch):
    for module in block.named("extra"):
        pytest.importorskip(module)
    files = {name: other.code for other in blocks_of(block.page) for name in other.named("file")}
    for need in block.named("needs"):
        (tmp_path / need).write_text(files[need], encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    try:
        # Line numbers of an error are those of the page.
        code = compile("\n" * (block.line - 1) + block.code, str(block.page), "exec")
        exec(code, {"__name__": "docs_block"})
    finally:
        for need in block.named("needs"):
            sys.modules.pop(Path(need).stem, None)


def test_pages_have_blocks():
    assert len(RUN) >= 10


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_and_figures_exist(page):
    text = page.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", text):
        if "://" not in target:
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_fences_are_closed(page):
    assert page.read_text(encoding="utf-8").count("\n```") % 2 == 0


def test_settings_table_is_complete():
    from dataclasses import fields

    from jamgym.settings import EnvSettings

    text = (ROOT / "docs" / "environment.md").read_text(encoding="utf-8")
    table = text[text.index("## Settings") : text.index("## Observation")]
    for field in fields(EnvSettings):
        row = next(
            line for line in table.splitlines() if line.startswith("|") and f"`{field.name}`" in line.split("|")[1]
        )
        shown = "None" if field.default is None else str(field.default)
        assert shown in row, f"{field.name}: the default is {field.default!r}"


def test_every_registered_name_is_documented():
    from jamgym import registry

    text = "\n".join(page.read_text(encoding="utf-8") for page in (ROOT / "docs").glob("*.md"))
    for kind in (registry.codecs, registry.corpora, registry.rewards, registry.policies):
        for name, path in kind.paths().items():
            if path.startswith("jamgym"):
                assert f"`{name}`" in text, f"{kind.kind} {name!r} is on no page"


def test_every_command_is_documented():
    from jamgym.commands.table import COMMANDS

    text = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
    for command in COMMANDS:
        assert f"| `{command.name}` |" in text
