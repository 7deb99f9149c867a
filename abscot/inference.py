"""Constrained two-stage generation from token ids: vLLM, and a small transformers fallback with the
same rules.

    requests = [trace_request(prompt, vocab, recipe.traces, seed) for ...]
    for index, completions in engine.stream(requests): ...

A request may carry a follow-up (`then`): the answer stage starts in the step after its trace is
finished. Where it goes on from the very tokens that the engine holds it continues the same session,
and only the new tokens are computed; where the trace was edited it is a new request that finds the
prompt in the prefix cache. Tokens in, tokens out: text would lose the abstract tokens.
"""

import dataclasses
import itertools
import math
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from abscot import paths
from abscot.config import InferenceConfig, TraceConfig, UserError
from abscot.dist import RANK_VARIABLES, log
from abscot.vocab import AbstractVocab

HANDOVER_KL = 0.015  # nats a token; bf16 kernels that differ stay far below


@dataclass(frozen=True)
class Sampling:
    """How one request is decoded. temperature 0: greedy. allowed_ids None: every token of the
    vocabulary.
    """

    max_tokens: int
    min_tokens: int = 0
    temperature: float = 0.0
    top_p: float = 1.0
    allowed_ids: tuple[int, ...] | None = None
    stop_ids: tuple[int, ...] = ()
    seed: int = 0


@dataclass(frozen=True)
class Completion:
    """tokens: what was generated, a stop token included. cached_tokens: prompt tokens that were not
    computed.
    """

    tokens: list[int]
    finish_reason: str  # stop | length
    prompt_tokens: int
    cached_tokens: int


@dataclass(frozen=True)
class Hidden:
    """Positions start .. stop of a prompt that its tokens from `behind` on, and all that is
    generated, cannot see.
    """

    start: int
    stop: int
    behind: int


@dataclass(frozen=True)
class Request:
    """hidden: the bottleneck of phase A; TransformersEngine alone can do it, greedily."""

    prompt: Sequence[int]
    sampling: Sampling
    then: Callable[[Completion], "Request"] | None = (
        None  # the next stage, made from this one's completion
    )
    hidden: Hidden | None = None


def trace_request(
    prompt: Sequence[int], vocab: AbstractVocab, config: TraceConfig, seed: int
) -> Request:
    """The trace stage behind a prompt that ends in `<beginabstract>`.

    Only V_abs and the end token can be sampled, the end only after m_min tokens. Decoding stops at
    m_max: the end is forced there by appending it, which costs no step.
    """
    sampling = Sampling(
        max_tokens=config.m_max,
        min_tokens=config.m_min,
        temperature=config.temperature,
        top_p=config.top_p,
        allowed_ids=tuple(vocab.allowed_ids),
        stop_ids=(vocab.end_id,),
        seed=seed,
    )
    return Request(prompt, sampling)


def codebook_tokens_of(
    completion: Completion, vocab: AbstractVocab, config: TraceConfig
) -> list[int]:
    """The trace without its delimiters. Raises ValueError if the engine broke a rule: such a trace
    is no data.
    """
    tokens = completion.tokens
    trace = tokens[:-1] if tokens and tokens[-1] == vocab.end_id else tokens
    if not set(trace) <= set(vocab.codebook_ids) or not config.m_min <= len(trace) <= config.m_max:
        raise ValueError(f"the engine returned a trace outside V_abs or [m_min, m_max]: {tokens}")
    return trace


def cut_middle(tokens: Sequence[int], room: int) -> list[int]:
    """At most `room` tokens: the first and the last ones, since a CoT says its task first and its
    result last.
    """
    if len(tokens) <= room:
        return list(tokens)
    head = room // 2
    return [*tokens[:head], *tokens[len(tokens) - (room - head) :]]


def machine_dtype(config: InferenceConfig) -> str:
    """`bfloat16` or `float32`; `auto` takes bf16 where the machine has instructions for it
    (emulated it is slower).
    """
    import torch

    if config.dtype != "auto":
        return {"bf16": "bfloat16", "fp32": "float32"}[config.dtype]
    native = (
        torch.cuda.is_available()
        or torch.cpu._is_amx_tile_supported()
        or torch.cpu._is_avx512_bf16_supported()
    )
    return "bfloat16" if native else "float32"


def check_handover(engine, model: Path) -> None:
    """Is what the engine computes the model that was trained? Export has left probabilities of the
    live weights in DONE.

    Per token the KL divergence is estimated as r - 1 - log r of the two probabilities' ratio r,
    which is never negative. Raises RuntimeError above HANDOVER_KL: then weights were lost on the
    way, and every trace would be another model's.
    """
    probe = paths.read_done(model).get("probe") if paths.is_done(model) else None
    if probe is None or len(probe["tokens"]) >= engine.window_tokens:
        return
    found = engine.surprisals(probe["tokens"], len(probe["surprisals"]))
    gaps = [live - served for live, served in zip(probe["surprisals"], found, strict=True)]
    kl = sum(math.exp(gap) - 1 - gap for gap in gaps) / len(gaps)
    if not kl <= HANDOVER_KL:
        raise RuntimeError(
            f"{model}: this engine's probabilities are not those of the trained weights (KL "
            f"{kl:.4f} a token, at most {HANDOVER_KL});"
            f" delete {model} to export it again"
        )
    log(f"{model.name}: the engine agrees with the trained weights, KL {kl:.1e} a token")


class VllmEngine:
    """One vLLM engine in this process, which must hold no torch.distributed group.

    Raises UserError where the model directory is missing.
    """

    def __init__(self, model: Path, config: InferenceConfig):
        if not (Path(model) / "config.json").is_file():
            raise UserError(
                f"{model}: no model there; `launch/round.py --dry-run` shows which stage makes it"
            )
        _set_environment(config)
        import torch
        from vllm import LLM

        on_cpu = not torch.cuda.is_available()
        self.window_tokens = min(config.max_model_len_tokens, _max_position(model))
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
            dtype=machine_dtype(config),
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

    def surprisals(self, tokens: Sequence[int], positions: int) -> list[float]:
        """-log p of the last `positions` tokens, each given those before it."""
        from vllm import SamplingParams

        only_prompt = SamplingParams(max_tokens=1, prompt_logprobs=0, detokenize=False)
        table = self.llm.generate(
            [{"prompt_token_ids": list(tokens)}], only_prompt, use_tqdm=False
        )[0].prompt_logprobs
        return [-table[t][tokens[t]].logprob for t in range(len(tokens) - positions, len(tokens))]

    def stream(self, requests: Sequence[Request]) -> Iterator[tuple[int, list[Completion]]]:
        """Yields (index in `requests`, its completions stage by stage) as requests finish.

        Never more than max_num_seqs are inside the engine, so a follow-up is scheduled in the very
        next step.
        """
        waiting, inside = iter(enumerate(requests)), {}
        for index, request in itertools.islice(waiting, self.max_num_seqs):
            self._start(inside, _Running(index, request))
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
                    self._start(inside, _Running(*following))

    def _start(self, inside: dict[str, "_Running"], running: "_Running") -> None:
        """Hands the engine a new request; it stays open for more tokens if there is a follow-up."""
        assert running.request.hidden is None, "vLLM cannot hide what its cache holds"
        name, self._serial = str(self._serial), self._serial + 1
        running.new_tokens, running.in_session = len(running.request.prompt), 0
        running.session_open = running.request.then is not None
        running.session = self._submit(
            name, None, running.request.prompt, running.request.sampling, running.session_open
        )
        inside[name] = running

    def _go_on(self, inside: dict[str, "_Running"], name: str, running: "_Running") -> None:
        """The next stage: in the same session where it extends what the engine has computed, else
        as a new request.
        """
        finished, request = running.stages[-1], running.request.then(running.stages[-1])
        computed = [
            *running.request.prompt,
            *finished.tokens[:-1],
        ]  # the last token was sampled, never fed
        running.request = request
        if list(request.prompt[: len(computed)]) != computed:
            self._leave(inside, name)
            self._start(inside, running)
            return
        running.new_tokens = len(request.prompt) - len(computed)
        running.in_session += len(finished.tokens)
        self._submit(name, running.session, request.prompt[len(computed) :], request.sampling, True)

    def _leave(self, inside: dict[str, "_Running"], name: str) -> None:
        """Forgets a request; an open session gets vLLM's end mark, a request that is not resumable."""
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


class TransformersEngine:
    """The same requests by `transformers` generate: for tests and debugging, where vLLM is not to
    be had.

    The allowed sets and minimum lengths are the same. Seeds hold for a batch, not for a row:
    sampled traces repeat only with the same requests in the same order, and are not vLLM's.
    """

    def __init__(self, model: Path, config: InferenceConfig):
        import torch
        from transformers import AutoModelForCausalLM

        self.window_tokens = min(config.max_model_len_tokens, _max_position(model))
        self.batch_size = config.max_num_seqs
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        dtype = getattr(torch, machine_dtype(config))
        self.lm = AutoModelForCausalLM.from_pretrained(model, dtype=dtype).to(self.device).eval()

    def stream(self, requests: Sequence[Request]) -> Iterator[tuple[int, list[Completion]]]:
        """Like VllmEngine.stream; a batch holds neighbouring requests with the same sampling rules."""
        running = [_Running(index, request) for index, request in enumerate(requests)]
        while running:
            first = running[0].request.sampling
            hides = running[0].request.hidden is not None
            rules = [
                r
                for r in running
                if dataclasses.replace(r.request.sampling, seed=first.seed) == first
            ]
            batch = [r for r in rules if (r.request.hidden is not None) is hides][: self.batch_size]
            generate = self._generate_hidden if hides else self._generate
            for one, completion in zip(batch, generate([r.request for r in batch]), strict=True):
                one.stages.append(completion)
                if one.request.then is None:
                    running.remove(one)
                    yield one.index, one.stages
                else:
                    one.request = one.request.then(completion)

    def _generate(self, requests: list[Request]) -> list[Completion]:
        """One left-padded batch of requests that differ in prompt and seed only."""
        import torch
        from transformers import LogitsProcessorList

        sampling = requests[0].sampling
        ids, mask = self._left_padded([r.prompt for r in requests])
        longest = ids.shape[1]
        torch.manual_seed(sampling.seed)
        chosen = {
            "do_sample": True,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "top_k": 0,
        }
        out = self.lm.generate(
            input_ids=ids,
            attention_mask=mask,
            max_new_tokens=sampling.max_tokens,
            eos_token_id=list(sampling.stop_ids) or None,
            pad_token_id=0,
            logits_processor=LogitsProcessorList([_allow(sampling, longest)]),
            **(chosen if sampling.temperature > 0 else {"do_sample": False}),
        )
        return [
            _until_stop(row, len(r.prompt), sampling)
            for row, r in zip(out[:, longest:].tolist(), requests, strict=True)
        ]

    def _generate_hidden(self, requests: list[Request]) -> list[Completion]:
        """Greedy, in one KV cache: what stands before `behind` is computed in full sight, then the
        hidden keys are masked for good. Positions run on, as in the one pass of training.
        """
        import torch

        sampling = requests[0].sampling
        assert sampling.temperature == 0, "behind the bottleneck decoding is greedy"
        ids, mask = self._left_padded([r.prompt[: r.hidden.behind] for r in requests])
        new = torch.tensor(
            [list(r.prompt[r.hidden.behind :]) for r in requests], device=self.device
        )
        with torch.inference_mode():
            positions = (mask.cumsum(1) - 1).clamp(min=0)
            cache = self.lm.model(
                ids, attention_mask=mask, position_ids=positions, use_cache=True
            ).past_key_values
            for row, hidden in enumerate(r.hidden for r in requests):
                padding = ids.shape[1] - hidden.behind
                mask[row, padding + hidden.start : padding + hidden.stop] = 0
            at, made, ended = (
                positions[:, -1:] + 1,
                [],
                torch.zeros_like(mask[:, 0], dtype=torch.bool),
            )
            while len(made) < sampling.max_tokens and not ended.all():
                mask = torch.cat([mask, torch.ones_like(new)], 1)
                positions = at + torch.arange(new.shape[1], device=self.device)
                logits = self.lm(
                    new, attention_mask=mask, position_ids=positions, past_key_values=cache
                ).logits
                at, new = at + new.shape[1], logits[:, -1:].argmax(-1)
                made.append(new)
                ended |= torch.isin(new[:, 0], torch.tensor(sampling.stop_ids, device=self.device))
        tokens = torch.cat(made, 1).tolist()
        return [
            _until_stop(row, len(r.prompt), sampling)
            for row, r in zip(tokens, requests, strict=True)
        ]

    def _left_padded(self, prompts: list[Sequence[int]]):
        """(ids, mask): int64 [prompts, longest prompt]; the mask is 0 where padding."""
        import torch

        longest = max(map(len, prompts))
        ids = torch.zeros((len(prompts), longest), dtype=torch.long, device=self.device)
        mask = torch.zeros_like(ids)
        for row, prompt in enumerate(prompts):
            ids[row, longest - len(prompt) :] = torch.tensor(list(prompt))
            mask[row, longest - len(prompt) :] = 1
        return ids, mask

    def forget(self) -> None:
        """Nothing is kept between batches."""


def _allow(sampling: Sampling, prompt_tokens: int) -> Callable:
    """A logits processor: allowed_ids only, and no stop before min_tokens."""
    import torch

    def process(input_ids, scores):
        if sampling.allowed_ids:
            kept = torch.full_like(scores, -torch.inf)
            kept[:, list(sampling.allowed_ids)] = scores[:, list(sampling.allowed_ids)]
            scores = kept
        if input_ids.shape[1] - prompt_tokens < sampling.min_tokens:
            scores[:, list(sampling.stop_ids)] = -torch.inf
        return scores

    return process


def _until_stop(tokens: list[int], prompt_tokens: int, sampling: Sampling) -> Completion:
    """Cuts a row of a batch behind its own stop token; what follows is padding."""
    end = next((i for i, token in enumerate(tokens) if token in sampling.stop_ids), None)
    if end is None:
        return Completion(tokens, "length", prompt_tokens, 0)
    return Completion(tokens[: end + 1], "stop", prompt_tokens, 0)


@dataclass
class _Running:
    """A request inside the engine. new_tokens: of its prompt, handed in for this stage; in_session:
    generated before.
    """

    index: int
    request: Request
    stages: list[Completion] = field(default_factory=list)
    session: str | None = None
    session_open: bool = False
    new_tokens: int = 0
    in_session: int = 0


def _completion(output, running: _Running) -> Completion:
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


def _max_position(model: Path) -> int:
    import json

    return json.loads((Path(model) / "config.json").read_text())["max_position_embeddings"]
