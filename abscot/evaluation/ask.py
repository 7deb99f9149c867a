"""Questions of a user to one model, or to two, which answer one after the other: so that neither
takes the other's time.
"""

import contextlib
import signal
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console

from abscot.common.errors import UserError
from abscot.evaluation import ask_screen
from abscot.evaluation.ask_model import STOPPED, Asked, Rules, Told
from abscot.evaluation.ask_process import ModelProcess
from abscot.evaluation.ask_screen import Event, Title

PROMPT, LEAVE = "? ", ("", "exit")
REFUSED, INTERRUPTED = 2, 130  # exit codes


class Conversation:
    """The models that are asked, each in its process. names: one or two, as --model and --beside.

    With two, each takes half of what inference.gpu_memory_utilization allows.
    """

    def __init__(self, rules: Rules, names: list[str], thinking: bool, as_json: bool):
        modes = ["abstract", "thinking" if thinking else "verbal"]
        self.titles = [Title(*pair) for pair in zip(names, modes, strict=False)]
        self.rules, self.as_json = rules, as_json
        self.console = Console(highlight=False)
        self.processes: list[ModelProcess] = []
        self.code = 0

    @contextlib.contextmanager
    def started(self) -> Iterator[None]:
        """Inside, they can be asked. All are found before one is started; one engine starts after
        the other: vLLM measures what memory of a GPU is free.
        """
        given = list(zip(("--model", "--beside"), self.titles, strict=False))
        for option, title in given:
            self.rules.check_name(option, title.model)
        with contextlib.ExitStack() as stack:
            scratch = stack.enter_context(tempfile.TemporaryDirectory(prefix="abscot-ask-"))
            for option, title in given:
                share = 1 / len(given)
                asked = Asked(option, title.model, title.mode, self.rules, Path(scratch), share)
                self.processes.append(ModelProcess(asked))
                stack.callback(self.processes[-1].close)
            for process in self.processes:
                with _waiting_for(f"looking at {process.name} .."):
                    process.find()
            for process in self.processes:
                with _waiting_for(f"starting {process.name} .."):
                    process.start()
            yield

    def ask(self, question: str, number: int) -> bool:
        """Shows the answers to one question. Returns whether Ctrl-C ended them."""
        with _interrupts() as interrupts:
            events = self._events(question, number, interrupts)
            if self.as_json:
                line = ask_screen.json_line(question, self.titles, events)
                if line is not None:
                    print(line, flush=True)
            else:
                ask_screen.show(self.console, self.titles, events)
            return bool(interrupts)

    def _events(self, question: str, number: int, interrupts: list) -> Iterator[Event]:
        for index, process in enumerate(self.processes):
            if interrupts:
                return
            told = False
            try:
                check_text(question)
                for event in process.ask(question, number):
                    if interrupts and not told:
                        process.stop()
                        told = True
                    yield index, event
                    if isinstance(event, Told) and event.finish_reason == STOPPED:
                        return
            except UserError as error:
                self.code = REFUSED
                yield index, error


def check_text(question: str) -> None:
    """Raises UserError for what is no text."""
    try:
        question.encode()
    except UnicodeEncodeError:
        raise UserError("the question is not UTF-8 text") from None


def _waiting_for(what: str) -> contextlib.AbstractContextManager:
    console = Console(stderr=True)
    return console.status(what) if console.is_terminal else contextlib.nullcontext()


@contextlib.contextmanager
def _interrupts() -> Iterator[list]:
    """Inside, the first Ctrl-C is noted in the list: an exception could cut a message in two. The
    second one is meant for an engine that does not answer.
    """
    noted = []

    def note(*_) -> None:
        if noted:
            raise KeyboardInterrupt
        noted.append(True)

    before = signal.signal(signal.SIGINT, note)
    try:
        yield noted
    finally:
        signal.signal(signal.SIGINT, before)


def typed() -> Iterator[str]:
    """Questions at a terminal, with readline's history. What is pasted may have several lines."""
    import readline

    readline.parse_and_bind("set enable-bracketed-paste on")  # Python turns it off
    while True:
        try:
            line = input(PROMPT).strip()
        except EOFError:
            print()
            return
        except KeyboardInterrupt:  # as a shell does
            print()
            continue
        if line in LEAVE:
            return
        yield line


def piped() -> Iterator[str]:
    """A question a line; blank lines are none."""
    sys.stdin.reconfigure(errors="surrogateescape")
    return (line for line in map(str.strip, sys.stdin) if line)


def converse(conversation: Conversation, question: str | None) -> int:
    """Asks one question, or all that are typed or piped. Returns the exit code: 2 where one was
    refused, 130 where Ctrl-C ended an answer; at a terminal, where one goes on, 0.
    """
    at_terminal = question is None and sys.stdin.isatty() and sys.stdout.isatty()
    with contextlib.suppress(KeyboardInterrupt), conversation.started():
        if at_terminal:
            names = " and ".join(map(str, conversation.titles))
            print(f"{names}. Ctrl-C ends an answer, Ctrl-D or an empty line leaves.")
        questions = typed() if at_terminal else piped() if question is None else [question]
        for number, text in enumerate(questions):
            if conversation.ask(text, number) and not at_terminal:
                return INTERRUPTED
        return 0 if at_terminal else conversation.code
    return INTERRUPTED
