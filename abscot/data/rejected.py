"""Why a row is not used."""

DETAIL_CHARS = 300


class Rejected(Exception):
    """A row that is not used: `reason` is counted, `detail`, one printable line, helps to find out
    why. tokens: its length, where it was tokenised.
    """

    def __init__(self, reason: str, detail: str = "", tokens: int | None = None):
        detail = "".join(c if c.isprintable() else "?" for c in detail[: 2 * DETAIL_CHARS])
        super().__init__(reason, detail[:DETAIL_CHARS], tokens)
        self.reason, self.detail, self.tokens = self.args
