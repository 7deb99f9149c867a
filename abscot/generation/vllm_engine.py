"""One vLLM engine: the only place that knows vLLM."""

import itertools
import os
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

from abscot.common.errors import UserError
from abscot.common.hardware import inference_dtype
from abscot.common.ranks import RANK_VARIABLES
from abscot.generation.requests import Completion, Request, Running, Sampling
from abscot.model.handover import check_files, check_handover
from abscot.model.shape import max_position
from abscot.recipe.schema import InferenceConfig


class VllmEngine:
    """One vLLM engine in this process, which must hold no torch.distributed group.

    Raises UserError where the model directory is missing or damaged.
    """

    def __init__(self, model: Path, config: InferenceConfig):
        if not (Path(model) / "config.json").is_file():
            raise UserError(
                f"{model}: no model there; `launch/round.py --dry-run` shows which stage makes it"
            )
        check_files(Path(model))
        _set_environment(config)
        import torch
        from vllm import LLM

        on_cpu = not torch.cuda.is_available()
        self.window_tokens = min(config.max_model_len_tokens, max_position(model))
        self.max_num_seqs = config.max_num_seqs
        self._serial = 0
        options = {}
        if on_cpu:
            # The CPU engine has no generator offsets, so seeded requests need whole prompts in one
            # step.
            options = {
                "enable_chunked_prefill": False,
                "max_num_batched_tokens": max(self.window_tokens, 8192),
                "block_size": 32,
            }
        self.llm = LLM(
            str(model),
            skip_tokenizer_init=True,
            dtype=inference_dtype(config.dtype),
            max_model_len=self.window_tokens,
            max_num_seqs=config.max_num_seqs,
            tensor_parallel_size=config.tensor_parallel,
            gpu_memory_utilization=config.gpu_memory_utilization,
            enforce_eager=config.enforce_eager or on_cpu,
            enable_prefix_caching=True,
            generation_config="vllm",
            use_tqdm_on_load=False,
            disable_log_stats=True,
            seed=0,
            **options,
        )
        check_handover(self, Path(model))

    def surprisals(
        self, texts: Sequence[Sequence[int]], positions: Sequence[int]
    ) -> list[list[float]]:
        """See requests.Engine. vLLM computes such a text whole: what the prefix cache holds of it
        has no logits.
        """
        from vllm import SamplingParams

        rules = SamplingParams(
            max_tokens=1, prompt_logprobs=0, flat_logprobs=True, detokenize=False
        )
        found = []
        # vLLM keeps a record of each token until generate() returns.
        for start in range(0, len(texts), self.max_num_seqs):
            some = [[int(t) for t in text] for text in texts[start : start + self.max_num_seqs]]
            prompts = [{"prompt_token_ids": text} for text in some]
            for output in self.llm.generate(prompts, rules, use_tqdm=False):
                asked = positions[len(found)]
                # An entry for each token but the first.
                found.append([-p for p in output.prompt_logprobs.logprobs[-asked:]])
        return found

    def stream(self, requests: Sequence[Request]) -> Iterator[tuple[int, list[Completion]]]:
        """Yields (index in `requests`, its completions stage by stage) as requests finish.

        Never more than max_num_seqs are inside the engine, so a follow-up is scheduled in the very
        next step.
        """
        waiting, inside = iter(enumerate(requests)), {}
        for index, request in itertools.islice(waiting, self.max_num_seqs):
            self._start(inside, Running(index, request))
        while inside:
            for output in self.llm.llm_engine.step():
                running = inside[output.request_id]
                running.stages.append(_completion(output, running))
                if running.request.then is not None:
                    self._go_on(inside, output.request_id, running)
                    continue
                self._leave(inside, output.request_id)
                yield running.index, running.stages
                if following := next(waiting, None):
                    self._start(inside, Running(*following))

    def _start(self, inside: dict[str, "Running"], running: "Running") -> None:
        """Hands the engine a new request; it stays open for more tokens if there is a follow-up."""
        assert running.request.hidden is None, "vLLM cannot hide what its cache holds"
        name, self._serial = str(self._serial), self._serial + 1
        running.new_tokens, running.in_session = len(running.request.prompt), 0
        running.session_open = running.request.then is not None
        running.session = self._submit(
            name, None, running.request.prompt, running.request.sampling, running.session_open
        )
        inside[name] = running

    def _go_on(self, inside: dict[str, "Running"], name: str, running: "Running") -> None:
        """The next stage: in the same session where it extends what the engine has computed, else
        as a new request.
        """
        finished, request = running.stages[-1], running.request.then(running.stages[-1])
        # The last token was sampled, never fed.
        computed = [*running.request.prompt, *finished.tokens[:-1]]
        running.request = request
        if list(request.prompt[: len(computed)]) != computed:
            self._leave(inside, name)
            self._start(inside, running)
            return
        running.new_tokens = len(request.prompt) - len(computed)
        running.in_session += len(finished.tokens)
        self._submit(name, running.session, request.prompt[len(computed) :], request.sampling, True)

    def _leave(self, inside: dict[str, "Running"], name: str) -> None:
        """Forgets a request; an open session gets vLLM's end mark, a request that is not
        resumable.
        """
        running = inside.pop(name)
        if running.session_open:
            self._submit(name, running.session, [0], Sampling(max_tokens=1), False)

    def _submit(
        self,
        name: str,
        session: str | None,
        tokens: Sequence[int],
        sampling: Sampling,
        resumable: bool,
    ) -> str:
        """What LLMEngine.add_request does, for sessions too. Returns the engine's name of the
        request.
        """
        import msgspec

        engine = self.llm.llm_engine
        request = engine.input_processor.process_inputs(
            session or name,
            {"prompt_token_ids": [int(t) for t in tokens]},
            sampling_params(sampling),
            supported_tasks=engine.get_supported_tasks(),
            resumable=resumable,
        )
        if session is None:
            engine.input_processor.assign_request_id(request)
        else:
            request.external_req_id = name
        engine.output_processor.add_request(request, None, None, 0)
        # Both sides append a session's later tokens to this list, and in one process it would be
        # the same list.
        own = msgspec.structs.replace(request, prompt_token_ids=list(request.prompt_token_ids))
        engine.engine_core.add_request(own)
        return request.request_id

    def forget(self) -> None:
        """Empties the prefix cache: what is generated next depends on nothing that was generated
        before.
        """
        if not self.llm.reset_prefix_cache():
            raise RuntimeError("vLLM did not empty its prefix cache though no request is running")


def _completion(output, running: Running) -> Completion:
    """vLLM reports a session's tokens from its start, and the prefix cache's hits for its first
    stage.
    """
    best, prompt_tokens = output.outputs[0], len(running.request.prompt)
    cached = (
        prompt_tokens - running.new_tokens if running.in_session else output.num_cached_tokens or 0
    )
    return Completion(
        list(best.token_ids)[running.in_session :], best.finish_reason, prompt_tokens, cached
    )


def sampling_params(sampling: Sampling):
    from vllm.sampling_params import RequestOutputKind, SamplingParams

    return SamplingParams(
        max_tokens=sampling.max_tokens,
        min_tokens=sampling.min_tokens,
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        allowed_token_ids=list(sampling.allowed_ids) if sampling.allowed_ids else None,
        stop_token_ids=list(sampling.stop_ids),
        seed=sampling.seed if sampling.temperature > 0 else None,
        detokenize=False,
        output_kind=RequestOutputKind.FINAL_ONLY,
    )


def _set_environment(config: InferenceConfig) -> None:
    """vLLM reads these when it is imported. In this process: a seeded run then schedules the same
    way every time.
    """
    for name in RANK_VARIABLES:
        os.environ.pop(name, None)
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    os.environ["VLLM_CPU_KVCACHE_SPACE"] = str(config.cpu_kv_cache_gib)
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    os.environ.setdefault("VLLM_BATCH_INVARIANT", str(int(config.batch_invariant)))
    warnings.filterwarnings("ignore", category=FutureWarning, module="vllm")
