"""What counts as right: the answer in a response, and its comparison with the gold answer.

Most answers are settled by comparing normalised strings. The rest goes to math-verify, which parses
LaTeX and asks a computer algebra system: that can hang or take all memory, so it runs in processes
of its own with limits, killed at the deadline. `python -m abscot.evaluation.scoring` is such a
process: a JSON line in, a JSON line out.
"""

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

from abscot.recipe.load import ROOT

TIME_LIMIT_S = 5.0  # of one comparison, after the process has started
START_LIMIT_S = 60.0
MEMORY_LIMIT_BYTES = 4 << 30
LONGEST_ANSWER_CHARS = 2000  # longer predictions are wrong without being parsed


@dataclass(frozen=True)
class Verdict:
    """score: 0..1, None where only a judge can tell. scorer: how the answer was found and
    compared.
    """

    prediction: str | None
    score: float | None
    scorer: str


def score_all(scorer: str, responses: Sequence[str], golds: Sequence[str]) -> list[Verdict]:
    """One verdict per response; never raises for what a response holds, never hangs."""
    return SCORERS[scorer](list(responses), list(golds))


# --- finding the answer

_ANSWER_IS = re.compile(r"(?:final answer|answer)\s*(?:is|:|=)\s*(.+)", re.IGNORECASE)
_NUMBER = re.compile(r"-?\$?\d[\d,]*(?:\.\d+)?(?:/\d+)?")


def find_answer(response: str) -> tuple[str | None, str]:
    """(answer, how it was found): the last \\boxed{}, else a fallback that is named, else (None,
    "none").
    """
    if (boxed := last_boxed(response)) is not None:
        return boxed, "boxed"
    if "####" in response:
        return response.rpartition("####")[2].strip().partition("\n")[0], "####"
    if said := _ANSWER_IS.findall(response[-LONGEST_ANSWER_CHARS:]):
        return said[-1].strip().rstrip("."), "answer-is"
    if numbers := _NUMBER.findall(response[-LONGEST_ANSWER_CHARS:]):
        return numbers[-1], "last-number"
    return None, "none"


def last_boxed(text: str) -> str | None:
    """The inside of the last \\boxed{..} whose braces close (\\fbox and `\\boxed 5` too); None if
    there is none.
    """
    best = None
    for match in re.finditer(r"\\(?:boxed|fbox)\s*", text):
        inside = _group(text, match.end())
        if inside is not None:
            best = inside
    return best


def _group(text: str, start: int) -> str | None:
    """The braced group at `start`, or the bare token there."""
    if start >= len(text):
        return None
    if text[start] != "{":
        bare = re.match(r"[^\s$.,\\{}]+", text[start:])
        return bare.group() if bare else None
    depth = 0
    for i in range(start, len(text)):
        if text[i] in "{}" and text[i - 1] != "\\":
            depth += 1 if text[i] == "{" else -1
            if depth == 0:
                return text[start + 1 : i].strip()
    return None


# --- comparing

_LATEX_SPACE = re.compile(r"\\(?:left|right|displaystyle|limits)\b|\\[!,;: ]|~|\\(?:quad|qquad)\b")
_LATEX_TEXT = re.compile(r"\\(?:text|textbf|textit|mathrm|mbox|operatorname)\s*\{([^{}]*)\}")
_THOUSANDS = re.compile(r"-?\d{1,3}(?:,\d{3})+(?:\.\d+)?")


def normalise(answer: str) -> str:
    """A spelling-free form: equal forms mean equal answers, unequal ones say nothing."""
    answer = answer.strip().strip("$").replace("\\$", "").replace("\\%", "").replace("%", "")
    answer = _LATEX_TEXT.sub(r"\1", _LATEX_SPACE.sub("", answer))
    answer = (
        answer.replace("\\dfrac", "\\frac")
        .replace("\\tfrac", "\\frac")
        .replace("^\\circ", "")
        .replace("^{\\circ}", "")
    )
    answer = re.sub(r"\s+", "", answer.replace("{,}", ",")).rstrip(".").lower()
    if _THOUSANDS.fullmatch(answer):  # the whole answer only: (1,234) is a pair
        answer = answer.replace(",", "")
    return answer.rstrip("0").rstrip(".") if re.fullmatch(r"-?\d+\.\d+", answer) else answer


def _score_math(responses: list[str], golds: list[str]) -> list[Verdict]:
    """Exact match first; only what differs goes to math-verify, in parallel."""
    found = [find_answer(response) for response in responses]
    verdicts: list[Verdict | None] = [
        _settle(answer, how, gold) for (answer, how), gold in zip(found, golds, strict=True)
    ]
    open_ = [i for i, verdict in enumerate(verdicts) if verdict is None]
    for i, outcome in zip(open_, verify_all([(golds[i], found[i][0]) for i in open_]), strict=True):
        answer, how = found[i]
        verdicts[i] = Verdict(
            answer, float(outcome == "right"), _named(how, "math-verify", outcome)
        )
    return verdicts


def _settle(answer: str | None, how: str, gold: str) -> Verdict | None:
    """What needs no computer algebra."""
    if answer is None:
        return Verdict(None, 0.0, "no-answer")
    if len(answer) > LONGEST_ANSWER_CHARS:
        return Verdict(answer[:100] + " ..", 0.0, _named(how, "too-long"))
    if normalise(answer) == normalise(gold):
        return Verdict(answer, 1.0, _named(how, "exact"))
    if not answer.strip():
        return Verdict(answer, 0.0, _named(how, "empty"))
    return None


def _named(how: str, comparison: str, outcome: str = "") -> str:
    """E.g. `exact`, `math-verify`, `last-number+math-verify:timeout`: fallbacks and failures stand
    in the results.
    """
    name = comparison if how == "boxed" else f"{how}+{comparison}"
    return name if outcome in ("", "right", "wrong") else f"{name}:{outcome}"


def _score_choice(responses: list[str], golds: list[str]) -> list[Verdict]:
    """A letter A-D: boxed, or in `answer is (C)`."""
    verdicts = []
    for response, gold in zip(responses, golds, strict=True):
        answer, how = find_answer(response)
        letter = re.match(r"\(?\s*([A-J])\b", normalise(answer or "").upper())
        if letter is None:
            verdicts.append(Verdict(answer, 0.0, "no-answer"))
        else:
            verdicts.append(
                Verdict(letter.group(1), float(letter.group(1) == gold), _named(how, "choice"))
            )
    return verdicts


def _score_f1(responses: list[str], golds: list[str]) -> list[Verdict]:
    """Token F1 as HotpotQA's own script computes it, on the found answer or, without one, the last
    line.
    """
    verdicts = []
    for response, gold in zip(responses, golds, strict=True):
        answer, how = find_answer(response)
        if how not in ("boxed", "answer-is"):
            answer, how = (
                (response.strip().splitlines() or [""])[-1][:LONGEST_ANSWER_CHARS],
                "last-line",
            )
        answer = _LATEX_TEXT.sub(r"\1", answer)
        verdicts.append(Verdict(answer, token_f1(answer, gold), _named(how, "f1")))
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
    """math-verify looks for LaTeX in text: plain text needs the dollars."""
    answer = answer.strip()
    return (
        answer
        if answer.startswith("$") and answer.endswith("$") and len(answer) > 1
        else f"${answer}$"
    )


if __name__ == "__main__":
    _serve()
