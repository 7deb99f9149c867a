"""The scorecard of `bench.py gpu`: one JSON file to which parts add, and its text.

{"device": of the kernels,
 "kernels": {"machine": .., "cases": {NAME: {..} or {"error": ..}}, "left_out": {NAME: why}, ..},
 ..}
"""

import fcntl
import json
from collections.abc import Callable
from pathlib import Path

from abscot.bench import tools
from abscot.common.errors import UserError
from abscot.common.files import write_json_atomic
from abscot.common.record import read_json

PARTS = ("kernels", "step", "trainer", "traces")
# TFLOP/s forward, backward on causal-document masks, 8k tokens, H100; MFU of a plain 7B at 8k.
ANCHORS = {"FlashAttention-3": (485, 320), "FlexAttention": (181, 110)}
ANCHOR_MFU = 0.43
EXACT_WITHIN = 2e-2  # of fp64, in bf16: the bound of tests/unit/model/test_attention.py


class Scorecard:
    """The file at `path`. Parts may run at the same time, on several nodes: each writes its own
    entries. Raises UserError for a file that is none of ours.
    """

    def __init__(self, path: Path):
        self.path = path

    @property
    def logs(self) -> Path:
        return self.path.with_suffix(".logs")

    def work(self, part: str) -> Path:
        return self.path.with_suffix(".work") / part

    def read(self) -> dict[str, dict]:
        mend = "delete it, or name another --out"
        tree = read_json(self.path, mend) if self.path.exists() else {}
        if not isinstance(tree, dict) or not all(
            name in PARTS and isinstance(entry, dict) for name, entry in tree.items()
        ):
            raise UserError(f"{self.path}: not a scorecard of bench.py gpu; {mend}")
        return tree

    def begin(self, part: str, **values) -> None:
        """The part anew; what the others have written meanwhile stays."""
        self._change(part, lambda _: values)

    def put(self, part: str, **values) -> None:
        """Adds or changes values of a part."""
        self._change(part, lambda before: {**before, **values})

    def put_in(self, part: str, table: str, name: str, value) -> None:
        """Adds a line to a part's `cases` or `left_out`. Raises ValueError for a number that JSON
        has not: NaN or infinite.
        """
        json.dumps(value, allow_nan=False)
        self._change(part, lambda before: {**before, table: {**before[table], name: value}})

    def _change(self, part: str, change: Callable[[dict], dict]) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with open(self.path.with_suffix(".lock"), "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # released when the file is closed
            tree = self.read()
            tree[part] = change(tree.get(part, {}))
            write_json_atomic(self.path, {name: tree[name] for name in PARTS if name in tree})


def text(tree: dict[str, dict]) -> str:
    """All parts that are there, for people."""
    shown = [_part_text(name, tree[name]) for name in PARTS if name in tree]
    return "\n\n".join(shown) or "nothing was measured"


def _part_text(name: str, part: dict) -> str:
    lines = [_title(name, part)]
    measured = {k: v for k, v in part.get("cases", {}).items() if "error" not in v}
    if measured:
        lines.append(TABLES[name](measured))
    failed = {k: v["error"] for k, v in part.get("cases", {}).items() if "error" in v}
    lines += [f"  {case}: FAILED: {why}" for case, why in failed.items()]
    lines += [f"  {case}: left out: {why}" for case, why in part.get("left_out", {}).items()]
    if why := part.get("skipped"):
        lines.append(f"  skipped: {why}")
    if why := part.get("error"):
        lines.append(f"  BROKEN: {why}")
    return "\n".join(lines)


def _title(name: str, part: dict) -> str:
    machine = part.get("machine", {})
    active = ", ".join(
        f"{label} {'active' if machine.get(key) else 'not active'}"
        for key, label in (("flash_attention_3", "FlashAttention-3"), ("liger", "Liger"))
    )
    tiny = "; TINY shapes: a test of the flow, no measurement" if part.get("tiny") else ""
    where = f"{machine.get('gpus') or 'no'} GPU, {machine.get('device')}"
    return f"{name}: {where}, torch {machine.get('torch')}, {active}{tiny}"


def _kernels(cases: dict[str, dict]) -> str:
    speeds = [
        [case, found["forward_tflops"], found["backward_tflops"]]
        for case, found in cases.items()
        if "forward_tflops" in found
    ]
    anchors = [[f"anchor: {name}, 8k, H100", *speeds] for name, speeds in ANCHORS.items()]
    header = ["TFLOP/s over allowed pairs", "forward", "backward"]
    tables = [tools.table("", header, speeds + anchors)] if speeds else []
    deviations = {
        case: [found[key] for key in ("out", "query", "key", "value")]
        for case, found in cases.items()
        if "out" in found
    }
    if deviations:
        header = ["deviation from fp64 over its largest entry", "out", "dq", "dk", "dv", "right"]
        rows = [
            [c, *of, "yes" if max(of) <= EXACT_WITHIN else "NO"] for c, of in deviations.items()
        ]
        tables.append(tools.table("", header, rows))
    others = [c for c, found in cases.items() if not {"forward_tflops", "out"} & found.keys()]
    return "\n".join([*tables, *(f"  {case}: {_flat(cases[case])}" for case in others)])


def _flat(found: dict) -> str:
    return ", ".join(
        f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}"
        for key, value in found.items()
    )


def _steps(cases: dict[str, dict]) -> str:
    rows = [
        [case, found["tokens_per_s"], found["mfu"] or "?", found["peak_bytes"] / 1e9]
        for case, found in cases.items()
    ]
    rows.append(["anchor: a 7B at 8k, H100", "", ANCHOR_MFU, ""])
    return tools.table("", ["whole steps", "tokens/s", "MFU", "peak GB"], rows)


def _trainer(cases: dict[str, dict]) -> str:
    rows = [
        [
            case,
            found["ranks"],
            found["tokens_per_s"],
            found["mfu"] or "?",
            found["peak_bytes"] / 1e9,
            found["planned_bytes"] / 1e9,
        ]
        for case, found in cases.items()
    ]
    rows.append(["anchor: a 7B at 8k, H100", "", "", ANCHOR_MFU, "", ""])
    header = ["launch/train.py", "ranks", "tokens/s", "MFU", "peak GB a rank", "plan.py says"]
    seconds = [
        f"  {case}: " + ", ".join(f"{key[:-2]} {found[key]:.1f} s" for key in _seconds(found))
        for case, found in cases.items()
    ]
    return "\n".join([tools.table("", header, rows), *seconds])


def _seconds(found: dict) -> list[str]:
    """The keys of what took time, and not of rates."""
    times = (key for key in found if key.endswith("_s") and not key.endswith("per_s"))
    return [key for key in times if found[key] is not None]


def _traces(cases: dict[str, dict]) -> str:
    return "\n".join(f"  {case}: {_flat(found)}" for case, found in cases.items())


TABLES = {"kernels": _kernels, "step": _steps, "trainer": _trainer, "traces": _traces}
