"""The abstract vocabulary: its tokens, the tokenizer and embedding extension, and the keyed random
draws.
"""

import hashlib
from dataclasses import dataclass

import numpy as np

from abscot.config import ModelConfig, UserError

BEGIN, END = "<beginabstract>", "<endabstract>"
TABLE_MULTIPLE = 128  # rows of an embedding table that has to grow


def codebook_tokens(size: int = 64) -> list[str]:
    """`<TOKEN_A>` .. `<TOKEN_Z>`, `<TOKEN_AA>` .. : spreadsheet column names; the 64th is
    `<TOKEN_BL>`.
    """
    names = []
    for index in range(1, size + 1):
        letters = ""
        while index:
            index, remainder = divmod(index - 1, 26)
            letters = chr(ord("A") + remainder) + letters
        names.append(f"<TOKEN_{letters}>")
    return names


@dataclass(frozen=True)
class AbstractVocab:
    """Token ids of V_abs and its delimiters in an extended tokenizer."""

    codebook_ids: tuple[int, ...]
    begin_id: int
    end_id: int

    @property
    def allowed_ids(self) -> list[int]:
        """What may be sampled after `<beginabstract>`: V_abs and `<endabstract>`."""
        return [*self.codebook_ids, self.end_id]

    @classmethod
    def of(cls, tokenizer, size: int = 64) -> "AbstractVocab":
        """Raises UserError when the tokenizer has not been extended (by `launch/extend.py`)."""
        ids = [_single_id(tokenizer, token) for token in (*codebook_tokens(size), BEGIN, END)]
        return cls(tuple(ids[:-2]), ids[-2], ids[-1])


def _single_id(tokenizer, token: str) -> int:
    token_id = tokenizer.convert_tokens_to_ids(token)
    if token_id is None or token_id == tokenizer.unk_token_id:
        raise UserError(
            f"{tokenizer.name_or_path}: no token {token}; make an extended model with "
            "launch/extend.py"
        )
    return token_id


def extend_tokenizer(tokenizer, size: int = 64) -> AbstractVocab:
    """Adds the abstract tokens as special tokens (never split, never merged), in place."""
    from transformers import AddedToken

    new = [
        AddedToken(t, special=True, normalized=False) for t in (*codebook_tokens(size), BEGIN, END)
    ]
    tokenizer.add_tokens(new, special_tokens=True)
    return AbstractVocab.of(tokenizer, size)


def extend_embeddings(model, vocab: AbstractVocab, config: ModelConfig, seed: int) -> int:
    """Starts the new rows in the rows the table already has; grows it (to a multiple of 128) only
    where it must.

    `mean`: mean of the rows below the new ones plus N(0, std); `normal`: N(0, std); `zero`. Tied
    tables stay tied; an untied head gets the same treatment from its own rows. Returns the number
    of rows of the table.
    """
    import torch

    first = min(*vocab.codebook_ids, vocab.begin_id, vocab.end_id)
    last = max(*vocab.codebook_ids, vocab.begin_id, vocab.end_id)
    rows = model.get_input_embeddings().weight.shape[0]
    if last >= rows:
        model.resize_token_embeddings(
            last + 1, pad_to_multiple_of=TABLE_MULTIPLE, mean_resizing=False
        )
    tables = [model.get_input_embeddings().weight]
    if not model.config.tie_word_embeddings:
        tables.append(model.get_output_embeddings().weight)
    noise = torch.from_numpy(
        rng("new_rows", seed).standard_normal((last + 1 - first, tables[0].shape[1]))
    )
    with torch.no_grad():
        for table in tables:
            fresh = (
                noise.float() * config.new_rows_std
                if config.new_rows != "zero"
                else torch.zeros(noise.shape)
            )
            if config.new_rows == "mean":
                fresh = fresh + table[:first].float().mean(0)
            table[first : last + 1] = fresh.to(table.dtype)
    return model.get_input_embeddings().weight.shape[0]


def rng(*parts) -> np.random.Generator:
    """A generator keyed by what it is for, e.g. (seed, round, phase, example id): never by who
    draws when.
    """
    return np.random.default_rng(int.from_bytes(_digest(parts)[:16], "little"))


def keyed_seed(*parts) -> int:
    """A 31-bit seed keyed the same way, for samplers that take an integer."""
    return int.from_bytes(_digest(parts)[:4], "little") & 0x7FFFFFFF


def _digest(parts) -> bytes:
    return hashlib.sha256("\x1f".join(map(str, parts)).encode()).digest()
