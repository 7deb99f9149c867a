"""The bottleneck rule as a picture: one packed bin, queries down, keys across."""

from abscot.bench import tools
from abscot.method import masks
from abscot.method.phases import BOTTLENECK, SEGMENT_OF

DOCUMENTS = [(3, 6, 3, 4), (2, 4, 2, 3)]  # tokens of X, C, Z, Y


def run() -> dict:
    packed = tools.synthetic_bin(DOCUMENTS)
    letters = {segment: letter for letter, segment in SEGMENT_OF.items()}
    axis = [letters[segment] for segment in packed.segment_id[0].tolist()]
    rows = masks.dense_mask(packed.document_id, packed.segment_id, BOTTLENECK).tolist()
    print("  " + " ".join(axis))
    for letter, row in zip(axis, rows, strict=True):
        print(letter, " ".join(".#"[allowed] for allowed in row))
    layout = masks.Layout.of(packed.document_id, packed.segment_id, BOTTLENECK)
    tokens = layout.num_tokens
    causal_pairs = tokens * (tokens + 1) // 2
    print(
        f"\n{layout.allowed_pairs} allowed pairs of {causal_pairs} causal and {tokens**2} dense "
        "ones"
    )
    return {"tokens": tokens, "allowed_pairs": layout.allowed_pairs}
