"""A model that answers questions as evaluation asks it, token by token: by which recipe, found,
checked and started.
"""

import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from abscot.common.errors import UserError, shown
from abscot.common.files import require
from abscot.evaluation.ask_text import Piece, Pieces
from abscot.evaluation.benchmarks import Problem
from abscot.evaluation.modes import MODES, Asker, Question
from abscot.evaluation.results import Answer
from abscot.generation.requests import Completion
from abscot.method.lineage import Model, models_by_name
from abscot.recipe.load import default_recipe, load_recipe, local_path
from abscot.recipe.run import Run, open_run, run_around
from abscot.recipe.schema import EvalConfig, Recipe

STOPPED = "stopped"  # the finish reason of an answer that the user ended


@dataclass(frozen=True)
class Rules:
    """The recipe by which models are asked. overrides: the user's own keys. run: where names of
    models lie; None: no run is meant, and each model is asked by what it says itself (`fitted`).
    """

    recipe: Recipe
    overrides: tuple[str, ...]
    run: Run | None

    @classmethod
    def of(cls, model: str, recipe: str | None, overrides: Sequence[str]) -> "Rules":
        """By the recipe that is given; else by that of the run in which the directory `model` lies;
        else, where `model` is a name, by the default one. Raises UserError.
        """
        given, path = tuple(overrides), local_path(model)
        if recipe is None and _is_elsewhere(model):
            if path and (around := run_around(path)):
                run, found = open_run(around.root, given)
                return cls(found, given, run)
            return cls(default_recipe(given), given, None)
        found = load_recipe(recipe, given)
        return cls(found, given, Run.of(found))

    def check_name(self, option: str, name: str) -> None:
        """Raises UserError for a name that can be no model's. Looks at no model."""
        models = models_by_name(self.recipe, self.run) if self.run else {}
        if name not in models and not _is_elsewhere(name):
            names = f"one of {', '.join(models)}, or " if models else ""
            mend = "" if models else "; for a model of a run give its --recipe"
            raise UserError(f"{option} {name}: expected {names}a directory or hub id{mend}")


def _is_elsewhere(name: str) -> bool:
    """Whether it can only be a path or a hub id."""
    path = local_path(name)
    return "/" in name or (bool(name) and path is not None and path.is_dir())


@dataclass(frozen=True)
class Asked:
    """Which model is asked, and how. option: what the user gave `name` as. scratch: a directory for
    what must be merged to be asked. gpu_share: of what inference.gpu_memory_utilization allows.
    """

    option: str
    name: str
    mode: str
    rules: Rules
    scratch: Path
    gpu_share: float = 1.0


@dataclass(frozen=True)
class Told:
    """The end of an answer. seconds: from the question to the last token. tokens: all behind the
    prompt, forced ones too. answer: None where it was stopped on its way.
    """

    finish_reason: str  # stop | length | STOPPED
    tokens: int
    seconds: float
    answer: Answer | None


def fitted(asked: Asked) -> Recipe:
    """The recipe for a model that lies in no run: the defaults, with its own window, codebook,
    dtype and the rules of its generation_config.json. What the user has set comes before all that.
    """
    from abscot.model.adapters import check_adapter, is_adapter, tokenizer_directory
    from abscot.model.check import checked_tokenizer
    from abscot.model.foreign import expect_model, located
    from abscot.model.shape import max_position
    from abscot.model.weights import read_json

    where, config = f"{asked.option}: {shown(asked.name, 400)}", asked.rules.recipe.model
    directory = model = located(asked.name, where, config)
    if is_adapter(directory, where):
        model = located(check_adapter(directory, where)[0], where, config)
    expect_model(model, where)
    keys = _limits(min(max_position(model), asked.rules.recipe.inference.max_model_len_tokens))
    tree = read_json(model / "config.json", where)
    if "float32" in (tree.get("dtype"), tree.get("torch_dtype")):
        keys["inference.dtype"] = "fp32"
    tokenizer = checked_tokenizer(tokenizer_directory(directory, model), where, config)
    keys |= _own_rules(directory, where, tokenizer)
    own = [f"{key}={value}" for key, value in keys.items()]
    return default_recipe([*own, *asked.rules.overrides])


def _limits(window: int) -> dict[str, object]:
    """In a small window a quarter is for the answer, half for a thought, the rest for a prompt."""
    return {
        "eval.max_answer_tokens": min(EvalConfig.max_answer_tokens, max(1, window // 4)),
        "eval.max_reasoning_tokens": min(EvalConfig.max_reasoning_tokens, max(1, window // 2)),
    }


def _own_rules(directory: Path, where: str, tokenizer) -> dict[str, object]:
    """How its traces are decoded, as far as the model says it."""
    from abscot.method.vocab import codebook_size_of
    from abscot.model.chat_model import DecodingRules
    from abscot.model.weights import read_json

    rules, size = None, codebook_size_of(tokenizer)
    if (file := directory / DecodingRules.FILE).exists():
        rules = DecodingRules.of(read_json(file, where), f"{where}: {file.name}")
    if rules is None:
        return {"codebook_size": size} if size else {}
    return {
        "codebook_size": len(rules.codebook_token_ids),
        "eval.m_min": rules.m_min,
        "eval.m_max": rules.m_max,
        "eval.trace_temperature": rules.trace_temperature,
    }


def find_model(asked: Asked, recipe: Recipe) -> Model:
    """A model of the run by its name or directory, else one from elsewhere, checked. Raises
    UserError where there is none, and where its mode writes a trace with tokens that it lacks.
    """
    run, path = asked.rules.run, local_path(asked.name)
    models = models_by_name(recipe, run) if run else {}
    of_run = models.get(asked.name) or _lying_at(path, models.values())
    if of_run:
        require(of_run.directory)
        return of_run
    from abscot.model.foreign import make, open_model  # transformers takes seconds to import

    # What an adapter is merged into lies in the run; a run that is not begun stays so.
    run = run if run and run.config.is_file() else Run(asked.scratch)
    model = open_model(recipe, run, asked.name, asked.option)
    if model.missing_tokens and MODES[asked.mode].trace:
        raise UserError(
            f"{asked.option} {asked.name}: its tokenizer has no {model.missing_tokens[0]} "
            f"(codebook_size {recipe.codebook_size}), so it writes no abstract traces; a model "
            "without them answers in words, as --beside NAME behind --model"
        )
    make(model, recipe)
    return model


def _lying_at(path: Path | None, models) -> Model | None:
    here = path.resolve() if path and path.is_dir() else None
    return next((model for model in models if model.directory.resolve() == here), None)


class AskedModel:
    """A model that is found and checked; it can be asked once it is started. Raises UserError."""

    def __init__(self, asked: Asked):
        self.recipe = asked.rules.recipe if asked.rules.run else fitted(asked)
        self.mode, self.gpu_share = asked.mode, asked.gpu_share
        self.model = find_model(asked, self.recipe)

    def start(self, make_engine: Callable | None = None) -> None:
        """make_engine: (directory, InferenceConfig, codebook size) -> engine; None: vLLM's."""
        if make_engine is None:
            from abscot.generation.vllm_engine import VllmEngine as make_engine
        config = self.recipe.inference
        share = config.gpu_memory_utilization * self.gpu_share
        config = dataclasses.replace(config, max_num_seqs=1, gpu_memory_utilization=share)
        self.engine = make_engine(self.model.directory, config, self.recipe.codebook_size)
        self.asker = Asker(self.model.directory, self.recipe, [self.mode], self.engine)

    def answer(self, text: str, number: int, stopped: Callable[[], bool]) -> Iterator[Piece | Told]:
        """Pieces as they are decoded, then what was told. number: of the question, which a sampled
        answer depends on. stopped: asked after each token.

        Raises UserError for a question that does not fit the window: of one without its middle the
        answer would look right.
        """
        question = Question(Problem("ask", text, gold=""), self.mode, number)
        tokens, room = self.asker.input_tokens(question), self.asker.room(self.mode)
        if tokens > room:
            raise UserError(
                f"the question has {tokens:,} tokens, and the window of "
                f"{self.engine.window_tokens:,} has room for {room:,} beside the answer; shorten "
                "it, or lower eval.max_answer_tokens"
            )
        request, pieces = self.asker.request(question), Pieces(self.asker, self.mode)
        stages, began_s = [[]], time.monotonic()
        for stage, token in self.engine.tokens(request):
            stages += [[] for _ in range(stage + 1 - len(stages))]
            stages[stage].append(token)
            if piece := pieces.step(stage, token):
                yield piece
            if stopped():
                yield Told(STOPPED, sum(map(len, stages)), time.monotonic() - began_s, None)
                return
        seconds = time.monotonic() - began_s
        answer = self.asker.answer(question, [self._completion(made) for made in stages])
        if piece := pieces.rest(answer.response):
            yield piece
        yield Told(answer.finish_reason, answer.n_total_tokens, seconds, answer)

    def _completion(self, tokens: list[int]) -> Completion:
        ended = bool(tokens) and tokens[-1] in self.asker.stop_ids
        return Completion(tokens, "stop" if ended else "length", 0, 0)
