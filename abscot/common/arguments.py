"""Numbers on a command line."""

import argparse
import re
from collections.abc import Callable


def whole_number(least: int = 1, most: int = 10**9) -> Callable[[str], int]:
    """What argparse calls to read one, both bounds included: ASCII digits, where int() would also
    take 1_000, spaces and the digits of every script.
    """

    def read(text: str) -> int:
        if re.fullmatch(r"-?[0-9]{1,10}", text) and least <= int(text) <= most:
            return int(text)
        shown = repr(text[:40]) + " .." * (len(text) > 40)
        raise argparse.ArgumentTypeError(
            f"expected a whole number from {least} to {most:,}, found {shown}"
        )

    return read
