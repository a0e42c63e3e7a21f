"""From what Whisper's encoder heard to tokens and text, in numpy: no torch, so that a host of exported files has it too.

The loop is one (:func:`greedy`), whoever says what the decoder answers: torch here, an exported file there. Inputs and
outputs of exported files have the names that :mod:`edgecompress.model.whisper_decoder` gives them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from edgecompress.errors import ModelError

MAX_NEW_TOKENS = 128  # 30 s of brisk speech; a model that loops would go on to 448

Runner = Callable[[Mapping[str, np.ndarray]], dict[str, np.ndarray]]
Step = Callable[
    [np.ndarray], np.ndarray
]  # new tokens (rows, tokens) -> logits after the last of them (rows, vocabulary)


@dataclass(frozen=True)
class Rules:
    """How a transcript starts and ends, what may not be said in it, and for how many tokens the decoder has positions.

    ``never_first`` may not be the first token after the prompt.
    """

    prompt: tuple[int, ...]
    end: int
    never: tuple[int, ...]
    never_first: tuple[int, ...]
    positions: int


def rules_of(settings: Mapping[str, Any]) -> Rules:
    """The rules that ``generation_config.json``, laid over ``config.json``, gives.

    Raises:
        ModelError: they do not name the token that asks for text without time stamps, or those of the language.
    """
    return Rules(
        prompt=prompt_of(settings),
        end=int(settings["eos_token_id"]),
        never=tuple(settings.get("suppress_tokens") or ()),
        never_first=tuple(settings.get("begin_suppress_tokens") or ()),
        positions=int(settings["max_target_positions"]),
    )


def prompt_of(settings: Mapping[str, Any]) -> tuple[int, ...]:
    """Start of transcript, no time stamps: what the decoder is given before the first word.

    Multilingual models are told to transcribe in ``language``, English if the settings have none. Raises a ModelError
    as :func:`rules_of` does.
    """
    if settings.get("no_timestamps_token_id") is None:
        raise ModelError(
            "the model folder does not say which token asks for text without time stamps",
            hint="put generation_config.json beside config.json",
        )
    start, plain = int(settings["decoder_start_token_id"]), int(settings["no_timestamps_token_id"])
    if not settings.get("lang_to_id"):
        return (start, plain)
    language = str(settings.get("language") or "en").strip("<|>")
    try:
        return (start, int(settings["lang_to_id"][f"<|{language}|>"]), int(settings["task_to_id"]["transcribe"]), plain)
    except (KeyError, TypeError) as cause:
        raise ModelError(
            f"generation_config.json has no tokens to transcribe {language!r}",
            hint="set language in generation_config.json to one of lang_to_id, as <|en|>",
        ) from cause


def greedy(step: Step, rules: Rules, rows: int, max_new_tokens: int = MAX_NEW_TOKENS) -> list[list[int]]:
    """The likeliest token after the likeliest token, without the end mark: one list a row.

    ``step`` remembers what it was given before; it is first given the prompt, then one token a row.
    """
    ids = np.array([rules.prompt] * rows, dtype=np.int64)
    said: list[list[int]] = [[] for _ in range(rows)]
    done = np.zeros(rows, dtype=bool)
    room = rules.positions - len(rules.prompt)
    for number in range(min(max_new_tokens, room)):
        logits = np.array(step(ids))
        logits[:, list(rules.never)] = -np.inf
        if number == 0:
            logits[:, list(rules.never_first)] = -np.inf
        best = logits.argmax(-1)
        done |= best == rules.end
        if done.all():
            break
        for row in np.flatnonzero(~done):
            said[row].append(int(best[row]))
        ids = best[:, None]
    return said


def transcribe(
    encode: Runner,
    step: Runner,
    inputs: Mapping[str, np.ndarray],
    rules: Rules,
    *,
    max_new_tokens: int = MAX_NEW_TOKENS,
    capacity: int | None = None,
) -> list[list[int]]:
    """Tokens of each row of ``inputs``, by an exported encoder and an exported step of the decoder.

    ``encode`` is run once. ``capacity`` is that of the step's cache where the file has one of a fixed size: it then
    takes one token at a time and its ``position``; None where the cache grows.
    """
    heard = encode(inputs)
    cross = {name: heard[name] for name in ("cross_keys", "cross_values")}
    rows = cross["cross_keys"].shape[1]
    if capacity is None:
        return greedy(_Growing(step, cross), rules, rows, max_new_tokens)
    rules = replace(rules, positions=min(rules.positions, capacity))
    return greedy(_Fixed(step, cross, capacity), rules, rows, max_new_tokens)


def read(tokenizer: str, tokens: list[int]) -> str:
    """Text of tokens, by the contents of ``tokenizer.json``."""
    from tokenizers import Tokenizer

    text: str = Tokenizer.from_str(tokenizer).decode(tokens, skip_special_tokens=True)
    return text.strip()


class _Growing:
    """A step whose cache starts empty and grows by the tokens that it is given."""

    def __init__(self, run: Runner, cross: Mapping[str, np.ndarray]) -> None:
        self.run, self.cross = run, cross
        self.cache = _empty(cross["cross_keys"], 0)

    def __call__(self, ids: np.ndarray) -> np.ndarray:
        said = self.run({"input_ids": ids.astype(np.int64), **self.cache, **self.cross})
        self.cache = {"past_keys": said["present_keys"], "past_values": said["present_values"]}
        return said["logits"]


class _Fixed:
    """A step with a cache of a fixed size: one token at a time, each with its position."""

    def __init__(self, run: Runner, cross: Mapping[str, np.ndarray], capacity: int) -> None:
        self.run, self.cross = run, cross
        self.cache = _empty(cross["cross_keys"], capacity)
        self.position = 0

    def __call__(self, ids: np.ndarray) -> np.ndarray:
        for column in range(ids.shape[1]):
            token, position = ids[:, column : column + 1].astype(np.int32), np.array([self.position], np.int32)
            said = self.run({"input_ids": token, "position": position, **self.cache, **self.cross})
            self.cache = {"past_keys": said["present_keys"], "past_values": said["present_values"]}
            self.position += 1
        return said["logits"]


def _empty(cross_keys: np.ndarray, length: int) -> dict[str, np.ndarray]:
    """A cache of ``length`` zeros for the decoder whose cross keys are (layers, batch, heads, positions, head_dim)."""
    layers, batch, heads, _, head_dim = cross_keys.shape
    zeros = np.zeros((layers, batch, heads, length, head_dim), cross_keys.dtype)
    return {"past_keys": zeros, "past_values": zeros.copy()}
