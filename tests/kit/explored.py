"""What the tests of the trace explorer show in it: answers in a small world, and hostile texts."""

from pathlib import Path

from abscot.evaluation.results import ResultRow
from abscot.evaluation.statistics import summarise
from abscot.recipe.load import load_recipe
from abscot.recipe.run import claim, open_run
from abscot.reporting.run_data import RunData
from kit.synthetic_run import result_meta, result_row

STATES = {"h0": "AB", "h1": "BB", "h2": "CA", "h3": "BA"}
CODES = {"A": "<TOKEN_A>", "B": "<TOKEN_B>", "C": "<TOKEN_BL>"}
KEY = ("abstract", "final", "world")

HOSTILE = [
    '<img src=x onerror="window.hit=1">',
    "</script><script>window.hit=2</script>",
    "<!--<script>window.hit=3//-->",
    "</title></style></section></noscript><svg onload=window.hit=4>",
    '<iframe src="http://127.0.0.1:9/"></iframe><link rel=stylesheet href=//127.0.0.1:9>',
    "javascript:window.hit=5 ${window.hit=6} \"';window.hit=7;'\" `\\u003cb\\n",
    "\u202egnp.exe\u202c \u2067right to left\u2069 שלום",
    "nothing\0here\x07\x1b[31m\x7f",
    "one line\u2028another\u2029and\x85more &lt;b&gt; &amp;",
    "x" * 100_000,
]


def problem_of(states: str) -> str:
    steps = [f"{i}: X and {state} swap." for i, state in enumerate(states, 1)]
    return "\n".join(["Mia puts a ball under cup X.", *steps, "Where is the ball?"])


def answer(id_: str, trace: list[str], right: bool | None = True, **change) -> ResultRow:
    """An answer to h0 .. h3 behind a trace of names of tokens."""
    score = None if right is None else float(right)
    row = result_row(
        id=f"world/{id_}",
        problem=problem_of(STATES.get(id_, "")),
        trace_ids=list(range(len(trace))),
        trace_tokens=trace,
        n_abstract_tokens=len(trace),
        response="\\boxed{A}",
        prediction="A",
        gold="A",
        correct=score,
        correct_any=score,
    )
    return row.model_copy(update=change)


def told(states: str) -> list[str]:
    """The trace that says them."""
    return [CODES[state] for state in states]


def data_of(root: Path, rows: dict[tuple, list[ResultRow]], **overrides) -> RunData:
    """What a run would say whose answers are `rows`, by (mode, model, benchmark) as no file could
    be called, in the world of STATES. overrides: of the recipe.
    """
    settings = {"name": "explored", "run_root": root, "eval.benchmarks": "[world]", **overrides}
    run = claim(load_recipe(None, [f"{key}={value}" for key, value in settings.items()]))
    data = RunData(*open_run(run.root))
    data.rows, data.states = rows, STATES
    for (mode, model, benchmark), answers in rows.items():
        key = {"mode": mode, "model": model, "benchmark": benchmark}
        data.summaries.append(summarise(answers, **key, round=1))
        data.metas[mode, model, benchmark] = result_meta(**key, round_=1, rows=answers)
    return data
