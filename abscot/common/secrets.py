"""What of a configuration must not leave the machine: credentials in URLs, and access tokens."""

import html
import re
from collections.abc import Iterator
from typing import Any

HIDDEN = "REDACTED"
_USER_OF_URL = re.compile(r"://\S+@")  # up to the last @: a password may hold anything
_QUERY_OF_URL = re.compile(r"(?<=://)[^\s?#]+([?#]\S+)")
_TOKEN = re.compile(r"\b(?:hf_|sk-|ghp_|gho_|github_pat_|glpat-|xox[abp]-|AKIA)[A-Za-z0-9_-]{16,}")


def secrets_in(tree: Any) -> dict[str, str]:
    """Every secret in the strings of a tree of plain values -> what may stand in its place."""
    found = {}
    for text in _strings(tree):
        found |= {match[0]: f"://{HIDDEN}@" for match in _USER_OF_URL.finditer(text)}
        found |= {match[1]: f"{match[1][0]}{HIDDEN}" for match in _QUERY_OF_URL.finditer(text)}
        found |= {match[0]: HIDDEN for match in _TOKEN.finditer(text)}
    # A query may be part of what was taken for a password, and one query the beginning of another.
    return dict(sorted(found.items(), key=lambda pair: (pair[0][:3] != "://", -len(pair[0]))))


def redacted(value: Any, secrets: dict[str, str] | None = None) -> Any:
    """A tree of plain values, or a text, without `secrets`: by default those in it."""
    secrets = secrets_in(value) if secrets is None else secrets
    if isinstance(value, dict):
        return {key: redacted(v, secrets) for key, v in value.items()}
    if isinstance(value, list | tuple):
        return [redacted(v, secrets) for v in value]
    if isinstance(value, str):
        for secret, instead in secrets.items():
            value = value.replace(secret, instead).replace(html.escape(secret), instead)
    return value


def _strings(tree: Any) -> Iterator[str]:
    if isinstance(tree, str):
        yield tree
    elif isinstance(tree, dict | list | tuple):
        for value in tree.values() if isinstance(tree, dict) else tree:
            yield from _strings(value)
