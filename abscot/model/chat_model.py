"""What an exported model carries for tools that know nothing of this project: a chat template that
opens the trace, the rules by which it is decoded, and code that does it inside `generate`.

Read inside every vLLM process: neither torch nor transformers is imported here.
"""

import copy
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Self

from pydantic import Field, model_validator

from abscot.common.files import write_json_atomic
from abscot.common.record import Record, read_json
from abscot.data.chat import ChatTokenizer
from abscot.method.sequence import ANSWER_OPENING
from abscot.method.vocab import BEGIN, AbstractVocab
from abscot.recipe.bounds import Amount, Few, Some, Temperature, ascending
from abscot.recipe.schema import TraceConfig

TokenId = Annotated[int, Field(ge=0, lt=2**31)]

# The hub's convention: `generate(custom_generate=DIRECTORY, trust_remote_code=True)` runs it.
CODE, CODE_FILE = Path(__file__).with_name("custom_generate.py"), "custom_generate/generate.py"

# Around the base's own template. Lines that are a block or a comment write nothing, and leave what
# follows at the start of a line: blanks there mean something to Jinja.
PREFIX = f"""\
{{# A generation prompt ends in {BEGIN}; with abstract=false it is that of a direct answer. #}}
{{% if add_generation_prompt and (enable_thinking is not defined or abstract | default(true)) %}}
{{% set enable_thinking = false %}}
{{% endif %}}
"""
# An expression: a block would take the blanks in front of it away.
SUFFIX = f"{{{{ '{BEGIN}' if add_generation_prompt and abstract | default(true) else '' }}}}"


class DecodingRules(Record):
    """The key `abstract` of a generation_config.json: how a trace is decoded behind a prompt that
    ends in begin_token_id. m_min .. m_max of codebook_token_ids, end_token_id (not before m_min,
    forced at m_max), newline_token_ids (forced); then the answer, without any of the first three.

    trace_temperature: 0 is greedy. The answer is decoded as the rest of the file says.
    """

    KEY: ClassVar[str] = "abstract"
    FILE: ClassVar[str] = "generation_config.json"

    begin_token_id: TokenId
    end_token_id: TokenId
    codebook_token_ids: Some[TokenId]
    newline_token_ids: Some[TokenId]
    m_min: Amount
    m_max: Few
    trace_temperature: Temperature

    @model_validator(mode="after")
    def _can_be_decoded(self) -> Self:
        ascending(m_min=self.m_min, m_max=self.m_max)
        ids = [self.begin_token_id, self.end_token_id, *self.codebook_token_ids]
        if len(set(ids)) < len(ids) or set(ids) & set(self.newline_token_ids):
            raise ValueError("expected ids that are all different")
        return self

    @classmethod
    def of_tokenizer(cls, tokenizer, codebook_size: int, traces: TraceConfig) -> Self:
        """traces: how traces are asked for. Raises UserError for a tokenizer without the tokens."""
        vocab = AbstractVocab.of(tokenizer, codebook_size)
        return cls(
            begin_token_id=vocab.begin_id,
            end_token_id=vocab.end_id,
            codebook_token_ids=list(vocab.codebook_ids),
            newline_token_ids=ChatTokenizer(tokenizer).encode([ANSWER_OPENING])[0].tolist(),
            m_min=traces.m_min,
            m_max=traces.m_max,
            trace_temperature=traces.temperature,
        )

    @classmethod
    def of(
        cls, generation_config: dict[str, Any], where: str = FILE, mend: str = ""
    ) -> Self | None:
        """The rules in a whole generation config; None where it has none. Raises UserError with
        `where`, the key and `mend` for rules that are not such.
        """
        rules = generation_config.get(cls.KEY)
        mend = mend or f"remove the key {cls.KEY}, or export the model again"
        return None if rules is None else super().of(rules, f"{where}: {cls.KEY}", mend)

    def write(self, path: Path) -> None:
        """Puts the rules into the generation config at `path`; what else it says stays."""
        config = read_json(path)
        config.pop("_from_model_config", None)  # transformers would drop keys that it does not know
        write_json_atomic(path, {**config, self.KEY: self.model_dump()})


@dataclass(frozen=True)
class ChatModel:
    """The tokenizer and the rules that go along with weights."""

    tokenizer: Any
    rules: DecodingRules

    def write(self, directory: Path) -> None:
        """Completes a directory of weights that has a generation_config.json."""
        self._write_tokenizer(directory)
        self.rules.write(directory / DecodingRules.FILE)
        (directory / CODE_FILE).parent.mkdir(exist_ok=True)
        shutil.copyfile(CODE, directory / CODE_FILE)

    def _write_tokenizer(self, directory: Path) -> None:
        """The tokenizer, with each of its templates opening the trace."""
        tokenizer = copy.deepcopy(self.tokenizer)
        named = tokenizer.chat_template
        tokenizer.chat_template = (
            {name: opening_trace(template) for name, template in named.items()}
            if isinstance(named, dict)
            else opening_trace(named)
        )
        tokenizer.save_pretrained(directory)


def opening_trace(template: str) -> str:
    """A chat template that ends a generation prompt in <beginabstract>, unless it is given
    abstract=False; other conversations are as `template` writes them. One that does so already
    stays as it is.
    """
    if template.startswith(PREFIX):
        return template
    text = template.removesuffix("\n")  # Jinja drops a line break at the end, and there alone
    return PREFIX + text + SUFFIX + template[len(text) :]
