"""The names of the tables that a recipe chooses from; tests hold both to each other."""

from typing import Literal

PhaseName = Literal["A", "B", "sft_no_cot", "sft_cot", "pause"]
BaselineName = Literal["sft_no_cot", "sft_cot", "pause"]
ModeName = Literal[
    "verbal",
    "thinking",
    "no_cot",
    "abstract",
    "abstract_permuted",
    "abstract_swapped",
    "abstract_truncated_32",
    "abstract_truncated_48",
    "abstract_truncated_64",
    "pause",
    "channel",
]
ScheduleName = Literal["paper", "grounded"]
TraceSource = Literal["random", "grounded", "model", "model_with_cot"]
BenchmarkName = Literal[
    "world", "math500", "gsm8k", "aime24", "aime25", "gpqa_diamond", "hotpotqa", "alpaca_eval"
]
