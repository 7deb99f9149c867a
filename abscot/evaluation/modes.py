"""The evaluation modes: problems -> requests, completions -> what a result row says.

    mode                  tokens behind X, and what the mode measures
    verbal                free decoding, thinking off: CoT in words and answer are one text, all of
                          which counts as response: the published verbal baseline
    thinking              free decoding in the thinking template: a thought, then the answer
    no_cot                free decoding, thinking off: of a model that answers at once. X is that of
                          `verbal`; name and limit differ, for what the model does with it differs
    abstract              <beginabstract> z <endabstract> \\n, then free; z from V_abs: the method
    abstract_permuted     the same z, shuffled: does the order of z matter? (paper table 6)
    abstract_swapped      the z that the same model makes for another problem: does z matter at all?
    abstract_truncated_k  the first k tokens of the same z: how much of z is needed? (paper table 5)
    pause                 m_max pause tokens in place of z: is it only the extra positions?
    channel               gold CoT, z sampled in its sight, then free with the CoT hidden from the
                          answer: what phase A's answers really get, C -> H_Z -> Y

Behind a trace no answer has abstract tokens. How traces and answers are decoded, how long each may
be, is the recipe's section `eval`, apart from what makes the traces that are trained on. `channel`
alone is phase A's situation on problems that it was not trained on: z as phase A's model itself
samples it by the section `traces`, the answer decoded greedily behind the bottleneck. vLLM has no
such mask: transformers does it.

In `abstract_swapped` the first stage is that of the other problem, the second one the answer to
this problem behind that trace. The problems of a benchmark form a ring, in which each hands its
trace to the one before it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from abscot.common.draws import keyed_seed, rng
from abscot.common.errors import UserError
from abscot.data.chat import ChatTokenizer
from abscot.evaluation.benchmarks import Problem
from abscot.evaluation.results import Answer
from abscot.generation.requests import (
    Completion,
    HiddenSpan,
    Request,
    Sampling,
    answered_request,
    codebook_tokens_of,
    trace_request,
)
from abscot.method.sequence import (
    ANSWER_OPENING,
    answer_prompt,
    fit_prompt,
    pause_trace,
    trace_prompt,
    z_tokens,
)
from abscot.method.vocab import AbstractVocab, load_tokenizer, missing_tokens
from abscot.recipe.schema import EvalConfig, Recipe, TraceConfig

TRUNCATIONS = (32, 48, 64)
CHANNEL = "channel"


@dataclass(frozen=True)
class Mode:
    """thinking: the template's switch. trace: where Z comes from; swapped: it is another problem's;
    edit: what is done to it before the answer.
    """

    thinking: bool = False
    trace: str | None = None  # model | pause | None
    swapped: bool = False
    edit: Callable[[list[int], np.random.Generator], list[int]] | None = None
    cot: bool = False  # the gold CoT stands before the trace, and the answer cannot see it


def _permute(trace: list[int], draw: np.random.Generator) -> list[int]:
    return [trace[i] for i in draw.permutation(len(trace))]


def _truncate(k: int) -> Callable[[list[int], np.random.Generator], list[int]]:
    return lambda trace, draw: trace[:k]


MODES = {
    "verbal": Mode(),
    "thinking": Mode(thinking=True),
    "no_cot": Mode(),
    "abstract": Mode(trace="model"),
    "abstract_permuted": Mode(trace="model", edit=_permute),
    "abstract_swapped": Mode(trace="model", swapped=True),
    **{f"abstract_truncated_{k}": Mode(trace="model", edit=_truncate(k)) for k in TRUNCATIONS},
    "pause": Mode(trace="pause"),
    CHANNEL: Mode(trace="model", cot=True),
}


def answer_tokens(config: EvalConfig, mode: str) -> int:
    """The most tokens of what is neither a trace nor a thought."""
    return config.mode_answer_tokens.get(mode, config.max_answer_tokens)


def reasoning_tokens(config: EvalConfig, mode: str) -> int:
    """The most tokens of a thought; 0 in modes without one."""
    return config.max_reasoning_tokens if MODES[mode].thinking else 0


def trace_rules(recipe: Recipe, mode: str) -> TraceConfig:
    """How the traces of a mode are sampled."""
    config, traces = recipe.eval, recipe.traces
    if MODES[mode].cot:
        return traces
    return TraceConfig(
        m_min=traces.m_min if config.m_min is None else config.m_min,
        m_max=traces.m_max if config.m_max is None else config.m_max,
        temperature=config.trace_temperature,
        top_p=config.trace_top_p,
    )


@dataclass(frozen=True)
class Question:
    """One answer to get: a problem, the mode it is asked in, and which of the k samples it is.

    other: the problem whose trace the answer sees, in modes that swap traces.
    """

    problem: Problem
    mode: str
    sample: int
    other: Problem | None = None


def questions_of(
    problems: list[Problem], mode: str, samples: Sequence[int], key: tuple
) -> list[Question]:
    """All samples of each problem, in the order of the problems. key: (seed, benchmark), which with
    the problems decides whose trace each one gets where traces are swapped.

    Raises UserError where there is no other problem to swap with.
    """
    others = [None] * len(problems)
    if MODES[mode].swapped:
        if len(problems) == 1:
            raise UserError(
                f"eval.modes: {mode} gives each problem the trace of another; {key[-1]} has 1 "
                "problem: expected 2 or more (eval.limit, eval.files)"
            )
        others = [problems[i] for i in _ring(len(problems), key)]
    return [
        Question(problem, mode, sample, other)
        for problem, other in zip(problems, others, strict=True)
        for sample in samples
    ]


def _ring(count: int, key: tuple) -> list[int]:
    """For each of `count` places the next one of a ring through all of them in a drawn order: no
    place is its own next one, and each is the next one once.
    """
    order = rng("swapped", *key).permutation(count)
    following = np.empty(count, np.int64)
    following[order] = np.roll(order, -1)
    return following.tolist()


def _in_one(mode: Mode, rules: TraceConfig, answer: Sampling) -> bool:
    """Whether trace and answer are one decode. It has one top_p, and samples in both if in one:
    before a greedy answer that costs more than a second request.
    """
    same = rules.top_p == answer.top_p and bool(rules.temperature) == bool(answer.temperature)
    return same and not mode.swapped and mode.edit is None


class Asker:
    """Asks one model's engine. Raises UserError where the engine's window cannot hold what a mode
    generates.
    """

    def __init__(self, model: Path, recipe: Recipe, modes: list[str], engine):
        self.recipe, self.engine = recipe, engine
        self.tokenizer = load_tokenizer(model, recipe.model.trust_remote_code)
        self.chat = ChatTokenizer(self.tokenizer)
        self.vocab, size = None, recipe.codebook_size
        # A model from elsewhere may lack the tokens where no mode writes them.
        if any(MODES[mode].trace for mode in modes) or not missing_tokens(self.tokenizer, size):
            self.vocab = AbstractVocab.of(self.tokenizer, size)
        self.abstract_ids = set(self.vocab.allowed_ids) if self.vocab else set()
        self.newline = self.chat.encode([ANSWER_OPENING])[0].tolist()
        # A base model's end of text may differ from its template's end of turn: both end an answer.
        self.stop_ids = tuple({self.chat.turn_end_id, self.tokenizer.eos_token_id} - {None})
        for mode in modes:
            if self.room(mode) < 1:
                raise UserError(
                    f"eval.modes: {mode} leaves no room for a prompt in the window of "
                    f"{engine.window_tokens} tokens (inference.max_model_len_tokens, or the "
                    f"model's own); lower {self._limits(mode)}"
                )

    def room(self, mode: str) -> int:
        """Tokens that X may have; a longer prompt loses its middle."""
        config = self.recipe.eval
        behind = reasoning_tokens(config, mode) + answer_tokens(config, mode)
        if MODES[mode].trace:
            behind += z_tokens(trace_rules(self.recipe, mode).m_max) + len(self.newline)
        return self.engine.window_tokens - behind

    def _limits(self, mode: str) -> str:
        """The keys that say how long a text may be."""
        own = mode in self.recipe.eval.mode_answer_tokens
        answer = f"eval.mode_answer_tokens.{mode}" if own else "eval.max_answer_tokens"
        return f"eval.max_reasoning_tokens or {answer}" if MODES[mode].thinking else answer

    def prompt(self, problem: Problem, mode: str) -> list[int]:
        """X as in training; with thinking on, without the suffix that turns it off."""
        system = self.recipe.data.system_prompt
        turns = [{"role": "system", "content": system}] if system else []
        x = self.chat.prompt([*turns, {"role": "user", "content": problem.problem}])
        if MODES[mode].thinking:
            x = x[: len(x) - len(self.chat.no_think_suffix)]
        return x.tolist()

    def request(self, question: Question) -> Request:
        """Trace and answer in one request; in two where the trace is edited between them."""
        mode, config = MODES[question.mode], self.recipe.eval
        if mode.cot:
            return self._behind_the_bottleneck(question)
        x = self._fitted(question.problem, question.mode)
        free = Sampling(
            max_tokens=reasoning_tokens(config, question.mode)
            + answer_tokens(config, question.mode),
            temperature=config.answer_temperature,
            top_p=config.answer_top_p,
            stop_ids=self.stop_ids,
            seed=self._seed(question.problem, question.sample),
        )
        if mode.trace is None:
            return Request(x, free)

        def answer_stage(*completions: Completion) -> Request:
            trace = self.trace(question, completions)
            return Request(answer_prompt(self.vocab, self.newline, x, trace), free)

        if mode.trace == "pause":
            return answer_stage()
        asked = question.other or question.problem
        begun = trace_prompt(self.vocab, self._fitted(asked, question.mode))
        rules = trace_rules(self.recipe, question.mode)
        if _in_one(mode, rules, free):
            return answered_request(begun, self.vocab, rules, self.newline, free)
        seed = self._seed(asked, question.sample)
        return replace(trace_request(begun, self.vocab, rules, seed), then=answer_stage)

    def _fitted(self, problem: Problem, mode: str) -> list[int]:
        return fit_prompt(self.prompt(problem, mode), [], self.room(mode))[0]

    def _seed(self, problem: Problem, sample: int) -> int:
        return keyed_seed(self.recipe.seed, "eval", problem.id, sample)

    def _behind_the_bottleneck(self, question: Question) -> Request:
        """X C <begin> z in sight of all; then, C hidden: newline and a greedy answer. A long CoT
        loses its middle.
        """
        x, c = fit_prompt(
            self.prompt(question.problem, question.mode),
            self.cot(question),
            self.room(question.mode),
        )
        seed = keyed_seed(self.recipe.seed, question.mode, question.problem.id, question.sample)
        most = answer_tokens(self.recipe.eval, question.mode)
        free = Sampling(most, stop_ids=self.stop_ids)

        def answer_stage(*completions: Completion) -> Request:
            trace = self.trace(question, completions)
            prompt = answer_prompt(self.vocab, self.newline, x, trace, c)
            hidden = HiddenSpan(len(x), len(x) + len(c), len(prompt) - len(self.newline))
            return Request(prompt, free, hidden=hidden)

        begun = trace_prompt(self.vocab, x, c)
        rules = trace_rules(self.recipe, question.mode)
        return replace(trace_request(begun, self.vocab, rules, seed), then=answer_stage)

    def cot(self, question: Question) -> list[int]:
        """C as in training. Raises UserError for a benchmark that has no gold CoTs."""
        if question.problem.cot is None:
            mend = "ask another benchmark, or add the CoTs to its file"
            raise UserError(
                f"{question.problem.id}: no gold CoT, which mode {question.mode} needs; {mend}"
            )
        return self.chat.cots([question.problem.cot])[0][0].tolist()

    def trace(self, question: Question, completions: Sequence[Completion]) -> list[int]:
        """The codebook tokens that the answer sees."""
        mode, rules = MODES[question.mode], trace_rules(self.recipe, question.mode)
        if mode.trace is None:
            return []
        if mode.trace == "pause":
            return pause_trace(self.vocab, rules.m_max)
        sampled = codebook_tokens_of(completions[0], self.vocab, rules)
        draw = rng(self.recipe.seed, question.mode, question.problem.id, question.sample)
        return mode.edit(sampled, draw) if mode.edit else sampled

    def answer(self, question: Question, completions: list[Completion]) -> Answer:
        """Texts and token counts. Every token behind X counts, forced ones (delimiters, newline)
        too.

        reasoning: Z with its delimiters, or everything up to `</think>`; response: the rest, in
        mode `verbal` the whole text, its CoT with it.
        """
        mode, response = MODES[question.mode], completions[-1].tokens
        trace, reasoning = self.trace(question, completions), []
        n_reasoning, n_newline = (z_tokens(len(trace)), len(self.newline)) if mode.trace else (0, 0)
        if mode.thinking:
            reasoning, response = self._split_thought(response)
            n_reasoning = len(reasoning)
        n_response = len(response) + n_newline
        return Answer(
            trace_ids=trace,
            trace_tokens=self.tokenizer.convert_ids_to_tokens(trace),
            reasoning=self._text(reasoning),
            response=self._text(response),
            finish_reason=completions[-1].finish_reason,
            n_abstract_tokens=len(trace),
            n_reasoning_tokens=n_reasoning,
            n_response_tokens=n_response,
            n_total_tokens=n_reasoning + n_response,
            n_abstract_in_response=sum(token in self.abstract_ids for token in response),
            prompt_cut=self.input_tokens(question) > self.room(question.mode),
        )

    def input_tokens(self, question: Question) -> int:
        """Of the longest prompt behind an answer."""
        cot = self.cot(question) if MODES[question.mode].cot else []
        asked = filter(None, (question.problem, question.other))
        return max(len(self.prompt(problem, question.mode)) for problem in asked) + len(cot)

    def _split_thought(self, tokens: list[int]) -> tuple[list[int], list[int]]:
        """(up to and including `</think>`, the rest). A thought that never closes has no
        response.
        """
        open_id, close_id = self.tokenizer.convert_tokens_to_ids(["<think>", "</think>"])
        if close_id in tokens:
            end = tokens.index(close_id) + 1
            return tokens[:end], tokens[end:]
        return (tokens, []) if tokens[:1] == [open_id] else ([], tokens)

    def _text(self, tokens: list[int]) -> str:
        """The text, special tokens visible, without the end of turn."""
        if tokens and tokens[-1] in self.stop_ids:
            tokens = tokens[:-1]
        return self.tokenizer.decode(tokens, skip_special_tokens=False).strip()
