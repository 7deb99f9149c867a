"""The abstract vocabulary: its tokens, and the tokenizer that knows them."""

from dataclasses import dataclass

from abscot.common.errors import UserError

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


def abstract_tokens(size: int = 64) -> list[str]:
    """All tokens that an extension adds: the codebook and its delimiters."""
    return [*codebook_tokens(size), BEGIN, END]


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

    @property
    def new_ids(self) -> list[int]:
        """Every id that the extension added, ascending."""
        return sorted([*self.codebook_ids, self.begin_id, self.end_id])

    @classmethod
    def of(cls, tokenizer, size: int = 64) -> "AbstractVocab":
        """Raises UserError when the tokenizer has not been extended (by `launch/extend.py`)."""
        ids = [_single_id(tokenizer, token) for token in abstract_tokens(size)]
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

    new = [AddedToken(t, special=True, normalized=False) for t in abstract_tokens(size)]
    tokenizer.add_tokens(new, special_tokens=True)
    return AbstractVocab.of(tokenizer, size)


def load_tokenizer(directory, trust_remote_code: bool = False):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(directory, trust_remote_code=trust_remote_code)
