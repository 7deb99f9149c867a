"""What the tables of bad input share: a case ends in one line that says what to do, or is counted,
within bounded time and memory.
"""

import runpy
import sys
import time
from pathlib import Path

import pytest

from abscot.common.errors import UserError
from abscot.recipe.load import ROOT

MOST_BYTES = 1 << 30  # that one case may add to the memory of the process
LINE_CHARS = 1000
MEASURED = "corpus"  # a property of a case: held, seconds, bytes


def refused(call, *words: str) -> str:
    """The line of the UserError that `call()` must raise; it is readable and holds `words`."""
    with pytest.raises(UserError) as caught:
        call()
    return one_line(str(caught.value), *words)


def one_line(text: str, *words: str) -> str:
    """`text`, which must be one printable line of bearable length that holds `words`."""
    assert text.isprintable(), repr(text)
    assert 0 < len(text) <= LINE_CHARS, len(text)
    missing = [word for word in words if word not in text]
    assert not missing, f"{missing} not in: {text}"
    return text


def launch(capfd, monkeypatch, script: str, *arguments: str) -> tuple[int, str]:
    """(exit code, last line of stderr) of `launch/SCRIPT`, run in this process.

    A traceback fails the test: it would be raised here.
    """
    monkeypatch.setattr(sys, "argv", [script, *arguments])
    monkeypatch.setattr(sys, "path", list(sys.path))  # a script of launch/ changes it
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(ROOT / "launch" / script), run_name="__main__")
    lines = capfd.readouterr().err.strip().splitlines()
    return int(end.value.code or 0), lines[-1] if lines else ""


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item):
    """Measures each case of the corpus."""
    if "corpus" not in item.path.parts:
        return (yield)
    Path("/proc/self/clear_refs").write_text("5")  # forgets the peak so far
    before, began_s, held = _peak_bytes(), time.monotonic(), False
    try:
        result = yield
        held = True
    finally:
        took_s, grown = time.monotonic() - began_s, _peak_bytes() - before
        item.user_properties.append((MEASURED, (held, took_s, grown)))
    assert grown <= MOST_BYTES, f"{grown / 2**20:.0f} MiB for one case"
    return result


def _peak_bytes() -> int:
    status = Path("/proc/self/status").read_text()
    line = next(line for line in status.splitlines() if line.startswith("VmHWM"))
    return 1024 * int(line.split()[1])


def pytest_terminal_summary(terminalreporter):
    """From the reports, which come from all processes."""
    reports = [r for of_kind in terminalreporter.stats.values() for r in of_kind]
    measured = [
        (report.nodeid, *values)
        for report in reports
        if getattr(report, "when", None) == "call"
        for name, values in report.user_properties
        if name == MEASURED
    ]
    if not measured:
        return
    slowest, largest = max(measured, key=lambda m: m[2]), max(measured, key=lambda m: m[3])
    held = sum(m[1] for m in measured)
    terminalreporter.write_line(
        f"corpus: {held} of {len(measured)} cases hold; longest {slowest[2]:.1f} s "
        f"({slowest[0]}); most memory {largest[3] / 2**20:.0f} MiB ({largest[0]})"
    )
