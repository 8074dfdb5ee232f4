"""What byte pairs are made of: the characters of bytes, the words within which they are merged, and learned merges."""

import heapq
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from itertools import pairwise

import regex

PATTERN = regex.compile(r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+")
"""What no token crosses: English contractions, letters, digits, other signs, white space; a space may lead a word.

What a letter is depends on the version of Unicode that the `regex` package knows. Characters that are newer than the
version of another implementation may be cut differently there.
"""

Pair = tuple[int, int]


def byte_characters() -> tuple[str, ...]:
    """Give a printable character for every byte, in which vocabularies spell their tokens.

    Bytes that Latin-1 prints stand for themselves; the other 68 (white space, control characters) take the characters
    from U+0100 on. So a space is Ġ. The order of these characters is that of GPT-2's first 256 ids.

    Source: the encoder published with GPT-2.
    """
    printable = {*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)}
    others = (byte for byte in range(256) if byte not in printable)
    stand_ins = {byte: chr(256 + place) for place, byte in enumerate(others)}
    return tuple(stand_ins.get(byte, chr(byte)) for byte in range(256))


CHARACTERS = byte_characters()
BYTES = {character: byte for byte, character in enumerate(CHARACTERS)}
ALPHABET = sorted(CHARACTERS)
# In the order of ids, not of bytes: learned merges break ties by id.
BYTE_IDS = [ALPHABET.index(character) for character in CHARACTERS]


def words(text: str) -> Iterator[str]:
    """Cut a text into the pieces within which bytes are merged; joined, they are the text.

    Source: Radford et al. 2019, section 2.2, last paragraph but one.
    """
    return (found[0] for found in PATTERN.finditer(text))


def learn_merges(counts: Mapping[bytes, int], tokens: int) -> list[tuple[Pair, int]]:
    """Learn which pairs of tokens to merge: again and again the most frequent one in all words.

    A merge changes only the words that hold its pair, so only their pairs are counted anew. Among equally frequent
    pairs the one of the smaller ids comes first. A pair is merged only if it occurs twice.

    Source: Sennrich et al. 2016, algorithm 1, over bytes in place of characters (Radford et al. 2019, section 2.2).

    Args:
        counts: how often each word occurs.
        tokens: to be made, beyond the 256 bytes; fewer where no pair occurs twice.

    Returns:
        Each pair of ids with the id of what it becomes. Two pairs may become the same bytes, and then the same id.
    """
    spelled = [[BYTE_IDS[byte] for byte in word] for word in counts]
    frequency = list(counts.values())
    pairs: Counter[Pair] = Counter()
    places: defaultdict[Pair, set[int]] = defaultdict(set)
    for index, word in enumerate(spelled):
        for pair in pairwise(word):
            pairs[pair] += frequency[index]
            places[pair].add(index)
    queue = [(-count, pair) for pair, count in pairs.items()]
    heapq.heapify(queue)
    content = [bytes([BYTES[character]]) for character in ALPHABET]
    ids = {token: place for place, token in enumerate(content)}
    merges: list[tuple[Pair, int]] = []
    while queue and len(content) < 256 + tokens:
        negative, pair = heapq.heappop(queue)
        # An entry of before the pair's count last changed; a newer one is in the queue.
        if -negative != pairs[pair]:
            continue
        if -negative < 2:
            break
        joined = content[pair[0]] + content[pair[1]]
        token = ids.setdefault(joined, len(content))
        if token == len(content):
            content.append(joined)
        merges.append((pair, token))
        changed: set[Pair] = set()
        for index in places.pop(pair):
            old = spelled[index]
            new = spelled[index] = _merge_in(old, pair, token)
            for sign, some in ((-1, old), (1, new)):
                for other in pairwise(some):
                    pairs[other] += sign * frequency[index]
                    changed.add(other)
            for other in pairwise(new):
                places[other].add(index)
        for other in changed:
            if pairs[other] > 0:
                heapq.heappush(queue, (-pairs[other], other))
    return merges


def _merge_in(word: list[int], pair: Pair, token: int) -> list[int]:
    merged: list[int] = []
    place = 0
    while place < len(word):
        if place + 1 < len(word) and (word[place], word[place + 1]) == pair:
            merged.append(token)
            place += 2
        else:
            merged.append(word[place])
            place += 1
    return merged
