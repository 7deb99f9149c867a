"""The card's ways by vLLM run as published."""

import re
import shlex

import pytest

from abscot.method.vocab import codebook_tokens
from abscot.pipeline.serve import vllm_serve
from kit.cards import check_trace, run_snippet, snippet
from kit.serving import running

pytestmark = pytest.mark.vllm

CACHE = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_LOGGING_LEVEL": "ERROR"}


def test_the_two_stages_run_as_published(published, tmp_path):
    trace, _ = run_snippet(snippet(published, "vLLM, from token ids"), tmp_path, **CACHE)
    check_trace(trace)


def test_the_served_model_runs_as_published(published, tmp_path):
    served = "vLLM, served"
    words = shlex.split(snippet(published, served, "bash"))
    assert words[:2] == ["vllm", "serve"]  # a command that vllm-cpu lacks
    with running([*vllm_serve(), *words[2:]], **CACHE) as url:
        source = snippet(published, served)
        assert "http://localhost:8000/v1" in source
        source = source.replace("http://localhost:8000/v1", url)
        trace, answer = run_snippet(source, tmp_path)
    check_trace(trace)
    assert answer and not set(codebook_tokens()) & set(re.findall("<[^>]*>", answer))
