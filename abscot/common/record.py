"""Records: one type for each kind of JSON file, with one reader and one writer."""

import json
import stat
from pathlib import Path
from typing import Any, Self

import pydantic

from abscot.common.errors import UserError, shown

MOST_BYTES = 1 << 28  # of a file: a train log has 400 a step


class Record(pydantic.BaseModel):
    """What is read back from disk: unknown keys, missing keys, other types and numbers that are not
    finite are refused.
    """

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @classmethod
    def read(cls, path: Path, mend: str = "delete it and run its stage again") -> Self:
        """The record at `path`. Raises UserError with the file, the line or key, and `mend`."""
        return cls.of(read_json(path, mend), str(path), mend)

    @classmethod
    def of(cls, value: Any, where: str, mend: str) -> Self:
        """`value`, as JSON gives it, as this type. Raises UserError with `where`, key, `mend`."""
        try:
            return cls.model_validate(value, strict=True)
        except pydantic.ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            key = shown(".".join(map(str, first["loc"]))) or cls.__name__
            raise _refused(where, f"{key}: {shown(first['msg'], 200)}", mend) from None

    def write(self, path: Path) -> None:
        """`path` holds either its old content or all of this, whatever is killed."""
        from abscot.common.files import write_json_atomic  # files.py reads records itself

        write_json_atomic(path, self.model_dump())


def read_json(path: Path, mend: str = "") -> Any:
    """What the JSON file at `path` holds. Raises UserError with the file, the line and `mend`."""
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):  # to read a pipe would be to wait
            raise _refused(path, "not a file", mend)
        if status.st_size > MOST_BYTES:
            raise _refused(path, f"{status.st_size:,} bytes, which is no file of ours", mend)
        return json.loads(path.read_text(encoding="utf-8"), parse_constant=_not_a_number)
    except OSError as error:
        raise _refused(path, error.strerror or str(error), mend) from None
    except UnicodeDecodeError as error:
        raise _refused(path, f"not text (byte {error.start})", mend) from None
    except json.JSONDecodeError as error:
        raise _refused(f"{path}:{error.lineno}", f"not JSON ({error.msg})", mend) from None
    except RecursionError:
        raise _refused(path, "not JSON of ours (nested too deep)", mend) from None
    except ValueError as error:  # NaN, or an integer of thousands of digits
        raise _refused(path, f"not JSON ({str(error).partition(';')[0]})", mend) from None


def _not_a_number(name: str) -> None:
    raise ValueError(f"{name} is no JSON number")


def _refused(where: Path | str, what: str, mend: str) -> UserError:
    return UserError("; ".join(filter(None, (f"{where}: {what}", mend))))
