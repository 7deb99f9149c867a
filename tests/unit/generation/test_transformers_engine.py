"""A hidden CoT is hidden as in training."""

import dataclasses

import torch

from abscot.generation.requests import HiddenSpan, Request, Sampling
from abscot.generation.transformers_engine import TransformersEngine
from abscot.method import masks
from abscot.method.phases import BOTTLENECK


def test_a_hidden_cot_is_hidden_as_in_the_one_pass_of_training(tiny_run):
    """Greedy decoding in the KV cache, rows of unequal length in one batch, against whole passes
    with the dense mask.
    """
    recipe, run, _ = tiny_run
    engine = TransformersEngine(run.base, dataclasses.replace(recipe.inference, max_num_seqs=4))
    generator = torch.Generator().manual_seed(0)
    lengths = [(5, 9, 4), (7, 2, 6), (3, 12, 3), (6, 0, 5)]  # X, C, Z
    requests, prompts = [], []
    for x, c, z in lengths:
        prompt = torch.randint(
            10, 250, (x + c + z + 1,), generator=generator
        ).tolist()  # and a newline
        prompts.append(prompt)
        requests.append(
            Request(prompt, Sampling(max_tokens=5), hidden=HiddenSpan(x, x + c, x + c + z))
        )
    found = dict(engine.stream(requests))
    for index, ((x, c, z), prompt) in enumerate(zip(lengths, prompts, strict=True)):
        tokens = list(prompt)
        for _ in range(5):
            segment = torch.tensor(
                [[1] * x + [2] * c + [3] * z + [4] * (len(tokens) - x - c - z)], dtype=torch.int8
            )
            mask = masks.dense_mask(
                torch.zeros_like(segment, dtype=torch.int32), segment, BOTTLENECK
            )[None, None]
            with torch.no_grad():
                logits = engine.lm(
                    torch.tensor([tokens]), attention_mask=mask, use_cache=False
                ).logits
            scores = logits[0, -1].clone()
            scores[engine.traces.vocab.ids] = -torch.inf  # an answer has no abstract tokens
            tokens.append(int(scores.argmax()))
        assert found[index][0].tokens == tokens[len(prompt) :]
