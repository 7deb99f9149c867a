"""Models that are asked without vLLM: an engine that hands out tokens one by one, what processes
do in a test, and what they say.
"""

import os

from abscot.common.errors import UserError
from abscot.evaluation.ask_model import STOPPED, Told
from abscot.evaluation.ask_process import START, STOP
from abscot.evaluation.ask_text import ANSWER, TRACE, Piece
from abscot.evaluation.results import Answer
from abscot.generation.transformers_engine import TransformersEngine


class TokenByToken(TransformersEngine):
    """`VllmEngine.tokens` by transformers, which makes all of them first."""

    def tokens(self, request):
        ((_, stages),) = self.stream([request])
        for stage, completion in enumerate(stages):
            yield from ((stage, token) for token in completion.tokens)


def answer(response: str = "four", trace: tuple[str, ...] = ("<TOKEN_A>", "<TOKEN_BL>")) -> Answer:
    reasoning = len(trace) + 2 if trace else 0
    return Answer(
        trace_ids=list(range(len(trace))),
        trace_tokens=list(trace),
        reasoning="",
        response=response,
        finish_reason="stop",
        n_abstract_tokens=len(trace),
        n_reasoning_tokens=reasoning,
        n_response_tokens=5,
        n_total_tokens=reasoning + 5,
        n_abstract_in_response=0,
        prompt_cut=False,
    )


def told(**answered) -> Told:
    made = answer(**answered)
    return Told("stop", made.n_total_tokens, 0.5, made)


def serve_echo(asked, channel, log, parent) -> None:
    """Answers with the question; `wait` waits to be stopped, `bad` is refused, `die` ends it."""
    channel.send(None)
    assert channel.recv() == START
    channel.send(None)
    while True:
        message = channel.recv()
        if message == STOP:
            continue
        question, number = message
        if question == "die":
            with open(log, "a") as file:
                file.write("loading\nRuntimeError: no memory\n")
            os._exit(9)
        if question == "bad":
            channel.send(UserError("bad: expected better"))
            continue
        channel.send(Piece(TRACE, "<TOKEN_A>"))
        if question == "wait":
            channel.poll(None)
            channel.send(Told(STOPPED, 1, 0.1, None))
            continue
        channel.send(Piece(ANSWER, f"{asked.name} {number} {question}"))
        channel.send(told(response=question))


def serve_refusal(asked, channel, log, parent) -> None:
    channel.send(UserError(f"{asked.option} {asked.name}: expected another"))
