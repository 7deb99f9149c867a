"""The house rules that a machine can check: which way imports run, lint, format, sizes."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

from abscot.recipe.load import ROOT

MODULE_LINES, FUNCTION_LINES = 350, 60
FOLDERS = ("abscot", "launch", "slurm", "tests")
PAGES = [
    ROOT / "README.md",
    *(p for name in FOLDERS for p in sorted((ROOT / name).rglob("README.md"))),
]
MODULES = sorted([*(ROOT / "abscot").rglob("*.py"), *(ROOT / "launch").glob("*.py")])


def tool(name: str, *arguments: str) -> str:
    """What a tool of this environment prints; "" where it is content."""
    command = [Path(sys.executable).with_name(name), *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    return done.stdout + done.stderr if done.returncode else ""


@pytest.mark.parametrize(
    "command",
    [("lint-imports", "--no-cache"), ("ruff", "check", "."), ("ruff", "format", "--check", ".")],
)
def test_the_tools_are_content(command):
    assert tool(*command) == ""


@pytest.mark.parametrize("path", MODULES, ids=[str(path.relative_to(ROOT)) for path in MODULES])
def test_modules_and_functions_can_be_seen_whole(path):
    text = path.read_text()
    assert len(text.splitlines()) <= MODULE_LINES
    functions = [n for n in ast.walk(ast.parse(text)) if isinstance(n, ast.FunctionDef)]
    lengths = {n.name: n.end_lineno - n.lineno + 1 for n in functions}
    assert {name: n for name, n in lengths.items() if n > FUNCTION_LINES} == {}


def test_only_the_method_tells_phases_apart_by_name():
    named = re.compile(r"(==|!=|in) *[\"'(\[]+(A|B)[\"']")
    found = [
        f"{path.relative_to(ROOT)}:{number}"
        for path in MODULES
        if path.parent.name != "method" and path.name != "judge.py"  # its A and B are answers
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if named.search(line)
    ]
    assert found == []


def test_slurm_is_known_to_the_launchers_alone():
    found = [
        str(path.relative_to(ROOT))
        for path in MODULES
        if re.search(r"[\"'](SLURM_|srun|mpiexec)|beside_python\([\"']deepspeed", path.read_text())
    ]
    assert found == ["abscot/pipeline/launchers.py"]


def test_the_architecture_page_names_every_module():
    page = (ROOT / "abscot" / "README.md").read_text()
    sections = re.findall(r"^### `(\w+)/`.*?\n(.*?)(?=^#)", page, re.MULTILINE | re.DOTALL)
    named = {
        room: set(re.findall(r"^\| `(\w+\.py)` \|", text, re.MULTILINE)) for room, text in sections
    }
    assert named == {
        room.name: {path.name for path in room.glob("*.py")} - {"__init__.py"}
        for room in (ROOT / "abscot").iterdir()
        if (room / "__init__.py").is_file()
    }


@pytest.mark.parametrize("page", PAGES, ids=[str(page.relative_to(ROOT)) for page in PAGES])
def test_what_the_pages_name_exists(page):
    named = re.findall(rf"\b(?:{'|'.join(FOLDERS)}|ds_configs)/[\w./-]*\w", page.read_text())
    assert [name for name in sorted(set(named)) if not (ROOT / name).exists()] == []


@pytest.mark.parametrize(
    "path", sorted((ROOT / "tests" / "engines").glob("test_*.py")), ids=lambda p: p.stem
)
def test_what_starts_an_engine_can_be_left_out(path):
    assert re.search(
        r"^pytestmark = .*pytest.mark.(engine|vllm|slurm)", path.read_text(), re.MULTILINE
    )
