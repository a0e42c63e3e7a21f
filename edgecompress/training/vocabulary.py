"""Words or characters as numbers: a model's own vocabulary, or one made from the labels of the audio."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

from edgecompress.errors import TechniqueError

if TYPE_CHECKING:
    from edgecompress.model import Model

VOCABULARY_FILE = "vocab.json"
SPACE = "|"  # how vocabularies of characters write the gap between two words


@dataclass(frozen=True)
class Vocabulary:
    """Numbers of tokens. ``words``: a token is a word; else a character, ``|`` for a space. ``blank`` is CTC's."""

    numbers: dict[str, int]
    words: bool
    blank: int

    def encode(self, text: str) -> list[int]:
        """The numbers of a label's tokens.

        Raises:
            TechniqueError: a token that is not in the vocabulary.
        """
        tokens = text.split() if self.words else list(SPACE.join(text.split()))
        found = []
        for token in tokens:
            number = next(
                (self.numbers[form] for form in (token, token.lower(), token.upper()) if form in self.numbers), None
            )
            if number is None:
                raise TechniqueError(
                    f"the label {text!r} has {token!r}, which is not in the model's vocabulary",
                    hint="change the labels, or start from a model without a vocabulary",
                )
            found.append(number)
        return found

    def decode(self, numbers: Iterable[int]) -> str:
        """Text of a path through CTC's frames: repeats become one, blanks nothing."""
        names = {number: token for token, number in self.numbers.items()}
        path = [-1, *numbers]
        tokens = [names[now] for before, now in pairwise(path) if now not in (before, self.blank) and now in names]
        return " ".join(tokens) if self.words else "".join(tokens).replace(SPACE, " ")


def of_model(model: Model, labels: Sequence[str], size: int) -> Vocabulary:
    """The vocabulary of ``vocab.json`` in the model's folder; without one, made from ``labels`` and put there.

    Made: of words where their number, and the blank, fit ``size``; else of characters.

    Raises:
        TechniqueError: not even the characters fit.
    """
    blank = int(getattr(model.network.config, "pad_token_id", None) or 0)
    text = model.origin.extra_files.get(VOCABULARY_FILE)
    if text is not None:
        numbers = {str(token): int(number) for token, number in json.loads(text).items()}
        plain = [token for token, number in numbers.items() if number != blank and not token.startswith(("<", "["))]
        return Vocabulary(numbers, any(len(token) > 1 for token in plain), blank)
    made = make(labels, size, blank)
    model.origin.extra_files[VOCABULARY_FILE] = json.dumps(made.numbers, ensure_ascii=False, indent=2) + "\n"
    return made


def make(labels: Sequence[str], size: int, blank: int) -> Vocabulary:
    """A vocabulary of at most ``size`` numbers from labels; see :func:`of_model`."""
    words = sorted({word for label in labels for word in label.split()})
    tokens, are_words = words, True
    if len(words) + 1 > size:
        tokens, are_words = sorted({SPACE, *(character for word in words for character in word)}), False
    if len(tokens) + 1 > size:
        raise TechniqueError(
            f"the labels have {len(words)} words and {len(tokens)} characters, the model's head {size} outputs with the blank",
            hint="use a model with a larger head, or simpler labels",
        )
    free = [number for number in range(size) if number != blank]
    numbers = {"<pad>": blank, **dict(zip(tokens, free, strict=False))}
    return Vocabulary(numbers, are_words, blank)


def classes_of(model: Model, labels: Sequence[str], size: int) -> dict[str, int]:
    """Numbers of the classes: the model's own names where it has real ones, else the labels in sorted order, noted in it.

    Raises:
        TechniqueError: more labels than outputs.
    """
    own = {str(name): int(number) for number, name in (model.network.config.id2label or {}).items()}
    seen = sorted(set(labels))
    if set(seen) <= set(own):
        return own
    if any(not name.startswith("LABEL_") for name in own):
        strange = sorted(set(seen) - set(own))
        raise TechniqueError(f"the model has no class {strange[0]!r}", hint=f"it has {', '.join(sorted(own)[:8])} ...")
    if len(seen) > size:
        raise TechniqueError(
            f"the labels name {len(seen)} classes, the model's head has {size}", hint="use a model with a larger head"
        )
    names = [*seen, *(f"LABEL_{number}" for number in range(len(seen), size))]
    numbers = {name: number for number, name in enumerate(names)}
    model.network.config.id2label = dict(enumerate(names))
    model.network.config.label2id = numbers
    model.origin.config["id2label"] = {str(number): name for number, name in enumerate(names)}
    model.origin.config["label2id"] = dict(numbers)
    return numbers
