"""A tokenizer of so many letters."""

from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast


def tokenizer_of(size):
    letters = {chr(0x4E00 + i): i for i in range(size)}
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.BPE(letters, [])), eos_token="<|im_end|>"
    )
