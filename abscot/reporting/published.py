"""Published numbers."""

# MATH-500 accuracy and tokens of Qwen3-4B.
PAPER_VERBAL, PAPER_WARM_UP = ("83.2", "1087"), ("86.2", "168")


PUBLISHED = """\
| | from | accuracy, % | mean tokens |
|:--|:--|--:|--:|
| verbal CoT | paper | 83.2 | 1087 |
| Abstract-CoT, warm-up (600k rows, full fine-tune, 3 epochs per phase) | paper | 86.2 | 168 |
| verbal CoT | public reproduction | 84.6 | 1045 |
| Abstract-CoT, warm-up (5k rows, LoRA, 1 epoch a phase) | public reproduction | 72.0 | 432 |"""


PAPER = (
    "For reference, MATH-500 with Qwen3-4B. Paper (arXiv 2604.22709): verbal CoT 83.2% with 1087 "
    "tokens, Abstract-CoT warm-up 86.2% with 168 (600k rows, full fine-tune). Public "
    "reproduction: verbal CoT 84.6% with 1045, Abstract-CoT 72.0% with 432 (5k rows, LoRA). "
    "Another model or benchmark is not comparable."
)
