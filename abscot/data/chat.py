r"""Text and chat turns -> token ids, such that no text can spell a control token.

Text that says `<|im_end|>` or `<TOKEN_A>` is data: it is split into ordinary tokens. Only what the
chat template itself writes around the text becomes a control token. So the template is rendered
once for each sequence of roles with marks in the place of the text; what stands between the marks
is the template's own, and is cut at its control tokens:

    system, user -> <|im_start|> "system\n{0}" <|im_end|> "\n" <|im_start|> "user\n{1}" ..

Each run between two control tokens is tokenised in one piece by a copy of the tokenizer that knows
no added tokens, so for text without control tokens the ids are those of
`apply_chat_template(tokenize=True)`.
"""

import functools
import json
import re

import numpy as np

from abscot.common.errors import UserError
from abscot.method.sequence import ANSWER_OPENING

MARK = "\ue000{}\ue001"  # private-use characters: no template looks for them
MARKS = re.compile("\ue000(\\d+)\ue001")
STEP_END = re.compile(r"\n(?:[^\S\n]*\n)*")


class ChatTokenizer:
    """Wraps a (fast) Hugging Face tokenizer. All ids are np.int32.

    turn_end_id: ends Y. think_open, think_close: `<think>\n` and `\n</think>\n`, around a CoT in
    words. no_think_suffix: what the template adds to a prompt when thinking is off (the last tokens
    of every X).
    """

    def __init__(self, tokenizer):
        if not tokenizer.is_fast:
            raise UserError(f"{tokenizer.name_or_path}: needs a fast tokenizer (tokenizer.json)")
        if tokenizer.chat_template is None:
            raise UserError(
                f"{tokenizer.name_or_path}: its tokenizer has no chat template; use an instruct "
                "model's"
            )
        self.tokenizer = tokenizer
        self.control_ids = {
            str(token): id_ for id_, token in tokenizer.added_tokens_decoder.items()
        }
        self._control = np.array(sorted(set(self.control_ids.values()) - {tokenizer.unk_token_id}))
        self._plain = without_added_tokens(tokenizer.backend_tokenizer, set(self.control_ids))
        pattern = "|".join(re.escape(t) for t in sorted(self.control_ids, key=len, reverse=True))
        self._split = re.compile(f"({pattern})" if pattern else r"(?!)")
        self.turn_end_id = self.control_ids.get("<|im_end|>", tokenizer.eos_token_id)
        self.think_open = self._template_text("<think>\n")
        self.think_close = self._template_text("\n</think>\n")
        self.no_think_suffix = self._no_think_suffix()

    def prompts(self, conversations: list[list[dict[str, str]]]) -> list[np.ndarray | None]:
        """X of each conversation: generation prompt, thinking off. None where the template refuses
        them.
        """
        rows = [self._fill(turns) for turns in conversations]
        texts = dict.fromkeys(part for row in rows if row for part in row if isinstance(part, str))
        # What repeats, e.g. system prompts: once.
        ids = dict(zip(texts, self.encode(list(texts)), strict=True))
        return [
            row and _join(ids[part] if isinstance(part, str) else part for part in row)
            for row in rows
        ]

    def prompt(self, turns: list[dict[str, str]]) -> np.ndarray:
        """X of one conversation. Raises UserError where the template refuses its turns."""
        prompt = self.prompts([turns])[0]
        if prompt is None:
            roles = ", ".join(turn["role"] for turn in turns)
            raise UserError(
                f"{self.tokenizer.name_or_path}: its chat template refuses the turns {roles}; "
                "data.system_prompt=null leaves the system's out"
            )
        return prompt

    def encode(self, texts: list[str]) -> list[np.ndarray]:
        """Ids of plain text."""
        return [
            self._checked(e.ids)
            for e in self._plain.encode_batch_fast(texts, add_special_tokens=False)
        ]

    def answers(self, texts: list[str]) -> list[np.ndarray]:
        """Y: a newline, the answer, the end of the turn."""
        end = np.array([self.turn_end_id], np.int32)
        return [
            np.concatenate([ids, end])
            for ids in self.encode([ANSWER_OPENING + text for text in texts])
        ]

    def cots(self, texts: list[str]) -> list[tuple[np.ndarray, np.ndarray]]:
        """(C, length of each step) of each CoT; the lengths are above 0 and sum up to len(C).

        C is tokenised whole. A step is a line with the newlines and blank lines behind it; a token
        belongs to the step in which its first character stands.
        """
        encoded = self._plain.encode_batch(texts, add_special_tokens=False)
        return [
            (self._checked(e.ids), _step_lengths(text, e.offsets))
            for text, e in zip(texts, encoded, strict=True)
        ]

    def _checked(self, ids: list[int]) -> np.ndarray:
        ids = np.array(ids, np.int32)
        suspect = ids[ids >= self._control[0]] if len(self._control) else ids[:0]
        assert not (suspect.size and np.isin(suspect, self._control).any()), (
            "a control token out of plain text"
        )
        return ids

    def _fill(self, turns: list[dict[str, str]]) -> list[str | np.ndarray] | None:
        """The template's parts for these turns: control ids, and runs of text with the turns' put
        in.
        """
        template = self._template(tuple(turn["role"] for turn in turns), False)
        if template is None:
            return None
        return [
            part
            if isinstance(part, np.ndarray)
            else MARKS.sub(lambda m: turns[int(m[1])]["content"], part)
            for part in template
        ]

    @functools.lru_cache(maxsize=4096)  # noqa: B019  one instance per process; roles repeat
    def _template(
        self, roles: tuple[str, ...], thinking: bool
    ) -> tuple[str | np.ndarray, ...] | None:
        import jinja2

        turns = [{"role": role, "content": MARK.format(i)} for i, role in enumerate(roles)]
        try:
            text = self.tokenizer.apply_chat_template(
                turns,
                tokenize=False,
                add_generation_prompt=True,
                enable_thinking=thinking,
                abstract=False,  # an exported model's template would open a trace
            )
        except jinja2.TemplateError:  # e.g. roles must alternate
            return None
        if [int(m) for m in MARKS.findall(text)] != list(range(len(roles))):
            return None  # a template that leaves out or repeats a turn
        return tuple(self._controls(text))

    def _controls(self, text: str) -> list[str | np.ndarray]:
        parts = [part for part in self._split.split(text) if part]
        return [
            np.array([self.control_ids[p]], np.int32) if p in self.control_ids else p for p in parts
        ]

    def _template_text(self, text: str) -> np.ndarray:
        """Ids of text that is the template's own: its control tokens count."""
        return _join(
            self.encode([part])[0] if isinstance(part, str) else part
            for part in self._controls(text)
        )

    def _no_think_suffix(self) -> np.ndarray:
        off, on = (self._template(("user",), thinking) for thinking in (False, True))
        if off is None:
            raise UserError(
                f"{self.tokenizer.name_or_path}: its chat template refuses a single user turn"
            )
        off, on = (
            _join(p if isinstance(p, np.ndarray) else self.encode([p])[0] for p in t)
            for t in (off, on)
        )
        if len(on) > len(off) or not np.array_equal(off[: len(on)], on):
            raise UserError(
                f"{self.tokenizer.name_or_path}: its chat template with enable_thinking=False must "
                "be that of True and something behind it"
            )
        return off[len(on) :]


def without_added_tokens(backend, controls: set[str]):
    """A copy of a tokenizers.Tokenizer that finds no added token; `controls` leave its
    vocabulary.
    """
    import tokenizers

    tree = json.loads(backend.to_str())
    tree.update(added_tokens=[], post_processor=None, truncation=None, padding=None)
    model = tree["model"]
    if isinstance(model["vocab"], dict):
        keep = model.get("unk_token")
        model["vocab"] = {t: i for t, i in model["vocab"].items() if t == keep or t not in controls}
    return tokenizers.Tokenizer.from_str(json.dumps(tree))


def _step_lengths(text: str, offsets: list[tuple[int, int]]) -> np.ndarray:
    starts = np.fromiter((start for start, _ in offsets), np.int64, len(offsets))
    ends = [m.end() for m in STEP_END.finditer(text)]
    bounds = (
        np.searchsorted(np.maximum.accumulate(starts), [*ends, len(text) + 1])
        if len(starts)
        else np.zeros(0, np.int64)
    )
    lengths = np.diff(bounds, prepend=0)
    return lengths[lengths > 0].astype(np.int32)


def _join(parts) -> np.ndarray:
    return np.concatenate([np.zeros(0, np.int32), *parts])
