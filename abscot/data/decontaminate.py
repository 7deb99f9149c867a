"""Does a prompt contain an evaluation problem? Exact after normalising, or by shared word
5-grams.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable

WORDS = 5


def words_of(text: str) -> list[str]:
    """Lower-case words and numbers; punctuation, markup and white space do not count."""
    return re.findall(r"\w+", text.lower())


def ngrams(words: list[str]) -> set[tuple[str, ...]]:
    return {tuple(words[i : i + WORDS]) for i in range(len(words) - WORDS + 1)}


class Decontaminator:
    """The evaluation problems as an index of their word 5-grams.

    A text overlaps a problem when it equals it after normalising, or holds at least the share
    `max_overlap` of the problem's different 5-grams: containment, so that a problem wrapped in
    instructions is found too. Problems of fewer than 5 words can only match exactly.
    """

    def __init__(self, problems: Iterable[str], max_overlap: float):
        self.max_overlap = max_overlap
        self.exact: dict[str, str] = {}
        self._sizes: list[int] = []
        self._problems: list[str] = []
        self._index: dict[tuple[str, ...], list[int]] = defaultdict(list)
        for problem in problems:
            self._add(problem)

    def _add(self, problem: str) -> None:
        words = words_of(problem)
        normal = " ".join(words)
        if not words or normal in self.exact:
            return
        self.exact[normal] = problem
        grams = ngrams(words)
        for gram in grams:
            self._index[gram].append(len(self._problems))
        self._problems.append(problem)
        self._sizes.append(len(grams))

    def overlap(self, texts: list[str]) -> str:
        """What overlaps, as one line for the list of rejected rows; empty where nothing does."""
        for text in texts if self.exact else ():
            words = words_of(text)
            if " ".join(words) in self.exact:
                return f"equals: {_short(text)}"
            shared = Counter(
                i for gram in ngrams(words) & self._index.keys() for i in self._index[gram]
            )
            worst = max(shared, key=lambda i: (shared[i] / self._sizes[i], -i), default=None)
            if worst is not None and shared[worst] >= self.max_overlap * self._sizes[worst]:
                found = f"{shared[worst]} of {self._sizes[worst]} word {WORDS}-grams"
                return f"{found} of: {_short(self._problems[worst])}"
        return ""


def _short(text: str) -> str:
    return " ".join(text.split())[:80]
