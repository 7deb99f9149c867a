"""The card's vLLM snippet runs as published."""

import pytest

from kit.cards import check_trace, run_snippet, snippet

pytestmark = pytest.mark.vllm


def test_the_vllm_snippet_runs_as_published(published, tmp_path):
    trace, _ = run_snippet(
        snippet(published, "vLLM, from token ids"), tmp_path, VLLM_CPU_KVCACHE_SPACE="1"
    )
    check_trace(trace)
