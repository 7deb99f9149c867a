"""Every recipe key is explained, on a page that is made from the dataclasses."""

import re

from abscot.recipe.keys import PAGE, page


def test_the_page_of_keys_is_current():
    assert PAGE.read_text() == page(), "run: python -m abscot.recipe.keys"


def test_every_key_has_a_word_of_explanation():
    rows = re.findall(r"^\| `([\w.]+)` \| .* \| (.*) \|$", page(), re.MULTILINE)
    assert len(rows) > 90
    assert [key for key, note in rows if not note.strip()] == []
