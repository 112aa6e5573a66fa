"""Texts to token numbers, by the `tokenizers` library: a vocabulary of byte pairs, so that every text has tokens.

tokens = Tokenizer.train(captions, vocabulary=4096, length=40)
tokens = Tokenizer.of_folder("openai-clip/")        a checkpoint's own
ids = tokens(["a photo of solar panels"])           [1, length], padded behind the end
"""

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from jaxtyping import Int
from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers, trainers
from tokenizers import Tokenizer as Pairs
from torch import Tensor

from negah.errors import InputError, WeightsError

START, END = "<|startoftext|>", "<|endoftext|>"
# CLIP's: a mark, the ends of English words, a word, one digit, or what is none of these.
WORDS = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"


class Tokenizer:
    """`length` token numbers of each text: start, the text's, end, and `pad` behind it.

    A text that is too long loses its last tokens, not its end.
    """

    def __init__(self, pairs: Pairs, *, length: int, pad: int | None = None):
        start, end = pairs.token_to_id(START), pairs.token_to_id(END)
        if start is None or end is None:
            raise WeightsError(f"this vocabulary has no {START} or no {END}: it is not CLIP's")
        if length < 2:
            raise InputError(f"a text has a start and an end, so {length} tokens are too few")
        pairs.encode_special_tokens = True  # a text that holds a mark is a text: it must not end early
        self.pairs, self.length, self.start, self.end = pairs, length, start, end
        self.pad = end if pad is None else pad

    @classmethod
    def train(cls, texts: Iterable[str], *, vocabulary: int, length: int) -> "Tokenizer":
        """A vocabulary of at most so many tokens, from texts; all 256 bytes are in it.

        Raises InputError for a vocabulary without room for the bytes.
        """
        if vocabulary < 2 * 256 + 2:
            raise InputError(f"a vocabulary of {vocabulary} has no room for all bytes, within words and at their ends")
        pairs = _clip(models.BPE(continuing_subword_prefix="", end_of_word_suffix="</w>"))
        letters = sorted(pre_tokenizers.ByteLevel.alphabet())
        # A byte at the end of a word is a token of its own.  Left to the library these would be numbered in the random
        # order of a hash map, and the same texts would give another vocabulary in each process.
        ends = [f"{letter}</w>" for letter in letters]
        trainer = trainers.BpeTrainer(
            vocab_size=vocabulary, special_tokens=[START, END, *ends], initial_alphabet=letters,
            continuing_subword_prefix="", end_of_word_suffix="</w>", show_progress=False,
        )  # fmt: skip
        pairs.train_from_iterator(texts, trainer)
        content = json.loads(pairs.to_str())
        content["added_tokens"] = [token for token in content["added_tokens"] if token["content"] in (START, END)]
        return cls(Pairs.from_str(json.dumps(content)), length=length)

    @classmethod
    def of_folder(cls, folder: str | Path, *, length: int = 77) -> "Tokenizer":
        """A checkpoint's own: tokenizer.json, or vocab.json and merges.txt.

        Raises WeightsError when neither is there, or they cannot be read.
        """
        folder = Path(folder)
        whole, vocabulary, merges = (folder / name for name in ("tokenizer.json", "vocab.json", "merges.txt"))
        try:
            if whole.is_file():
                pairs = Pairs.from_file(str(whole))
                pairs.no_padding()
                pairs.no_truncation()
            elif vocabulary.is_file() and merges.is_file():
                model = models.BPE.from_file(
                    str(vocabulary), str(merges), unk_token=END, continuing_subword_prefix="", end_of_word_suffix="</w>"
                )
                pairs = _clip(model)
                pairs.add_special_tokens([START, END])
            else:
                raise WeightsError(f"folder {folder} has no tokenizer.json, nor vocab.json and merges.txt")
        except WeightsError:
            raise
        except Exception as error:  # the library raises plain Exceptions
            raise WeightsError(f"the vocabulary in {folder} cannot be read: {' '.join(str(error).split())}") from error
        return cls(pairs, length=length)

    @classmethod
    def of_json(cls, text: str) -> "Tokenizer":
        """From what `to_json` gave."""
        content = json.loads(text)
        return cls(Pairs.from_str(content["tokenizer"]), length=content["length"], pad=content["pad"])

    def to_json(self) -> str:
        return json.dumps({"tokenizer": self.pairs.to_str(), "length": self.length, "pad": self.pad})

    def __len__(self) -> int:
        """Number of different tokens."""
        return self.pairs.get_vocab_size()

    def __call__(self, texts: Sequence[str]) -> Int[Tensor, "text length"]:
        most = self.length - 2
        found = torch.full((len(texts), self.length), self.pad, dtype=torch.long)
        for row, code in zip(found, self.pairs.encode_batch(list(texts), add_special_tokens=False)):
            ids = [self.start, *code.ids[:most], self.end]
            row[: len(ids)] = torch.tensor(ids)
        return found

    def count(self, text: str) -> int:
        """Number of a text's tokens, however many there are, without start and end."""
        return len(self.pairs.encode(text, add_special_tokens=False).ids)

    def in_pieces(self, text: str) -> list[str]:
        """Words of a text that have no token of their own: the vocabulary was made of texts in which they were rare."""
        code = self.pairs.encode(text, add_special_tokens=False)
        spans = [(word, *span) for word, span in zip(code.word_ids, code.offsets)]
        broken = [word for word, parts in Counter(code.word_ids).items() if parts > 1]
        return [
            text[min(first for k, first, _ in spans if k == word) : max(end for k, _, end in spans if k == word)]
            for word in broken
        ]

    def text(self, ids: Int[Tensor, " token"] | Sequence[int]) -> str:
        """The text of some token numbers, up to the end token, without the marks."""
        ids = [int(i) for i in ids]
        ids = ids[: ids.index(self.end)] if self.end in ids else ids
        return self.pairs.decode(ids, skip_special_tokens=True).strip()


def _clip(model: models.BPE) -> Pairs:
    """Lower case, white space as one space, then CLIP's words as bytes."""
    pairs = Pairs(model)
    pairs.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    pairs.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORDS), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    pairs.decoder = decoders.Sequence([decoders.ByteLevel(), decoders.Replace("</w>", " ")])
    return pairs
