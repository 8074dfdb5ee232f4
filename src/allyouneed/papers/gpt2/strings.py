"""Strings to try a tokenizer on: random ones of all scripts, and every character."""

from collections.abc import Iterator

import numpy as np

_ALPHABETS = (
    (0x20, 0x7F),
    (0x20, 0x7F),
    (0x00, 0x20),  # control characters and white space
    (0x7F, 0x100),  # more of both, Latin
    (0x100, 0x250),
    (0x300, 0x370),  # combining marks
    (0x370, 0x530),  # Greek, Cyrillic
    (0x590, 0x700),  # Hebrew, Arabic
    (0x900, 0xE00),  # scripts of India
    (0xE00, 0x1100),  # Thai, Lao, Tibetan, Burmese, Georgian
    (0x1100, 0x1800),  # Hangul, Ethiopic, Cherokee, Khmer
    (0x2000, 0x2C00),  # punctuation, spaces, symbols
    (0x3000, 0x3400),  # kana
    (0x4E00, 0xA000),  # Han
    (0xAC00, 0xD7A4),
    (0xE000, 0xE100),  # private
    (0xFB00, 0x10000),
    (0x10000, 0x13000),  # ancient scripts
    (0x1D400, 0x1D800),  # letters and digits of mathematics
    (0x1F000, 0x1FB00),  # emoji
    (0xE0000, 0xE0200),  # tags
    (0x0, 0xD800),
    (0xE000, 0x110000),
)
_PIECES = (
    *("'s", "'ll", "'RE", " ", "  ", "\n", "\r\n", "\t", "\0", "\u00a0", "\u2028", "\u3000", "\ufeff", "\u200b"),
    *(
        "👩‍👩‍👧‍👦",
        "👍🏽",
        "🇳🇱",
        "❤️",
        "e\u0301",
        "é",
        "İ",
        "ß",
        "ﬁ",
        "½",
        "٣",
        "Ⅻ",
        "1234567890",
        "don't",
        "<|endoftext|>",
    ),
)


def random_strings(count: int, seed: int) -> Iterator[str]:
    """Give strings of every script, of emoji, control characters and white space: empty, short, and a few very long.

    Args:
        count: of the strings.
        seed: of all draws.
    """
    generator = np.random.default_rng(seed)
    yield from ("", " ", "\n", "\0")[:count]
    for place in range(4, count):
        if place % 1000 == 4:
            character = chr(int(generator.choice([0x20, 0x0A, 0x61, 0x31, 0x21, 0xE9, 0x4E00, 0x1F600])))
            yield character * int(generator.integers(5_000, 20_000))
            continue
        parts = []
        for _ in range(generator.integers(1, 6)):
            if generator.random() < 0.3:
                parts.append(_PIECES[generator.integers(len(_PIECES))])
                continue
            low, high = _ALPHABETS[generator.integers(len(_ALPHABETS))]
            drawn = generator.integers(low, high, size=generator.integers(1, 12))
            # Half of surrogate pairs are no characters.
            parts.append("".join(chr(point) for point in drawn if not 0xD800 <= point < 0xE000))
            if generator.random() < 0.3:
                parts.append(" ")
        yield "".join(parts)


def every_character() -> Iterator[str]:
    """Give all of Unicode's 1,112,064 code points but surrogates, 1,024 in a string."""
    for start in range(0, 0x110000, 1024):
        if not 0xD800 <= start < 0xE000:
            yield "".join(map(chr, range(start, start + 1024)))
