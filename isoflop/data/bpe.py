"""Train a byte-pair encoding on text, and what every tokenizer here shares: word pattern and end-of-text token."""

import heapq
from collections import Counter, defaultdict
from collections.abc import Iterable
from itertools import pairwise

from isoflop.options import UserError

EOT = "<|endoftext|>"  # ends every document
MAX_WORD = 128  # characters of a word that bpe:V learns from

# How text is split into words, within which BPE merges: GPT-2's rule as tiktoken 0.14 writes it, for every tokenizer.
# GPT-4's was tried for bpe:V on the standard library: 1.4% more tokens at V = 512, 0.9% at 1,024, 2.3% fewer at 4,096.
PATTERN = r"""'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"""


def train_bpe(texts: Iterable[str], n_tokens: int) -> list[bytes]:
    """Byte-pair encoding: all 256 bytes, then n_tokens - 256 merges, each the most frequent pair within words.

    Deterministic: ties go to the smallest pair of ids. UserError where the text repeats too little for so many merges.

    Pair counts are updated rather than recounted. The heap is lazy: only pairs with the newest token can rise, so an
    outdated entry is too high, and is put back with its true count when it is popped.
    """
    import regex

    # Count the words.
    word_counts = Counter()
    for text in texts:
        # Longer words are rulers of dashes and base64, and each merge would have to walk them.
        word_counts.update(word for word in regex.findall(PATTERN, text) if len(word) <= MAX_WORD)
    spelled = [tuple(word.encode()) for word in word_counts]  # the ids of each word, at first its bytes
    times = list(word_counts.values())

    # Count the pairs of neighbouring ids.
    counts = Counter()
    words_with = defaultdict(set)  # pair -> indices of the words that (may) hold it
    for i, ids in enumerate(spelled):
        for pair in pairwise(ids):
            counts[pair] += times[i]
            words_with[pair].add(i)
    heap = [(-count, pair) for pair, count in counts.items()]
    heapq.heapify(heap)

    tokens = [bytes([b]) for b in range(256)]
    while len(tokens) < n_tokens:
        # Find the most frequent pair.
        count, best = heapq.heappop(heap) if heap else (0, None)
        if -count != counts[best]:
            heapq.heappush(heap, (-counts[best], best))
            continue
        if -count < 2:
            enough = f"it repeats enough for bpe:{len(tokens) + 1}"
            if len(tokens) == 256:  # bpe:V needs a merge
                enough = "it repeats nothing; give more text, or --tokenizer byte"
            raise UserError(f"too little text for --tokenizer bpe:{n_tokens + 1}: {enough}")
        new = len(tokens)
        tokens.append(tokens[best[0]] + tokens[best[1]])

        # Merge it in every word that holds it, and update the counts of the pairs in those words.
        risen = set()
        for i in words_with.pop(best):
            for pair in pairwise(spelled[i]):
                counts[pair] -= times[i]
            spelled[i] = merge(spelled[i], best, new)
            for pair in pairwise(spelled[i]):
                counts[pair] += times[i]
                if new in pair:
                    words_with[pair].add(i)
                    risen.add(pair)
        for pair in risen:
            heapq.heappush(heap, (-counts[pair], pair))
    return tokens


def merge(ids: tuple[int, ...], pair: tuple[int, int], new: int) -> tuple[int, ...]:
    """ids with every occurrence of the pair, from the left, replaced by the new id."""
    out, i = [], 0
    while i < len(ids):
        if ids[i : i + 2] == pair:
            out.append(new)
            i += 2
        else:
            out.append(ids[i])
            i += 1
    return tuple(out)
