"""Collapse statistics of a trace set: does it vary in length, in tokens, and with the prompt?

A public reproduction trained three rounds on traces that were all 13 tokens long, and nothing
reported it. Everything here is numpy on the flat layout `values[offsets[i] : offsets[i + 1]]` =
trace i; pairwise statistics use a keyed sample.
"""

import numpy as np

from abscot.common.draws import rng

SAMPLED_PAIRS = 2000
# Thresholds of the warnings.
SAME_LENGTH_SHARE = 0.9
TOP_TOKEN_SHARE = 0.5
EFFECTIVE_TOKENS = 4.0
UNIQUE_SHARE = 0.1
FORCED_END_SHARE = 0.9
PROMPT_SIMILARITY_GAIN = 0.01


def statistics(
    values: np.ndarray,
    offsets: np.ndarray,
    codebook_ids,
    m_max: int,
    probe: dict[int, list[np.ndarray]],
    seed: int,
) -> dict:
    """All statistics of one set; scalars by name, and the histograms a report draws.

    probe: prompt -> several traces sampled for it. Entropies are in bits, distances and
    similarities in 0..1.
    """
    lengths = np.diff(offsets)
    index = np.full(max(codebook_ids) + 1, -1, np.int64)
    index[list(codebook_ids)] = np.arange(len(codebook_ids))
    tokens = index[values]
    return {
        **length_statistics(lengths, m_max),
        **token_statistics(tokens, offsets, len(codebook_ids)),
        "unique_share": unique_share(values, offsets),
        "edit_distance_mean": mean_edit_distance(values, offsets, seed),
        **prompt_statistics(probe, seed),
    }


def length_statistics(lengths: np.ndarray, m_max: int) -> dict:
    if not len(lengths):
        return {"traces": 0}
    histogram = np.bincount(lengths, minlength=m_max + 1)
    quantiles = np.percentile(lengths, [10, 50, 90])
    return {
        "traces": int(len(lengths)),
        "length_mean": float(lengths.mean()),
        "length_std": float(lengths.std()),
        "length_min": int(lengths.min()),
        **{f"length_p{p}": float(q) for p, q in zip((10, 50, 90), quantiles, strict=True)},
        "length_max": int(lengths.max()),
        "most_common_length": int(histogram.argmax()),
        "most_common_length_share": float(histogram.max() / len(lengths)),
        "forced_end_share": float(histogram[m_max] / len(lengths)),
        "length_histogram": histogram.tolist(),
    }


def token_statistics(tokens: np.ndarray, offsets: np.ndarray, codebook_size: int) -> dict:
    """tokens: int [n] codebook indices 0..M-1. Unigram entropy, entropy given position,
    Zipf fit.
    """
    if not len(tokens):
        return {"tokens": 0}
    lengths = np.diff(offsets)
    position = np.arange(len(tokens)) - np.repeat(offsets[:-1], lengths)
    table = np.bincount(position * codebook_size + tokens, minlength=lengths.max() * codebook_size)
    table = table.reshape(-1, codebook_size)  # [position, token]
    counts = table.sum(0)
    exponent, fit = zipf_fit(counts)
    return {
        "tokens": int(len(tokens)),
        "tokens_used": int((counts > 0).sum()),
        "top_token_share": float(counts.max() / counts.sum()),
        "unigram_entropy_bits": float(entropy_bits(counts)),
        "entropy_given_position_bits": float(entropy_bits(table) @ table.sum(1) / len(tokens)),
        "zipf_exponent": exponent,
        "zipf_r2": fit,
        "token_counts": counts.tolist(),
    }


def entropy_bits(counts: np.ndarray) -> np.ndarray:
    """Entropy over the last axis; an empty row has none."""
    p = counts / np.maximum(counts.sum(-1, keepdims=True), 1)
    return -(p * np.log2(np.where(p > 0, p, 1))).sum(-1)


def zipf_fit(counts: np.ndarray) -> tuple[float, float]:
    """(exponent s, R^2) of log count = a - s log rank over the tokens that occur; (0, 0) for fewer
    than three.
    """
    counts = np.sort(counts[counts > 0])[::-1]
    if len(counts) < 3:
        return 0.0, 0.0
    x, y = np.log(np.arange(1, len(counts) + 1)), np.log(counts)
    slope, intercept = np.polyfit(x, y, 1)
    spread = ((y - y.mean()) ** 2).sum()
    unexplained = ((y - slope * x - intercept) ** 2).sum()
    return float(-slope), float(1 - unexplained / spread) if spread > 0 else 0.0


def unique_share(values: np.ndarray, offsets: np.ndarray) -> float:
    """Different traces over all traces."""
    if len(offsets) < 2:
        return 0.0
    raw, item = np.ascontiguousarray(values).tobytes(), values.itemsize
    ends = (offsets * item).tolist()
    return len({raw[a:b] for a, b in zip(ends, ends[1:], strict=False)}) / (len(offsets) - 1)


def mean_edit_distance(values: np.ndarray, offsets: np.ndarray, seed: int) -> float:
    """Normalised edit distance between two traces, over a sample of pairs; 0: all the same."""
    count = len(offsets) - 1
    if count < 2:
        return 0.0
    draw = rng(seed, "pairs", count)
    first = draw.integers(0, count, SAMPLED_PAIRS)
    second = (first + draw.integers(1, count, SAMPLED_PAIRS)) % count
    one, other = ([values[offsets[i] : offsets[i + 1]] for i in side] for side in (first, second))
    return float(edit_distances(one, other).mean())


def edit_distances(first: list[np.ndarray], second: list[np.ndarray]) -> np.ndarray:
    """Levenshtein distance of each pair over the longer length, float [pairs]; all pairs at once.

    One dynamic-programming row for all pairs is one numpy step: the run along the row, new[j] =
    min(new[j - 1] + 1, ..), is a running minimum of new[j] - j.
    """
    a, a_len = _padded(first, -1)
    b, b_len = _padded(second, -2)
    columns = np.arange(b.shape[1] + 1)
    row = np.broadcast_to(columns, (len(a), len(columns))).astype(np.int32)
    distance = b_len.copy()
    pairs = np.arange(len(a))
    for i in range(a.shape[1]):
        best = np.empty_like(row)
        best[:, 0] = i + 1
        best[:, 1:] = np.minimum(row[:, 1:] + 1, row[:, :-1] + (b != a[:, i : i + 1]))
        row = np.minimum.accumulate(best - columns, axis=1) + columns
        distance = np.where(a_len == i + 1, row[pairs, b_len], distance)
    return distance / np.maximum(np.maximum(a_len, b_len), 1)


def _padded(traces: list[np.ndarray], fill: int) -> tuple[np.ndarray, np.ndarray]:
    lengths = np.array([len(t) for t in traces], np.int64)
    padded = np.full((len(traces), max(lengths, default=0)), fill, np.int32)
    padded[np.arange(padded.shape[1]) < lengths[:, None]] = (
        np.concatenate(traces) if len(traces) else []
    )
    return padded, lengths


def prompt_statistics(probe: dict[int, list[np.ndarray]], seed: int) -> dict:
    """How much a trace tells about its prompt: similarity of two samples of one prompt against two
    prompts.

    Similarity is the mean of 1 - edit distance and of the overlap of the two token counts (order
    may be noise). The standard error is over prompts.
    """
    prompts = [samples for samples in probe.values() if len(samples) > 1]
    if len(prompts) < 2:
        return {"probed_prompts": len(prompts)}
    draw = rng(seed, "probe pairs")
    anchor, same, other, owner = [], [], [], []
    for number, samples in enumerate(prompts):
        for i in range(len(samples)):
            for j in range(i):
                stranger = prompts[(number + draw.integers(1, len(prompts))) % len(prompts)]
                anchor.append(samples[i])
                same.append(samples[j])
                other.append(stranger[draw.integers(len(stranger))])
                owner.append(number)
    inside, across = similarity(anchor, same), similarity(anchor, other)
    per_prompt = np.bincount(owner, inside - across) / np.bincount(owner)
    return {
        "probed_prompts": len(prompts),
        "same_prompt_similarity": float(inside.mean()),
        "other_prompt_similarity": float(across.mean()),
        "prompt_similarity_gain": float(per_prompt.mean()),
        "prompt_similarity_gain_se": float(per_prompt.std(ddof=1) / np.sqrt(len(per_prompt))),
    }


def similarity(first: list[np.ndarray], second: list[np.ndarray]) -> np.ndarray:
    """float [pairs] in 0..1."""
    overlap = [_overlap(a, b) for a, b in zip(first, second, strict=True)]
    return (1 - edit_distances(first, second) + np.array(overlap)) / 2


def _overlap(a: np.ndarray, b: np.ndarray) -> float:
    """Shared tokens, counted with multiplicity, over the longer length."""
    longest = max(len(a), len(b))
    if not longest:
        return 1.0
    size = int(max(a.max(initial=0), b.max(initial=0))) + 1
    return float(
        np.minimum(np.bincount(a, minlength=size), np.bincount(b, minlength=size)).sum() / longest
    )


def warnings(stats: dict, m_min: int, m_max: int, from_model: bool = True) -> list[str]:
    """What has collapsed, by name. from_model False: random traces, whose lengths follow from the
    CoT (a long one fills m_max) and which are meant to tell nothing about a prompt.
    """
    if not stats.get("tokens"):
        return ["no trace holds a single token"]
    found = _token_warnings(stats)
    if not from_model:
        return found
    if m_min < m_max:
        found = _length_warnings(stats, m_max) + found
    if stats["unique_share"] < UNIQUE_SHARE:
        found.append(f"few different traces: {stats['unique_share']:.1%} of them are unique")
    if "prompt_similarity_gain" in stats:
        gain, error = stats["prompt_similarity_gain"], stats["prompt_similarity_gain_se"]
        if gain < max(PROMPT_SIMILARITY_GAIN, 2 * error):
            found.append(
                "no difference between prompts: two traces of one prompt are "
                f"{stats['same_prompt_similarity']:.2f} alike, of two prompts "
                f"{stats['other_prompt_similarity']:.2f} (gain {gain:.3f} +- {error:.3f})"
            )
    return found


def _length_warnings(stats: dict, m_max: int) -> list[str]:
    found = []
    if stats["most_common_length_share"] >= SAME_LENGTH_SHARE:
        length, share = stats["most_common_length"], stats["most_common_length_share"]
        found.append(f"constant length: {share:.0%} of the traces have {length} tokens")
    if stats["forced_end_share"] >= FORCED_END_SHARE:
        found.append(
            f"no end: {stats['forced_end_share']:.0%} of the traces were stopped at m_max = {m_max}"
        )
    return found


def _token_warnings(stats: dict) -> list[str]:
    if stats["top_token_share"] >= TOP_TOKEN_SHARE:
        return [f"one token dominates: it is {stats['top_token_share']:.0%} of all tokens"]
    effective = 2 ** stats["unigram_entropy_bits"]
    if effective < EFFECTIVE_TOKENS:
        return [f"few tokens: the codebook is used like one of {effective:.1f} tokens"]
    return []
