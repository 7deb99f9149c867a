"""What counts as right: the answer in a response, and its comparison with the gold answer.

Most answers are settled by comparing normalised strings. The rest goes to math-verify, which parses
LaTeX and asks a computer algebra system: that can hang or take all memory, so it runs in processes
of its own with limits, killed at the deadline. `python -m abscot.evaluation.scoring` is such a
process: a JSON line in, a JSON line out.
"""

import dataclasses
import json
import os
import queue
import re
import resource
import select
import string
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple

from abscot.recipe.load import ROOT

TIME_LIMIT_S = 5.0  # of one comparison, after the process has started
START_LIMIT_S = 60.0
MEMORY_LIMIT_BYTES = 4 << 30
LONGEST_ANSWER_CHARS = 2000  # longer predictions are wrong without being parsed


@dataclass(frozen=True)
class Verdict:
    """score: 0..1, None where only a judge can tell; where a scorer wants a box, 0 without a closed
    one. score_any: the same with the fallbacks of find_answer. prediction, scorer: what was found,
    and how it was found and compared.
    """

    prediction: str | None
    score: float | None
    score_any: float | None
    scorer: str

    @classmethod
    def of(cls, found: "Found", right: float, comparison: str, outcome: str = "") -> "Verdict":
        """The verdict of a scorer that wants a box. Fallbacks and failures stand in its name:
        `exact`, `math-verify`, `last-number+math-verify:timeout`.
        """
        name = comparison if found.how == BOXED else f"{found.how}+{comparison}"
        name = name if outcome in ("", "right", "wrong") else f"{name}:{outcome}"
        return cls(found.answer, right if found.how == BOXED else 0.0, right, name)


def score_all(scorer: str, responses: Sequence[str], golds: Sequence[str]) -> list[Verdict]:
    """One verdict per response; never raises for what a response holds, never hangs."""
    return SCORERS[scorer](list(responses), list(golds))


# --- finding the answer

BOXED = "boxed"
_ANSWER_IS = re.compile(r"(?:final answer|answer)\s*(?:is|:|=)\s*(.+)", re.IGNORECASE)
_NUMBER = re.compile(r"-?\$?\d(?:[\d,]*\d)?(?:\.\d+)?(?:/\d+)?")
_BOX_OR_BRACE = re.compile(r"\\(?:boxed|fbox)(?![a-zA-Z])\s*|\\.|[{}]", re.DOTALL)
_BARE = re.compile(r"[^\s$.,\\{}]+")


class Found(NamedTuple):
    """An answer in a response; how: `boxed`, the name of a fallback, or `none`."""

    answer: str | None
    how: str


def find_answer(response: str) -> Found:
    """The last box where it closes; else, by name, an earlier box that does, what stands behind
    `####` or `answer is`, or the last number.
    """
    boxes = box_spans(response)
    closed = next((i for i in reversed(range(len(boxes))) if boxes[i]), None)
    if closed is not None:
        start, end = boxes[closed]
        is_last = closed == len(boxes) - 1
        return Found(response[start:end].strip(), BOXED if is_last else "earlier-box")
    if "####" in response:
        return Found(response.rpartition("####")[2].strip().partition("\n")[0], "####")
    if said := _ANSWER_IS.findall(response[-LONGEST_ANSWER_CHARS:]):
        return Found(said[-1].strip().rstrip("."), "answer-is")
    if numbers := _NUMBER.findall(response[-LONGEST_ANSWER_CHARS:]):
        return Found(numbers[-1], "last-number")
    return Found(None, "none")


def box_spans(text: str) -> list[tuple[int, int] | None]:
    """(start, end) of the inside of each \\boxed{..} (\\fbox and `\\boxed 5` too), in the order in
    which they begin; None for one that does not close.

    One pass over the text, which a model wrote: of any length and depth.
    """
    spans: list[tuple[int, int] | None] = []
    open_: list[tuple[int, int | None]] = []  # open braces: where, and the box that each opens
    named_end = -1  # where the brace of the box just named would stand
    for match in _BOX_OR_BRACE.finditer(text):
        token, at = match.group(), match.start()
        if token == "{":
            open_.append((at + 1, len(spans) - 1 if at == named_end else None))
        elif token == "}":
            start, box = open_.pop() if open_ else (at, None)
            if box is not None:
                spans[box] = (start, at)
        elif token.startswith(("\\boxed", "\\fbox")):
            named_end = match.end()
            bare = _BARE.match(text, named_end)
            spans.append(bare.span() if bare else None)
    return spans


# --- comparing

_LATEX_SPACE = re.compile(r"\\(?:left|right|displaystyle|limits)(?![a-zA-Z])|\\!")
_LATEX_GAP = re.compile(r"\\[,;: ]|~|\\(?:quad|qquad)(?![a-zA-Z])")
_GROUP_GAP = re.compile(r"(?<=\d)(?:\\,|\{,\}|,\\!\s*)(?=\d{3}(?!\d))")
_LATEX_TEXT = re.compile(r"\\(?:text|textbf|textit|mathrm|mbox|operatorname)\s*\{([^{}]*)\}")
_PERCENT = re.compile(
    r"\s*(?:\\?%|\\text\s*\{\s*(?:\\?%|percent)\s*\}|percent(?![a-z]))", re.IGNORECASE
)
_FRACTION = re.compile(r"\\[dt]?frac\s*(\d)\s*(\d)")
_THOUSANDS = re.compile(r"-?\d{1,3}(?:,\d{3}|(?: \d{3}))+(?:\.\d+)?")
_APART = re.compile(r"\d \d")


def normalise(answer: str) -> str:
    """A spelling-free form: equal forms mean equal answers, unequal ones say nothing. White space
    stays between two digits alone (12 is not 1 2), a percent sign as `%`.
    """
    answer = " ".join(answer.split()).strip("$").replace("\\$", "")
    answer = _PERCENT.sub("%", answer)
    answer = _LATEX_SPACE.sub("", _GROUP_GAP.sub(",", answer))
    answer = _LATEX_TEXT.sub(r"\1", _LATEX_GAP.sub(" ", answer))
    answer = (
        _FRACTION.sub(r"\\frac{\1}{\2}", answer)
        .replace("\\dfrac", "\\frac")
        .replace("\\tfrac", "\\frac")
        .replace("^\\circ", "")
        .replace("^{\\circ}", "")
    )
    answer = re.sub(r"(?<!\d)\s+|\s+(?!\d)", "", re.sub(r"\s+", " ", answer)).rstrip(".").lower()
    if _THOUSANDS.fullmatch(answer):  # the whole answer only: (1,234) is a pair
        answer = re.sub("[, ]", "", answer)
    return answer.rstrip("0").rstrip(".") if re.fullmatch(r"-?\d+\.\d+", answer) else answer


def _score_math(responses: list[str], golds: list[str]) -> list[Verdict]:
    """Exact match first; only what differs goes to math-verify, in parallel."""
    found = [find_answer(response) for response in responses]
    verdicts = [_settle(answer, gold) for answer, gold in zip(found, golds, strict=True)]
    open_ = [i for i, verdict in enumerate(verdicts) if verdict is None]
    outcomes = verify_all([(golds[i], found[i].answer) for i in open_])
    for i, outcome in zip(open_, outcomes, strict=True):
        verdicts[i] = Verdict.of(found[i], float(outcome == "right"), "math-verify", outcome)
    return verdicts


def _settle(found: Found, gold: str) -> Verdict | None:
    """What needs no computer algebra."""
    answer = found.answer
    if answer is None:
        return Verdict(None, 0.0, 0.0, "no-answer")
    if len(answer) > LONGEST_ANSWER_CHARS:
        return Verdict.of(Found(answer[:100] + " ..", found.how), 0.0, "too-long")
    ours, golds = normalise(answer), normalise(gold)
    if ours == golds:
        return Verdict.of(found, 1.0, "exact")
    if not answer.strip():
        return Verdict.of(found, 0.0, "empty")
    if bool(_APART.search(ours)) is not bool(_APART.search(golds)):
        return Verdict.of(found, 0.0, "digits-apart")
    return None


def _score_choice(responses: list[str], golds: list[str]) -> list[Verdict]:
    """A letter A-D: boxed, or in `answer is (C)`."""
    verdicts = []
    for response, gold in zip(responses, golds, strict=True):
        found = find_answer(response)
        answer = (found.answer or "")[:LONGEST_ANSWER_CHARS]
        letter = re.match(r"\(?\s*([A-J])\b", normalise(answer).upper())
        if letter is None:
            verdicts.append(Verdict(found.answer, 0.0, 0.0, "no-answer"))
        else:
            right = float(letter.group(1) == gold)
            verdicts.append(Verdict.of(Found(letter.group(1), found.how), right, "choice"))
    return verdicts


def _score_f1(responses: list[str], golds: list[str]) -> list[Verdict]:
    """Token F1 as HotpotQA's own script computes it, on the found answer or, without one, the last
    line: the prompt asks for a short answer, not for a box.
    """
    verdicts = []
    for response, gold in zip(responses, golds, strict=True):
        found = find_answer(response)
        if found.how not in (BOXED, "answer-is"):
            last = (response.strip().splitlines() or [""])[-1]
            found = Found(last[:LONGEST_ANSWER_CHARS], "last-line")
        answer = _LATEX_TEXT.sub(r"\1", found.answer)
        verdict = Verdict.of(Found(answer, found.how), token_f1(answer, gold), "f1")
        verdicts.append(dataclasses.replace(verdict, score=verdict.score_any))
    return verdicts


def token_f1(prediction: str, gold: str) -> float:
    """F1 of the two bags of words; 0 where one is yes, no or noanswer and the other is something
    else.
    """
    a, b = _words(prediction), _words(gold)
    if a != b and any(words in (["yes"], ["no"], ["noanswer"]) for words in (a, b)):
        return 0.0
    shared = sum((Counter(a) & Counter(b)).values())
    return 2 * shared / (len(a) + len(b)) if shared else 0.0


def _words(text: str) -> list[str]:
    text = "".join(c for c in text.lower() if c not in string.punctuation)
    return re.sub(r"\b(a|an|the)\b", " ", text).split()


SCORERS = {"math": _score_math, "choice": _score_choice, "f1": _score_f1}


# --- math-verify in killable processes


def verify_all(pairs: Sequence[tuple[str, str]], time_limit_s: float = TIME_LIMIT_S) -> list[str]:
    """right | wrong | timeout | error for each (gold, prediction), from one process per core."""
    if not pairs:
        return []
    count = min(len(pairs), os.cpu_count() or 1, 8)
    idle: queue.Queue[_Verifier] = queue.Queue()
    for _ in range(count):
        idle.put(_Verifier())

    def ask(pair: tuple[str, str]) -> str:
        verifier = idle.get()
        try:
            return verifier.ask(*pair, time_limit_s)
        finally:
            idle.put(verifier)

    try:
        with ThreadPoolExecutor(count) as threads:
            return list(threads.map(ask, pairs))
    finally:
        while not idle.empty():
            idle.get().stop()


class _Verifier:
    """One `python -m abscot.evaluation.scoring`, started when it is first needed and again after it
    had to be killed.
    """

    def __init__(self):
        self.process: subprocess.Popen | None = None

    def ask(self, gold: str, prediction: str, time_limit_s: float) -> str:
        if self.process is None:
            self._start()
        try:
            self.process.stdin.write(json.dumps([gold, prediction]).encode() + b"\n")
            self.process.stdin.flush()
            line = self._line(time_limit_s)
        except BrokenPipeError:
            line = b""
        if not line:
            died = line == b""
            self.stop()
            return "error" if died else "timeout"
        return json.loads(line)

    def _start(self) -> None:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "abscot.evaluation.scoring"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment,
        )
        if self._line(START_LIMIT_S) != b'"ready"\n':
            raise RuntimeError(
                "the scoring process did not start; does `python -c 'import math_verify'` work?"
            )

    def _line(self, limit_s: float) -> bytes | None:
        """One line; b"" when the process died, None at the limit. Answers are one short write, so
        never half there.
        """
        ready, _, _ = select.select([self.process.stdout], [], [], limit_s)
        return self.process.stdout.readline() if ready else None

    def stop(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.communicate()
            self.process = None


def _serve() -> None:
    """The loop of a scoring process."""
    from math_verify import parse, verify

    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_LIMIT_BYTES, MEMORY_LIMIT_BYTES))
    _say("ready")
    for line in sys.stdin:
        gold, prediction = json.loads(line)
        try:
            right = verify(parse(_as_latex(gold)), parse(_as_latex(prediction)))
            _say("right" if right else "wrong")
        # A parser fed with anything a model may write: whatever it raises, the answer is
        # unverified.
        except Exception:
            _say("error")


def _say(word: str) -> None:
    sys.stdout.write(json.dumps(word) + "\n")
    sys.stdout.flush()


def _as_latex(answer: str) -> str:
    """math-verify looks for LaTeX in text: plain text needs the dollars, and percents a sign."""
    answer = _PERCENT.sub(r"\\%", answer.strip())
    if answer.startswith("$") and answer.endswith("$") and len(answer) > 1:
        return answer
    return f"${answer}$"


if __name__ == "__main__":
    _serve()
