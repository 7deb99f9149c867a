"""Abstract trace and answer in one call of `generate`; needs torch and transformers alone.

    inputs = tokenizer.apply_chat_template(
        messages, add_generation_prompt=True, return_dict=True, return_tensors="pt"
    )
    model.generate(**inputs, custom_generate=MODEL, trust_remote_code=True)

MODEL is the directory or repository that holds this file as custom_generate/generate.py. Behind a
prompt that ends in `<beginabstract>`, as the chat template writes it, come m_min to m_max codebook
tokens, `<endabstract>`, a newline and the answer.
"""

import torch
from transformers import (
    LogitsProcessor,
    LogitsProcessorList,
    StoppingCriteria,
    StoppingCriteriaList,
)


def generate(
    inputs=None,
    generation_config=None,
    *,
    model,
    m_min=None,
    m_max=None,
    trace_temperature=None,
    answer_temperature=None,
    max_new_tokens=None,
    logits_processor=None,
    stopping_criteria=None,
    **kwargs,
):
    """What `model.generate` returns: the prompts and all that was generated, trace included.

    inputs, or input_ids: int64 [rows, tokens], padded on the left. A row that does not end in
    `<beginabstract>` is decoded freely. m_min, m_max: codebook tokens of a trace.
    trace_temperature: 0 is greedy; a trace is drawn from all tokens that are allowed, top_k and
    top_p are the answer's. These three default to generation_config.json, key `abstract`.
    answer_temperature: 0 is greedy; by default do_sample and temperature hold, as ever.
    max_new_tokens: of the answer, whatever the trace took; by default what generation_config says,
    else as many as the model's window has room for. All other arguments are those of `generate`.

    Raises ValueError for bounds of a trace that cannot be, and for a beam search.
    """
    config = generation_config or model.generation_config
    ids = kwargs.get("input_ids") if inputs is None else inputs
    if ids is None:
        raise ValueError("input_ids: expected the token ids of the prompts")
    if (kwargs.get("num_beams") or config.num_beams or 1) > 1:
        raise ValueError("num_beams: expected 1, since a trace is decoded token by token")
    given = {"m_min": m_min, "m_max": m_max, "trace_temperature": trace_temperature}
    rules = _rules(model, config, {k: v for k, v in given.items() if v is not None})
    stages = _Stages(rules, ids.shape[1])
    trace_tokens = stages.most_before_answer if stages.traced(ids).any() else 0
    if max_new_tokens is None:
        window = model.config.max_position_embeddings - ids.shape[1] - trace_tokens
        max_new_tokens = config.max_new_tokens or window
    if max_new_tokens < 1:
        raise ValueError(f"max_new_tokens: expected 1 or more, found {max_new_tokens}")
    if answer_temperature is not None:
        kwargs["do_sample"] = answer_temperature > 0
    if answer_temperature:
        kwargs["temperature"] = answer_temperature
    # The class's: from_pretrained may have put this function in place of the model's own.
    return type(model).generate(
        model,
        inputs,
        generation_config=generation_config,
        logits_processor=LogitsProcessorList([*(logits_processor or []), _Decode(stages)]),
        stopping_criteria=StoppingCriteriaList(
            [*(stopping_criteria or []), _AnswerEnds(stages, max_new_tokens)]
        ),
        max_new_tokens=trace_tokens + max_new_tokens,
        **kwargs,
    )


def _rules(model, config, given):
    """generation_config.json's rules, with those that were given in their place."""
    rules = getattr(config, "abstract", None) or getattr(model.generation_config, "abstract", None)
    if rules is None:
        raise ValueError("generation_config.json: no key `abstract`, which says what a trace is")
    rules = {**rules, **given}
    m_min, m_max = rules["m_min"], rules["m_max"]
    if not (type(m_min) is type(m_max) is int and 0 <= m_min <= m_max and m_max > 0):
        raise ValueError(
            f"m_min, m_max: expected whole numbers, 0 <= m_min <= m_max and m_max >= 1, found "
            f"{m_min!r} and {m_max!r}"
        )
    if not 0 <= rules["trace_temperature"] < float("inf"):
        raise ValueError(
            f"trace_temperature: expected 0 or more, found {rules['trace_temperature']!r}"
        )
    return rules


class _Stages:
    """Where each row stands, from its ids alone. prompt_tokens: of a prompt, padding included."""

    def __init__(self, rules, prompt_tokens):
        self.rules, self.prompt_tokens = rules, prompt_tokens
        self.newline = rules["newline_token_ids"]
        self.most_before_answer = rules["m_max"] + 1 + len(self.newline)

    def traced(self, input_ids):
        """bool [rows]: does the prompt open a trace?"""
        return input_ids[:, self.prompt_tokens - 1] == self.rules["begin_token_id"]

    def since_end(self, input_ids):
        """int64 [rows]: tokens from `<endabstract>` on; 0 inside a trace."""
        ends = input_ids[:, self.prompt_tokens :] == self.rules["end_token_id"]
        return (ends.cumsum(1) > 0).sum(1)

    def answer_tokens(self, input_ids):
        """int64 [rows]: tokens of the answer; below 0 before it."""
        behind = self.since_end(input_ids) - 1 - len(self.newline)
        made = input_ids.shape[1] - self.prompt_tokens
        return torch.where(self.traced(input_ids), behind, made)


class _Decode(LogitsProcessor):
    """Scores of the next token, [rows, vocabulary]. Trace, `<endabstract>` and newline leave one
    token: what comes behind this processor (temperature, top_k, top_p) is for answers.
    """

    def __init__(self, stages):
        self.stages, self.rules = stages, stages.rules

    def __call__(self, input_ids, scores):
        rules, traced = self.rules, self.stages.traced(input_ids)
        since_end = self.stages.since_end(input_ids)
        only = torch.full_like(since_end, -1)  # the one token of a row; -1: any
        if (inside := traced & (since_end == 0)).any():
            made = input_ids.shape[1] - self.stages.prompt_tokens
            only[inside] = self._of_trace(scores[inside], made)
        for place, token in enumerate(self.stages.newline, 1):
            only[traced & (since_end == place)] = token
        abstract = torch.zeros_like(scores[0], dtype=torch.bool)
        abstract[[rules["begin_token_id"], rules["end_token_id"], *rules["codebook_token_ids"]]] = 1
        scores = scores.masked_fill(traced[:, None] & abstract, -torch.inf)
        forced = torch.full_like(scores, -torch.inf).scatter(1, only.clamp(min=0)[:, None], 0.0)
        return torch.where(only[:, None] < 0, scores, forced)

    def _of_trace(self, scores, made):
        """int64 [rows]: the token behind `made` tokens of a trace."""
        rules = self.rules
        allowed = rules["codebook_token_ids"] if made < rules["m_max"] else []
        if made >= rules["m_min"]:
            allowed = [*allowed, rules["end_token_id"]]
        kept = torch.full_like(scores, -torch.inf)
        kept[:, allowed] = scores[:, allowed]
        if rules["trace_temperature"] == 0:
            return kept.argmax(1)
        odds = (kept / rules["trace_temperature"]).softmax(1)
        return torch.multinomial(odds, 1)[:, 0]


class _AnswerEnds(StoppingCriteria):
    """Each row after max_new_tokens of its answer."""

    def __init__(self, stages, max_new_tokens):
        self.stages, self.max_new_tokens = stages, max_new_tokens

    def __call__(self, input_ids, scores, **kwargs):
        return self.stages.answer_tokens(input_ids) >= self.max_new_tokens
