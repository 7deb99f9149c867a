"""What the trace explorer of index.html shows: answers with a trace and, in the embedded world, the
step that each token stands for.

The tree is of plain values and bounded. Of each result file it holds as many wrong answers as right
ones, as far as there are, in the file's order; `answers` counts the whole file.

    start    number of the set to begin with
    limits   the bounds below: {rows, text_chars, trace_tokens}
    without  the result files that have no traces, in words
    tokens   names of codebook tokens
    tasks    {id, text, steps}: steps are [text, state after it], null outside the world
    sets     {mode, model, benchmark, file, answers: {right, wrong, unjudged}, codes, rows}; codes
             holds for each code of a step [token, state, times, of], as `meaning.Mostly` says
    rows     {task, of, sample, trace, trace_cut, per_step, thought, answer, read, gold, verdict,
             score, finish, counts: [reasoning, response, total]}; task and trace are numbers of
             tasks and tokens; of: the task whose trace it is; trace_cut: tokens left out;
             per_step: codes a step, 0 where tokens stand for no step
"""

import re
from collections import Counter, defaultdict

from abscot.common.secrets import redacted
from abscot.evaluation.results import ResultRow, result_name
from abscot.method.vocab import token_name
from abscot.reporting import meaning
from abscot.reporting.blocks import Explorer
from abscot.reporting.run_data import RunData

ROWS = 1500  # on a page
ROWS_OF_SET = 200
TEXT_CHARS = 2000
TAIL_CHARS = 500  # of them from the end, where an answer has its result
TRACE_TOKENS = 256
VERDICTS = ("right", "wrong", "unjudged")
ABSTRACT = "abstract"
# Modes whose traces a model wrote in the order of the steps, and nobody shuffled.
IN_ORDER = (ABSTRACT, "abstract_swapped", "channel")
STEP = re.compile(r"^\d+: (.+?)\.?$", re.MULTILINE)

Key = tuple[str, str, str]  # mode, model, benchmark


def of_run(data: RunData) -> Explorer | None:
    """None where no answer has a trace. Raises UserError for a damaged world."""
    keys = [(s.mode, s.model, s.benchmark) for s in data.summaries]
    traced = [key for key in keys if any(row.trace_tokens for row in data.rows[key])]
    if not traced:
        return None
    maker, room = _Maker(data), max(1, min(ROWS_OF_SET, ROWS // len(traced)))
    last = max((s for s in data.scored if s.mode == ABSTRACT), key=lambda s: s.round, default=None)
    begin = (last.mode, last.model, last.benchmark) if last else None
    tree = {
        "start": traced.index(begin) if begin in traced else 0,
        "limits": {"rows": ROWS, "text_chars": TEXT_CHARS, "trace_tokens": TRACE_TOKENS},
        "without": [
            f"{mode} of {model} on {benchmark}"
            for mode, model, benchmark in keys
            if (mode, model, benchmark) not in traced
        ],
        "sets": [maker.set_of(key, room) for key in traced],
    }
    tasks = [{"id": id_, "text": text, "steps": steps} for id_, text, steps in maker.tasks]
    return Explorer({**tree, "tokens": list(maker.tokens), "tasks": tasks})


def verdict(score: float | None) -> str:
    return "unjudged" if score is None else "right" if score >= 0.5 else "wrong"


def chosen(rows: list[ResultRow], room: int) -> list[ResultRow]:
    """At most `room` of the rows, in their order: the first of each verdict, in turns."""
    seen, turns = Counter(), []
    for number, row in enumerate(rows):
        kind = verdict(row.correct)
        turns.append((seen[kind], number))
        seen[kind] += 1
    return [rows[number] for number in sorted(number for _, number in sorted(turns)[:room])]


def shortened(text: str) -> str:
    """Beginning and end of a text of more than TEXT_CHARS, and how much is missing between them."""
    cut = len(text) - TEXT_CHARS
    if cut <= 0:
        return text
    head, tail = text[: TEXT_CHARS - TAIL_CHARS], text[-TAIL_CHARS:]
    return f"{head} … ({cut:,} characters left out) … {tail}"


def _numbers() -> defaultdict:
    """Things -> their numbers, in the order in which they are first asked for."""
    found = defaultdict()
    found.default_factory = found.__len__
    return found


class _Maker:
    """Makes the sets of a tree. What many rows share has a number: `tasks`, of (id, text, steps),
    and `tokens`.
    """

    def __init__(self, data: RunData):
        self.data, self.secrets = data, data.secrets
        self.tasks, self.tokens = _numbers(), _numbers()

    def set_of(self, key: Key, room: int) -> dict:
        (mode, model, benchmark), rows = key, self.data.rows[key]
        per_step, codes = self._codes(key)
        problems = {row.id: row.problem for row in rows}
        verdicts = Counter(verdict(row.correct) for row in rows)
        return {
            "mode": mode,
            "model": model,
            "benchmark": benchmark,
            "file": f"results/{result_name(*key)}.jsonl",
            "answers": {name: verdicts[name] for name in VERDICTS},
            "codes": [
                [[self._token(token), *said] for token, said in sorted(place.items())]
                for place in codes
            ],
            "rows": [self._row(row, key, problems, per_step) for row in chosen(rows, room)],
        }

    def _codes(self, key: Key) -> tuple[int, list[dict[str, meaning.Mostly]]]:
        """(codes a step, what each mostly stands for). Where a mode changes the traces of mode
        `abstract`, by those. (0, []) outside the world.
        """
        mode, model, benchmark = key
        source = ABSTRACT if mode.startswith(ABSTRACT) else mode
        if benchmark != meaning.WORLD or source not in IN_ORDER:
            return 0, []
        own = [
            (row.trace_tokens, states)
            for row in self.data.rows.get((source, model, benchmark), [])
            if (states := self._states(row.id, benchmark))
        ]
        traces, states = [trace for trace, _ in own], [states for _, states in own]
        return meaning.codes_a_step(traces, states)[0], meaning.mostly(traces, states)

    def _states(self, id_: str, benchmark: str) -> str:
        """The state after each step of a problem; "" of one that is not the world's."""
        known = self.data.states if benchmark == meaning.WORLD else {}
        return known.get(id_.removeprefix(f"{meaning.WORLD}/"), "")

    def _token(self, token: str) -> int:
        return self.tokens[self._text(token_name(token))]

    def _task(self, id_: str, problem: str, benchmark: str) -> int:
        texts, states = STEP.findall(problem), self._states(id_, benchmark)
        steps = tuple(zip(texts, states, strict=False)) if len(texts) == len(states) > 0 else None
        return self.tasks[self._text(id_), self._text(problem), steps]

    def _text(self, text: str) -> str:
        """What of a text is shown. Cut last: a part of a secret is not known as one."""
        return shortened(redacted(text, self.secrets))

    def _row(self, row: ResultRow, key: Key, problems: dict[str, str], per_step: int) -> dict:
        mode, _, benchmark = key
        whose, trace = row.trace_of or row.id, row.trace_tokens
        states = self._states(whose, benchmark)
        in_steps = mode in IN_ORDER and states and len(trace) == per_step * len(states)
        return {
            "task": self._task(row.id, row.problem, benchmark),
            "of": self._task(whose, problems.get(whose, ""), benchmark),
            "sample": row.sample,
            "trace": [self._token(token) for token in trace[:TRACE_TOKENS]],
            "trace_cut": max(len(trace) - TRACE_TOKENS, 0),
            "per_step": per_step if in_steps else 0,
            "thought": self._text(row.reasoning),
            "answer": self._text(row.response),
            "read": None if row.prediction is None else self._text(row.prediction),
            "gold": self._text(row.gold),
            "verdict": verdict(row.correct),
            "score": row.correct,
            "finish": row.finish_reason,
            "counts": [row.n_reasoning_tokens, row.n_response_tokens, row.n_total_tokens],
        }
