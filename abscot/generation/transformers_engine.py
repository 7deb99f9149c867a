"""The requests by transformers' generate: for tests, debugging and masks that vLLM lacks."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from abscot.common.gpus import on_gpu
from abscot.common.hardware import inference_dtype
from abscot.generation.decoding import FREE, Rules, TraceTokens
from abscot.generation.requests import (
    Completion,
    Request,
    Running,
    Sampling,
    Stepped,
    untold,
)
from abscot.method.vocab import load_tokenizer
from abscot.model.handover import check_files
from abscot.model.shape import max_position
from abscot.recipe.schema import InferenceConfig


class TransformersEngine:
    """The same requests by `transformers` generate: for tests and debugging, where vLLM is not
    installed.

    The rules are the same. Seeds hold for a batch, not for a row:
    sampled traces repeat only with the same requests in the same order, and are not vLLM's.
    """

    def __init__(self, model: Path, config: InferenceConfig, codebook_size: int | None = None):
        import torch
        from transformers import AutoModelForCausalLM

        check_files(Path(model))
        self.window_tokens = min(config.max_model_len_tokens, max_position(model))
        self.batch_size = config.max_num_seqs
        self.device = "cuda" if on_gpu() else "cpu"
        dtype = getattr(torch, inference_dtype(config.dtype))
        lm = AutoModelForCausalLM.from_pretrained(model, dtype=dtype, use_safetensors=True)
        self.lm = lm.to(self.device).eval()
        self.traces = TraceTokens.of(load_tokenizer(model), codebook_size)
        self.rules = self.traces and Rules(self.traces, self.device)

    def stream(
        self, requests: Sequence[Request], stepped: Stepped = untold
    ) -> Iterator[tuple[int, list[Completion]]]:
        """Like VllmEngine.stream; a batch holds neighbouring requests with the same
        sampling rules, and is a step.
        """
        computed = 0
        running = [Running(index, request) for index, request in enumerate(requests)]
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
            computed += sum(len(r.request.prompt) for r in batch)
            for one, completion in zip(batch, generate([r.request for r in batch]), strict=True):
                one.stages.append(completion)
                following = one.request.next_stage(completion)
                if following is None:
                    running.remove(one)
                    yield one.index, one.stages
                else:
                    one.request = following
            stepped(computed)

    def surprisals(
        self,
        texts: Sequence[Sequence[int]],
        positions: Sequence[int],
        stepped: Stepped = untold,
    ) -> list[list[float]]:
        """See requests.Engine."""
        import torch

        found = []
        for start in range(0, len(texts), self.batch_size):
            asked = list(positions[start : start + self.batch_size])
            with torch.inference_mode():
                log_p = self._log_p(texts[start : start + self.batch_size], max(asked))
            found += [(-row[-n:]).tolist() for row, n in zip(log_p, asked, strict=True)]
            stepped(sum(map(len, texts[: len(found)])))
        return found

    def _log_p(self, texts: Sequence[Sequence[int]], positions: int):
        """fp32 [texts, positions]: log p of the last tokens of each text."""
        ids, mask = self._left_padded(texts)
        hidden = self.lm.model(
            ids, attention_mask=mask, position_ids=_positions(mask)
        ).last_hidden_state[:, -positions - 1 : -1]
        log_p = self.lm.get_output_embeddings()(hidden).float().log_softmax(-1)
        return log_p.gather(-1, ids[:, -positions:, None])[..., 0]

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
            logits_processor=LogitsProcessorList([self._keep_the_rules(requests, longest)]),
            **(chosen if sampling.temperature > 0 else {"do_sample": False}),
        )
        return [
            _until_stop(row, len(r.prompt), sampling)
            for row, r in zip(out[:, longest:].tolist(), requests, strict=True)
        ]

    def _keep_the_rules(self, requests: list[Request], columns: int) -> Callable:
        """A logits processor of a batch of left-padded prompts, `columns` wide."""
        import torch

        begun = [self.traces and self.traces.begun(r.prompt) for r in requests]
        rows = [row for row, one in enumerate(begun) if one]
        if not rows:
            return lambda ids, scores: scores
        of = torch.tensor(rows, device=self.device)
        begin = columns - 1 - torch.tensor([begun[row].tokens for row in rows], device=self.device)
        m_min, m_max = requests[0].sampling.m_min or 0, requests[0].sampling.m_max or columns

        def process(ids, scores):
            tokens = ids.shape[1] - 1 - begin
            end_at = self.rules.end_at(ids, of, begin, tokens, m_max)
            kinds = torch.full((len(ids),), FREE, device=ids.device)
            kinds[of] = self.rules.kinds(tokens, end_at, m_min, m_max)
            return self.rules.edit(scores, kinds)

        return process

    def _generate_hidden(self, requests: list[Request]) -> list[Completion]:
        """Greedy, in one KV cache: what stands before `behind` is computed in full sight, then the
        hidden keys are masked for good. Positions run on, as in the one pass of training.
        """
        import torch

        sampling = requests[0].sampling
        assert sampling.temperature == 0, "behind the bottleneck decoding is greedy"
        seen = [r.prompt[: r.hidden.behind] for r in requests]
        behind = [list(r.prompt[r.hidden.behind :]) for r in requests]  # all as long: a newline
        with torch.inference_mode():
            cache, mask = self._prefill(seen)
            next_position = mask.sum(1, keepdim=True)  # before anything is masked
            self._hide(mask, requests)
            new = torch.tensor(behind, device=self.device)
            tokens = self._decode_greedily(new, next_position, mask, cache, sampling)
        return [
            _until_stop(row, len(r.prompt), sampling)
            for row, r in zip(tokens, requests, strict=True)
        ]

    def _prefill(self, prompts: list[Sequence[int]]):
        """(KV cache, mask) of left-padded prompts; positions count from a prompt's first token."""
        ids, mask = self._left_padded(prompts)
        computed = self.lm.model(
            ids, attention_mask=mask, position_ids=_positions(mask), use_cache=True
        )
        return computed.past_key_values, mask

    def _hide(self, mask, requests: list[Request]) -> None:
        """Masks the hidden keys of each prompt, in place."""
        for row, hidden in enumerate(r.hidden for r in requests):
            padding = mask.shape[1] - hidden.behind
            mask[row, padding + hidden.start : padding + hidden.stop] = 0

    def _decode_greedily(
        self, new, next_position, mask, cache, sampling: Sampling
    ) -> list[list[int]]:
        """Tokens of each row, until all rows have stopped. new: int64 [rows, tokens to feed first];
        next_position: int64 [rows, 1]; mask: int64 [rows, keys in the cache].
        """
        import torch

        stops = torch.tensor(sampling.stop_ids, device=self.device)
        ended, made = torch.zeros_like(mask[:, 0], dtype=torch.bool), []
        while len(made) < sampling.max_tokens and not ended.all():
            mask = torch.cat([mask, torch.ones_like(new)], 1)
            positions = next_position + torch.arange(new.shape[1], device=self.device)
            logits = self.lm(
                new, attention_mask=mask, position_ids=positions, past_key_values=cache
            ).logits
            next_position = next_position + new.shape[1]
            scores = logits[:, -1]
            if self.rules:  # an answer
                scores = self.rules.edit(
                    scores, torch.full_like(ended, self.rules.answer, dtype=int)
                )
            new = scores.argmax(-1, keepdim=True)
            made.append(new)
            ended |= torch.isin(new[:, 0], stops)
        return torch.cat(made, 1).tolist()

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


def _positions(mask):
    """int64 [prompts, tokens]: counted from the first token of each left-padded prompt."""
    return (mask.cumsum(1) - 1).clamp(min=0)


def _until_stop(tokens: list[int], prompt_tokens: int, sampling: Sampling) -> Completion:
    """Cuts a row of a batch behind its own stop token; what follows is padding."""
    end = next((i for i, token in enumerate(tokens) if token in sampling.stop_ids), None)
    if end is None:
        return Completion(tokens, "length", prompt_tokens, 0)
    return Completion(tokens[: end + 1], "stop", prompt_tokens, 0)
