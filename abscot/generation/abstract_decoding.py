"""Abstract decoding as a logits processor of vLLM: one request decodes trace and answer.

It stands in every vLLM of an environment that has this package (entry point
`vllm.logits_processors`), and leaves alone what no `<beginabstract>` ends the prompt of. vLLM has
two runners with an interface each, and one class must serve both, since an entry point names one:

    V1  CPUs: tells the processor its requests' tokens as lists
    V2  GPUs: tells it the tokens of all requests on the device

Per request, in `extra_args` (`vllm_xargs` over HTTP): m_min, m_max, trace_temperature,
answer_temperature.
"""

import difflib

import numpy as np
import torch
from vllm.logger import init_logger
from vllm.sampling_params import SamplingParams
from vllm.v1.sample.logits_processor import LogitsProcessor as V1Processor
from vllm.v1.sample.logits_processor import process_dict_updates
from vllm.v1.worker.gpu.sample.logits_processor import LogitsContext, LogitsProcRequestState
from vllm.v1.worker.gpu.sample.logits_processor import LogitsProcessor as V2Processor

from abscot.generation.decoding import (
    ABSTRACT_DECODING,
    CODEBOOK_SIZE,
    FREE,
    RequestRules,
    Rules,
    TraceTokens,
    stage_temperature,
)
from abscot.method.vocab import AbstractVocab
from abscot.model.chat_model import DecodingRules

MOST_TOKENS = 1 << 20  # of a trace; no window is as wide
COUNTS, TEMPERATURES = ("m_min", "m_max"), ("trace_temperature", "answer_temperature")
GREEDY_BELOW = 1e-5  # vLLM's own bound

logger = init_logger(__name__)


class AbstractDecoding(V1Processor, V2Processor):
    """See above. Raises ValueError where this vLLM cannot keep the rules of a model that has
    abstract tokens.
    """

    def __init__(self, vllm_config, where, is_pin_memory=None):
        """where: of V1 the device, of V2 the state of its requests."""
        self.tokens = None
        if self._stands_back(vllm_config):
            return
        own = model_rules(vllm_config)
        self.tokens = trace_tokens(vllm_config, own)
        if self.tokens is None:
            return
        self.defaults = RequestRules()
        if own is not None:
            self.defaults = RequestRules(own.m_min, own.m_max, own.trace_temperature)
        if vllm_config.speculative_config is not None:
            raise ValueError(
                f"{vllm_config.model_config.model}: abstract traces cannot be decoded with "
                "speculative decoding; leave out --speculative-config"
            )
        on_v2 = isinstance(where, LogitsProcRequestState)
        self.requests = OnDevice(self, where) if on_v2 else OnHost(self, where)

    def _stands_back(self, vllm_config) -> bool:
        return False

    @classmethod
    def validate_params(cls, sampling_params: SamplingParams) -> None:
        """Raises ValueError for arguments that cannot be."""
        check_arguments(sampling_params)

    def is_argmax_invariant(self) -> bool:
        """Of V1: the most probable token changes."""
        return False

    def update_state(self, batch_update) -> None:
        """Of V1: which requests there are."""
        if self.tokens is not None:
            process_dict_updates(self.requests.running, batch_update, self.requests.begin)

    def add_request(self, req_idx: int, sampling_params: SamplingParams) -> bool:
        """Of V2. The prompt is known once it is on the device."""
        if self.tokens is None:
            return False
        self.requests.new[req_idx] = sampling_params
        return True

    def apply_staged_writes(self) -> None:
        """Of V2: the prompts of new requests are on the device."""
        if self.tokens is not None and self.requests.new:
            self.requests.begin()

    def apply(self, logits: torch.Tensor, context: LogitsContext | None = None) -> torch.Tensor:
        """logits: fp32 [rows, vocabulary]."""
        return logits if self.tokens is None else self.requests.apply(logits, context)

    def rules_of(self, params: SamplingParams) -> RequestRules:
        """What the request asks, else what its model was made for. Of bounds that contradict the
        model's the ones that were asked count.
        """
        asked = {k: v for k, v in (params.extra_args or {}).items() if k in COUNTS + TEMPERATURES}
        own = self.defaults
        m_max = asked.get("m_max", max(own.m_max, asked.get("m_min", 0)))
        trace_temperature = asked.get("trace_temperature", own.trace_temperature)
        return RequestRules(
            asked.get("m_min", min(own.m_min, m_max)),
            m_max,
            trace_temperature,
            asked.get("answer_temperature"),
        )


class InstalledAbstractDecoding(AbstractDecoding):
    """The entry point: stands back where the engine was also given the processor by name."""

    def __init__(self, vllm_config, where, is_pin_memory=None):
        super().__init__(vllm_config, where, is_pin_memory)
        if self.tokens is None or isinstance(where, LogitsProcRequestState):
            return
        if vllm_config.scheduler_config.async_scheduling:
            raise ValueError(
                f"{vllm_config.model_config.model}: vLLM's V1 runner with asynchronous scheduling "
                "does not tell installed processors their tokens; add --logits-processors "
                f"{ABSTRACT_DECODING}"
            )

    def _stands_back(self, vllm_config) -> bool:
        named = vllm_config.model_config.logits_processors or ()
        return any(name in (ABSTRACT_DECODING, AbstractDecoding) for name in named)


class OnHost:
    """Requests of the V1 runner. running: index in the batch -> request, of those with a trace."""

    def __init__(self, decoding: AbstractDecoding, device: torch.device):
        self.decoding, self.device = decoding, device
        self.rules = Rules(decoding.tokens, device)
        self.running: dict[int, Running] = {}

    def begin(self, params: SamplingParams, prompt: list[int] | None, output: list[int]):
        """The state of a new request, or of one that comes back with an output."""
        begun = self.decoding.tokens.begun(prompt or ())
        if begun is None:
            return None
        return Running(begun, output, self.decoding.rules_of(params), params.temperature)

    def apply(self, logits: torch.Tensor, context: None) -> torch.Tensor:
        if not self.running:
            return logits
        end_id = self.decoding.tokens.vocab.end_id
        table = np.array([one.state(end_id) for one in self.running.values()])
        tokens, end_at, m_min, m_max = torch.from_numpy(table[:, :4].astype(np.int64)).unbind(1)
        kinds = torch.full((len(logits),), FREE)
        rows = torch.tensor(list(self.running))
        kinds[rows] = self.rules.kinds(tokens, end_at, m_min, m_max)
        return self.rules.edit(
            logits,
            self._on_device(kinds),
            self._column(logits, rows, table[:, 4], 1.0, torch.float32),
            self._column(logits, rows, table[:, 5], 0.0, torch.bool),
        )

    def _column(self, logits, rows, values: np.ndarray, plain: float, dtype):
        """dtype [rows of the batch]; None where all are plain."""
        if (values == plain).all():
            return None
        column = torch.full((len(logits),), plain, dtype=dtype)
        column[rows] = torch.from_numpy(values).to(dtype)
        return self._on_device(column)

    def _on_device(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.to(self.device, non_blocking=True)


class Running:
    """A request of the V1 runner. output: vLLM's own list, which grows."""

    def __init__(self, begun, output: list[int], rules: RequestRules, temperature: float):
        self.before, self.end_at, self.output, self.rules = (
            begun.tokens,
            begun.end_at,
            output,
            rules,
        )
        self.looked_at = 0
        self.trace = stage_temperature(temperature, rules.trace_temperature)
        self.answer = stage_temperature(temperature, rules.answer_temperature)

    def state(self, end_id: int) -> tuple[float, ...]:
        """(tokens behind <beginabstract>, which is <endabstract>, m_min, m_max, scale, greedy)."""
        if self.end_at < 0:
            new = self.output[self.looked_at :]
            if -1 in new:  # a token that is not known yet
                raise RuntimeError(
                    "vLLM did not tell the sampled tokens; report this with its flags"
                )
            if end_id in new:
                self.end_at = self.before + self.looked_at + new.index(end_id)
            self.looked_at = len(self.output)
        temperature = self.trace if self.end_at < 0 else self.answer
        tokens = self.before + len(self.output)
        return tokens, self.end_at, self.rules.m_min, self.rules.m_max, *temperature


class OnDevice:
    """Requests of the V2 runner, by slot. active: bool [slots], on the host, those with a trace."""

    def __init__(self, decoding: AbstractDecoding, requests: LogitsProcRequestState):
        self.decoding, self.requests = decoding, requests
        self.rules = Rules(decoding.tokens, requests.device)
        slots = requests.max_num_reqs
        self.new: dict[int, SamplingParams] = {}
        self.active = np.zeros(slots, bool)
        self.m_max = np.zeros(slots, np.int64)
        self.other_temperature = np.zeros(slots, bool)
        # Per slot: where <beginabstract> is, m_min, m_max; scale and greedy, trace and answer.
        self.bounds = torch.full((slots, 3), -1, device=requests.device)
        self.temperatures = torch.ones((slots, 4), device=requests.device)

    def begin(self) -> None:
        """Looks at the prompts of new requests: the one place that waits for the device."""
        slots, self.new = self.new, {}
        self.active[list(slots)] = False
        self.bounds[list(slots)] = -1
        for slot, params in slots.items():
            prompt_tokens = int(self.requests.prompt_len.np[slot])
            rules = self.decoding.rules_of(params)
            # Behind <beginabstract>: at most a trace, its end and the newline.
            first = max(0, prompt_tokens - rules.m_max - self.rules.newlines - 2)
            prompt = self.requests.all_token_ids.gpu[slot, first:prompt_tokens].tolist()
            begun = self.decoding.tokens.begun(prompt)
            if begun is None:
                continue
            self.active[slot], self.m_max[slot] = True, rules.m_max
            bounds = (prompt_tokens - 1 - begun.tokens, rules.m_min, rules.m_max)
            stages = [
                stage_temperature(params.temperature, stage)
                for stage in (rules.trace_temperature, rules.answer_temperature)
            ]
            self.other_temperature[slot] = stages != [(1.0, False)] * 2
            self.bounds[slot] = torch.tensor(bounds)
            self.temperatures[slot] = torch.tensor(stages).flatten()

    def apply(self, logits: torch.Tensor, context: LogitsContext) -> torch.Tensor:
        here = context.idx_mapping_np
        here = here[self.active[here]]
        if not len(here):
            return logits
        slots = context.expanded_idx_mapping.long()
        begin, m_min, m_max = self.bounds[slots].unbind(1)
        tokens = context.pos - begin
        known, longest = self.requests.all_token_ids.gpu, int(self.m_max[here].max())
        end_at = self.rules.end_at(known, slots, begin, tokens, longest)
        kinds = self.rules.kinds(tokens, end_at, m_min, m_max)
        ours = begin >= 0
        scale = greedy = None
        if self.other_temperature[here].any():
            stage = torch.where(end_at < 0, 0, 2)[:, None]
            of = self.temperatures[slots].gather(1, torch.cat([stage, stage + 1], 1))
            scale = torch.where(ours, of[:, 0], 1.0)
            greedy = ours & (of[:, 1] > 0)
        return self.rules.edit(logits, torch.where(ours, kinds, FREE), scale, greedy)


def check_arguments(params: SamplingParams) -> None:
    """Raises ValueError, one line, for the first argument that cannot be."""
    given = params.extra_args or {}
    names = COUNTS + TEMPERATURES
    for name, value in given.items():
        if name in COUNTS:
            least = 0 if name == "m_min" else 1
            if type(value) is not int or not least <= value <= MOST_TOKENS:
                raise ValueError(
                    f"{name}: expected a whole number of at least {least}, found {value!r}"
                )
        elif name in TEMPERATURES:
            _check_temperature(name, value, params.temperature)
        elif near := difflib.get_close_matches(name, names, 1, 0.8):
            raise ValueError(f"{name}: no such argument; did you mean {near[0]}?")
    if {"m_min", "m_max"} <= given.keys() and given["m_min"] > given["m_max"]:
        raise ValueError(
            f"m_min: expected at most m_max ({given['m_max']}), found {given['m_min']}"
        )


def _check_temperature(name: str, value, request: float) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 100:
        raise ValueError(f"{name}: expected a number from 0 to 100, found {value!r}")
    if value and request < GREEDY_BELOW:
        raise ValueError(
            f"{name}: {value} cannot be had of a request with temperature 0, which is greedy "
            "throughout; give it a temperature, and 0 to the stage that is to be greedy"
        )


def model_rules(vllm_config) -> DecodingRules | None:
    """What the model's generation_config.json says."""
    model = vllm_config.model_config
    return DecodingRules.of(model.try_get_generation_config(), str(model.model))


def trace_tokens(vllm_config, own: DecodingRules | None) -> TraceTokens | None:
    """The tokens that the engine was told, else those of the model's rules, else all of its
    tokenizer. None where it has no abstract tokens, or no tokenizer that can be asked.
    """
    from vllm.tokenizers import get_tokenizer

    model, size = vllm_config.model_config, vllm_config.additional_config.get(CODEBOOK_SIZE)
    if own is not None and size is None:
        vocab = AbstractVocab(tuple(own.codebook_token_ids), own.begin_token_id, own.end_token_id)
        return TraceTokens(vocab, tuple(own.newline_token_ids))
    try:
        tokenizer = get_tokenizer(
            model.tokenizer,
            tokenizer_mode=model.tokenizer_mode,
            trust_remote_code=model.trust_remote_code,
            revision=model.tokenizer_revision,
        )
    except (OSError, ValueError) as error:
        logger.warning("abstract decoding is off: no tokenizer of %s (%s)", model.model, error)
        return None
    return TraceTokens.of(tokenizer, size)
