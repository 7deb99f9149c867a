"""The tokens of an answer, one by one -> pieces of text that a reader can be shown at once."""

from typing import NamedTuple

from abscot.evaluation.modes import MODES, Asker

TRACE, THOUGHT, ANSWER = "trace", "thought", "answer"
_BROKEN = "Invalid prefix encountered"  # tokenizers, of bytes that are no text


class Piece(NamedTuple):
    """kind: TRACE (text is one codebook token), THOUGHT or ANSWER."""

    kind: str
    text: str


class GrowingText:
    """A text out of its tokens: a character appears when its last byte is there, and the blanks at
    both ends are left out, as in `Asker.answer`.
    """

    def __init__(self, tokenizer):
        self.text, self._blanks = "", ""
        self._backend = tokenizer.backend_tokenizer
        self._begin()

    def _begin(self) -> None:
        from tokenizers.decoders import DecodeStream

        self._stream = DecodeStream(skip_special_tokens=False)

    def step(self, token: int) -> str:
        """What can be shown now that could not before."""
        new = self._blanks + (self._decoded(token) or "")
        if not self.text:
            new = new.lstrip()
        shown = new.rstrip()
        self._blanks = new[len(shown) :]
        self.text += shown
        return shown

    def _decoded(self, token: int) -> str | None:
        try:
            return self._stream.step(self._backend, token)
        except Exception as error:  # a plain Exception: tokenizers has no type of its own for it
            if not str(error).startswith(_BROKEN):
                raise
            self._begin()
            return self._stream.step(self._backend, token)

    def rest(self, whole: str) -> str:
        """What of the finished text was not shown: bytes of a character that was cut off."""
        return whole[len(self.text) :] if whole.startswith(self.text) else ""


class Pieces:
    """Reads one answer in `mode`. Delimiters, `<think>` and the end of the turn are not shown."""

    def __init__(self, asker: Asker, mode: str):
        self.mode, self.tokenizer, self.stop_ids = MODES[mode], asker.tokenizer, asker.stop_ids
        self.codes = set(asker.vocab.codebook_ids) if asker.vocab else set()
        self._open_id, self._close_id = (
            self.tokenizer.convert_tokens_to_ids(["<think>", "</think>"])
            if self.mode.thinking
            else (None, None)
        )
        self.kind, self._text, self._first = ANSWER, GrowingText(self.tokenizer), True

    def step(self, stage: int, token: int) -> Piece | None:
        """None: nothing to show yet."""
        if self.mode.trace and stage == 0:
            name = self.tokenizer.convert_ids_to_tokens(token)
            return Piece(TRACE, name) if token in self.codes else None
        first, self._first = self._first, False
        if token in self.stop_ids:
            return None
        if self.mode.thinking and (token == self._close_id or (first and token == self._open_id)):
            self.kind = ANSWER if token == self._close_id else THOUGHT
            self._text = GrowingText(self.tokenizer)
            return None
        text = self._text.step(token)
        return Piece(self.kind, text) if text else None

    def rest(self, response: str) -> Piece | None:
        """What of the finished response is still to be shown."""
        text = self._text.rest(response) if self.kind == ANSWER else ""
        return Piece(ANSWER, text) if text else None
