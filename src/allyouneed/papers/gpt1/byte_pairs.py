"""Byte pairs of GPT's kind: lower-case characters of a word are merged, and a word's last token is marked as its end.

Byte pairs are Sennrich et al.'s (2016); the work is done by Hugging Face tokenizers.
"""

import json
from collections.abc import Iterable
from pathlib import Path

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

from allyouneed.text import PublishedTokenizer

UNKNOWN = "<unk>"
"""The token of a character that the vocabulary does not have."""
END_OF_WORD = "</w>"
_FILES = (("vocab.json", "merges.txt"), ("encoder_bpe_40000.json", "vocab_40000.bpe"))
"""The vocabulary and the merges: as Hugging Face names the two files, and as they were published with GPT."""


class EndOfWordBPE(PublishedTokenizer):
    """A tokenizer of byte pairs in which the last token of a word ends in `</w>`.

    Text is cut into words at white space and around punctuation and loses case and accents, as transformers does for
    this model; the paper used ftfy and spaCy. So a text does not come back as it was, and a character that the
    vocabulary lacks is `<unk>`.
    """

    @classmethod
    def train(cls, texts: Iterable[str], vocabulary: int) -> "EndOfWordBPE":
        """Learn merges from texts; the same texts give the same tokenizer.

        Id 0 is `<unk>`, then come the characters that the texts have, at the end of words and inside them, and the
        merges in the order in which they were learned. A pair is merged only if it was seen twice.

        Args:
            texts: what to learn from.
            vocabulary: number of tokens.

        Raises:
            ValueError: a vocabulary smaller than its characters, or larger than the texts have pairs for; one string
                for texts.
        """
        if isinstance(texts, str):
            raise ValueError(f"texts is one string of {len(texts)} characters; it must be several texts, as [text]")
        texts = list(texts)
        tokenizer = _around(models.BPE(unk_token=UNKNOWN, end_of_word_suffix=END_OF_WORD, fuse_unk=False))
        characters = {character for text in texts for character in tokenizer.normalizer.normalize_str(text)}
        # The trainer numbers the ends of words in a random order, and by their numbers breaks ties between pairs: only
        # special tokens keep their order. They are made ordinary ones below.
        ends = [character + END_OF_WORD for character in sorted(characters) if not character.isspace()]
        trainer = trainers.BpeTrainer(
            vocab_size=vocabulary,
            min_frequency=2,
            end_of_word_suffix=END_OF_WORD,
            special_tokens=[UNKNOWN, *ends],
            show_progress=False,
        )
        tokenizer.train_from_iterator(texts, trainer)
        found = tokenizer.get_vocab_size()
        if found != vocabulary:
            raise ValueError(
                f"the texts have no vocabulary of {vocabulary}: {UNKNOWN}, their characters and pairs make {found}"
            )
        learned = json.loads(tokenizer.to_str())["model"]
        return cls._of(
            models.BPE(
                vocab=learned["vocab"],
                merges=[(left, right) for left, right in learned["merges"]],
                unk_token=UNKNOWN,
                end_of_word_suffix=END_OF_WORD,
                fuse_unk=False,
            )
        )

    @classmethod
    def load(cls, folder: Path | str) -> "EndOfWordBPE":
        """Read what `save` wrote, or the two files of a vocabulary as GPT's was published.

        Raises:
            FileNotFoundError: the folder has neither.
            ValueError: a file is damaged.
        """
        folder = Path(folder)
        if (folder / "tokenizer.json").is_file():
            return super().load(folder)
        pairs = ([folder / name for name in names] for names in _FILES)
        paths = next((pair for pair in pairs if all(path.is_file() for path in pair)), None)
        if paths is None:
            expected = ", or ".join(" and ".join(names) for names in _FILES)
            raise FileNotFoundError(f"there is no vocabulary in {folder}: it has neither tokenizer.json nor {expected}")
        try:
            read = models.BPE.from_file(
                str(paths[0]), str(paths[1]), unk_token=UNKNOWN, end_of_word_suffix=END_OF_WORD, fuse_unk=False
            )
        except Exception as error:  # The library raises nothing more specific.
            raise ValueError(f"{paths[0].name} and {paths[1].name} in {folder} are no vocabulary: {error}") from error
        tokenizer = cls._of(read)
        tokenizer.read_special_tokens_map(folder)
        return tokenizer

    @classmethod
    def _of(cls, model: models.BPE) -> "EndOfWordBPE":
        tokenizer = _around(model)
        tokenizer.add_special_tokens([UNKNOWN])
        return cls(tokenizer)


def _around(model: models.BPE) -> tokenizers.Tokenizer:
    """Put around byte pairs what cuts text into words and joins tokens to text."""
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.BPEDecoder(suffix=END_OF_WORD)
    return tokenizer
