"""The card's ways by vLLM run as published."""

import shlex

import pytest

from abscot.pipeline.serve import vllm_serve
from kit.cards import check_trace, run_snippet, snippet
from kit.serving import running

pytestmark = pytest.mark.vllm

CACHE = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_LOGGING_LEVEL": "ERROR"}


def test_the_ways_by_vllm_run_as_published_and_say_the_same(published, tmp_path):
    """Greedily: served, and in two stages from token ids."""
    two_stages = run_snippet(snippet(published, "vLLM, from token ids"), tmp_path, **CACHE)
    check_trace(two_stages[0])
    served = "vLLM, served"
    words = shlex.split(snippet(published, served, "bash"))
    assert words[:2] == ["vllm", "serve"]  # a command that vllm-cpu lacks
    with running([*vllm_serve(), *words[2:]], **CACHE) as url:
        source = snippet(published, served)
        assert "http://localhost:8000/v1" in source
        asked = run_snippet(source.replace("http://localhost:8000/v1", url), tmp_path)
    assert asked == two_stages and asked[1]
