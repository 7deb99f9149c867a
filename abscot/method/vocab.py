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


def token_name(token: str) -> str:
    """`BL` of `<TOKEN_BL>`."""
    return token.removeprefix("<TOKEN_").removesuffix(">")


def abstract_tokens(size: int = 64) -> list[str]:
    """The delimiters and the codebook, in the order in which an extension adds them: that of the
    published checkpoints, whose ids it then has.
    """
    return [BEGIN, END, *codebook_tokens(size)]


@dataclass(frozen=True)
class AbstractVocab:
    """Token ids of V_abs and its delimiters in an extended tokenizer, in whatever order."""

    codebook_ids: tuple[int, ...]
    begin_id: int
    end_id: int

    @property
    def allowed_ids(self) -> list[int]:
        """What may be sampled after `<beginabstract>`: V_abs and `<endabstract>`."""
        return [*self.codebook_ids, self.end_id]

    @property
    def ids(self) -> list[int]:
        """Every id, ascending."""
        return sorted([*self.codebook_ids, self.begin_id, self.end_id])

    @classmethod
    def of(cls, tokenizer, size: int = 64) -> "AbstractVocab":
        """Raises UserError when the tokenizer has not been extended (by `launch/extend.py`)."""
        if missing := missing_tokens(tokenizer, size):
            raise UserError(
                f"{tokenizer.name_or_path}: no token {missing[0]}; make an extended model with "
                "launch/extend.py"
            )
        begin, end, *codebook = tokenizer.convert_tokens_to_ids(abstract_tokens(size))
        return cls(tuple(codebook), begin, end)


def missing_tokens(tokenizer, size: int = 64) -> list[str]:
    """The abstract tokens that the tokenizer does not have, in the order of `abstract_tokens`."""
    known = tokenizer.get_vocab()
    return [token for token in abstract_tokens(size) if token not in known]


def codebook_size_of(tokenizer) -> int:
    """How many codebook tokens the tokenizer has, counted without a gap from `<TOKEN_A>` on."""
    known, size = tokenizer.get_vocab(), 0
    while codebook_tokens(size + 1)[-1] in known:
        size += 1
    return size


def extend_tokenizer(tokenizer, size: int = 64) -> AbstractVocab:
    """Adds the abstract tokens as special tokens (never split, never merged), in place. One that is
    there keeps its id.
    """
    from transformers import AddedToken

    new = [AddedToken(t, special=True, normalized=False) for t in abstract_tokens(size)]
    tokenizer.add_tokens(new, special_tokens=True)
    return AbstractVocab.of(tokenizer, size)


def load_tokenizer(directory, trust_remote_code: bool = False):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(directory, trust_remote_code=trust_remote_code)
