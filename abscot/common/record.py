"""Records: one type for each kind of JSON file, with one reader and one writer."""

import json
from pathlib import Path
from typing import Any, Self

import pydantic

from abscot.common.errors import UserError
from abscot.common.files import write_json_atomic


class Record(pydantic.BaseModel):
    """What is read back from disk: unknown keys, missing keys and other types are refused."""

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True)

    @classmethod
    def read(cls, path: Path, mend: str = "delete it and run its stage again") -> Self:
        """The record at `path`. Raises UserError with the file, the line or key, and `mend`."""
        try:
            return cls.of(json.loads(path.read_text(encoding="utf-8")), str(path), mend)
        except OSError as error:
            raise UserError(f"{path}: {error.strerror}; {mend}") from None
        except UnicodeDecodeError as error:
            raise UserError(f"{path}: not text (byte {error.start}); {mend}") from None
        except json.JSONDecodeError as error:
            raise UserError(f"{path}:{error.lineno}: not JSON ({error.msg}); {mend}") from None

    @classmethod
    def of(cls, value: Any, where: str, mend: str) -> Self:
        """`value`, as JSON gives it, as this type. Raises UserError with `where`, key, `mend`."""
        try:
            return cls.model_validate(value, strict=True)
        except pydantic.ValidationError as error:
            first = error.errors(include_url=False)[0]
            key = ".".join(map(str, first["loc"])) or cls.__name__
            raise UserError(f"{where}: {key}: {first['msg']}; {mend}") from None

    def write(self, path: Path) -> None:
        """`path` holds either its old content or all of this, whatever is killed."""
        write_json_atomic(path, self.model_dump())
