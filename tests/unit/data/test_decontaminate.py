"""Evaluation problems are found in prompts."""

from abscot.data.decontaminate import Decontaminator
from kit.examples import chat, example, reason

PROBLEM = (
    "What is the smallest positive perfect cube that can be written as the sum of three "
    "consecutive integers?"
)


def test_evaluation_problems_are_found_exact_wrapped_and_half():
    index = Decontaminator([PROBLEM, "Compute $1+1$."], 0.5)
    assert index.overlap([PROBLEM.upper().replace("?", " ?!")]).startswith("equals")
    assert index.overlap(["compute 1 + 1"]).startswith("equals")  # under 5 words: only exact
    assert not index.overlap(["Compute 1+1 and then 2"])
    assert "14 of 14" in index.overlap([f"Solve this carefully.\n{PROBLEM}\nShow your work."])
    words = PROBLEM.split()
    assert index.overlap([" ".join(words[:11])]).startswith("7 of 14")  # at the limit
    assert not index.overlap([" ".join(words[:10])])
    assert (
        reason(chat(f"u:{PROBLEM}", "a:<think>reasons</think>27"), problems=[PROBLEM])
        == "in_evaluation"
    )


def test_decontamination_reads_user_turns_and_not_the_system_prompt():
    row = chat(f"s:{PROBLEM}", "u:q", "a:<think>reasons</think>27")
    assert example(row, problems=[PROBLEM]).cot == "reasons"
