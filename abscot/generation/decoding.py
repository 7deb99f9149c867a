r"""The rules of abstract decoding, told by the tokens of a sequence alone.

    prompt <begin> z1 z2 .. zm <end> \n answer
                  |  codes      |  |  |  free, without abstract tokens
                  m_min         end, newline: forced

A sequence stands under these rules if its prompt ends in `<beginabstract>`, or in one and a
beginning of what may follow. So a request may also go on from a trace that somebody edited.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from abscot.method.sequence import ANSWER_OPENING
from abscot.method.vocab import BEGIN, AbstractVocab, codebook_size_of
from abscot.method.vocab import END as END_OF_TRACE
from abscot.recipe.schema import TraceConfig

# The processor of vLLM, as vLLM names it.
ABSTRACT_DECODING = "abscot.generation.abstract_decoding:AbstractDecoding"
CODEBOOK_SIZE = "abscot_codebook_size"  # a key of vLLM's additional_config

# What may be sampled next. NEWLINE + j: the j-th token of ANSWER_OPENING; behind them, the answer.
FREE, CODES, CODES_OR_END, END, NEWLINE = range(5)


@dataclass(frozen=True)
class RequestRules:
    """How one request is decoded. m_min, m_max: codebook tokens. A temperature of None: that of the
    request; 0: greedy.
    """

    m_min: int = TraceConfig.m_min
    m_max: int = TraceConfig.m_max
    trace_temperature: float | None = None
    answer_temperature: float | None = None


class Begun(NamedTuple):
    """tokens: behind `<beginabstract>`, from the prompt. end_at: where `<endabstract>` is among
    those behind `<beginabstract>`, -1 while there is none.
    """

    tokens: int
    end_at: int


@dataclass(frozen=True)
class TraceTokens:
    """The token ids that the rules speak of. newline: those of ANSWER_OPENING."""

    vocab: AbstractVocab
    newline: tuple[int, ...]

    @classmethod
    def of(cls, tokenizer, codebook_size: int | None = None) -> "TraceTokens | None":
        """codebook_size: so many of the tokenizer's tokens, the first ones; None: all. None where
        the tokenizer has no abstract tokens.
        """
        size = codebook_size_of(tokenizer)
        if not size or not {BEGIN, END_OF_TRACE} <= tokenizer.get_vocab().keys():
            return None
        vocab = AbstractVocab.of(tokenizer, min(size, codebook_size or size))
        return cls(vocab, tuple(tokenizer.encode(ANSWER_OPENING, add_special_tokens=False)))

    def begun(self, prompt: Sequence[int]) -> Begun | None:
        """Where a prompt stands; None: under no rules."""
        codes, vocab, behind = set(self.vocab.codebook_ids), self.vocab, []
        for token in reversed(prompt):
            if token == vocab.begin_id:
                break
            if token not in codes and token != vocab.end_id and token not in self.newline:
                return None
            behind.append(token)
        else:
            return None
        behind.reverse()
        end_at = behind.index(vocab.end_id) if vocab.end_id in behind else -1
        trace, rest = (behind, ()) if end_at < 0 else (behind[:end_at], behind[end_at + 1 :])
        if not set(trace) <= codes or tuple(rest) != self.newline[: len(rest)]:
            return None
        return Begun(len(behind), end_at)


class Rules:
    """The rules on a device, for a whole batch at a time.

    A step: `kinds` of its rows, then `edit` its logits. Neither waits for the device.
    """

    def __init__(self, tokens: TraceTokens, device):
        import torch

        vocab, self.newlines = tokens.vocab, len(tokens.newline)
        self.end_id = vocab.end_id
        self.answer = NEWLINE + self.newlines
        ids = list(
            dict.fromkeys([*vocab.codebook_ids, vocab.end_id, vocab.begin_id, *tokens.newline])
        )
        codes, end = set(vocab.codebook_ids), {vocab.end_id}
        allowed = {FREE: set(ids), CODES: codes, CODES_OR_END: codes | end, END: end}
        allowed |= {NEWLINE + j: {token} for j, token in enumerate(tokens.newline)}
        allowed[self.answer] = set(ids) - codes - end - {vocab.begin_id}
        table = [[token in allowed[kind] for token in ids] for kind in range(self.answer + 1)]
        self.ids = torch.tensor(ids, device=device)
        self.allowed = torch.tensor(table, device=device)  # bool [kinds, ids]
        closed = [kind not in (FREE, self.answer) for kind in range(self.answer + 1)]
        self.closed = torch.tensor(closed, device=device)  # all other tokens are barred
        forced = [END <= kind < self.answer for kind in range(self.answer + 1)]
        self.forced = torch.tensor(forced, device=device)

    def kinds(self, tokens, end_at, m_min, m_max):
        """int64 [rows], where a trace was begun: what may be sampled next. All int64 [rows].
        tokens: behind `<beginabstract>`; end_at: which of them is `<endabstract>`, -1: none.
        """
        import torch

        trace = torch.where(tokens < m_min, CODES, torch.where(tokens < m_max, CODES_OR_END, END))
        behind = (NEWLINE + tokens - end_at - 1).clamp(max=self.answer)
        return torch.where(end_at < 0, trace, behind)

    def end_at(self, ids, rows, begin, tokens, m_max: int):
        """int64 [rows]: which token behind `<beginabstract>` is the first `<endabstract>`; -1: none
        so far. ids: int [any, columns], of which `rows` (int64 [rows]) are looked at; begin: int64
        [rows], the column of `<beginabstract>`; tokens: int64 [rows], so many stand behind it;
        m_max: the largest of the rows.
        """
        import torch

        at = torch.arange(m_max + 1, device=ids.device)
        columns = (begin[:, None] + 1 + at).clamp(0, ids.shape[1] - 1)
        is_end = (ids[rows[:, None], columns] == self.end_id) & (at < tokens[:, None])
        return torch.where(is_end.any(1), is_end.int().argmax(1), -1)

    def edit(self, logits, kinds, scale=None, greedy=None):
        """fp32 [rows, vocabulary], in place. kinds: int64 [rows]. scale: fp32 [rows], multiplies;
        greedy: bool [rows], leaves the most probable token alone.
        """
        import torch

        kept = logits[:, self.ids].masked_fill(~self.allowed[kinds], -torch.inf)
        # Whatever else bars it: a token that must come has a probability.
        must = self.forced[kinds][:, None] & self.allowed[kinds]
        closed = self.closed[kinds]
        if logits.is_cpu:  # which rows is known at once, and the others need no pass
            logits.index_fill_(0, closed.nonzero()[:, 0], -torch.inf)
        else:
            logits.masked_fill_(closed[:, None], -torch.inf)
        logits[:, self.ids] = kept.masked_fill(must, 0.0)
        if scale is not None:
            logits.mul_(scale[:, None])
        if greedy is not None:
            best = logits.argmax(-1, keepdim=True)
            logits.masked_fill_(greedy[:, None], -torch.inf)
            logits.scatter_(1, best, logits.gather(1, best).masked_fill(greedy[:, None], 0.0))
        return logits


def request_temperature(trace: float, answer: float) -> tuple[float, dict[str, float]]:
    """(the temperature of a request, its arguments) by which both stages have theirs. A trace that
    is sampled has the request's own, so that the sampler sees its logits as they are.
    """
    temperature = trace or answer
    if not temperature:
        return 0.0, {}
    return temperature, {"trace_temperature": trace, "answer_temperature": answer}


def stage_temperature(request: float, stage: float | None) -> tuple[float, bool]:
    """(by what the logits are multiplied so that a sampler with the request's temperature has that
    of the stage, whether the stage is greedy). A greedy request is greedy in both stages.
    """
    if not request or stage is None:
        return 1.0, False
    return (request / stage, False) if stage else (1.0, True)
