"""Text to token ids and back, over a Hugging Face model folder, by the `tokenizers` package alone.

Used by the controller (prompts, demonstrations, samples for people), which may not load transformers. The ids
equal those of transformers' AutoTokenizer on the same folder; a test compares the two.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tokenizers

from crescendo.common.chat_template import ChatTemplate, Message
from crescendo.common.errors import DataError

_NAMED_SPECIAL_TOKENS = (
    "bos_token",
    "eos_token",
    "unk_token",
    "sep_token",
    "pad_token",
    "cls_token",
    "mask_token",
)


@dataclass(frozen=True)
class Tokenizer:
    """A model's tokenizer. Immutable and safe to share between threads.

    eos_token_ids: every id that ends a response (generation_config.json and the tokenizer's own), in that order;
    pad_token_id: the padding id, the first end of sequence where the model names none;
    vocab_size: ids that the tokenizer knows, with added tokens (a model's embedding may be longer).
    """

    eos_token_ids: tuple[int, ...]
    pad_token_id: int
    vocab_size: int
    _backend: tokenizers.Tokenizer
    _template: ChatTemplate | None

    @classmethod
    def from_folder(cls, path: Path | str) -> "Tokenizer":
        """Reads tokenizer.json, tokenizer_config.json, chat_template.jinja and generation_config.json.

        Raises DataError when tokenizer.json is missing or damaged, or when nothing names an end of sequence.
        """
        folder = Path(path)
        backend = _load_backend(folder / "tokenizer.json")
        config = _read_json(folder / "tokenizer_config.json")
        special = _special_tokens(config, _read_json(folder / "special_tokens_map.json"))
        eos = _eos_token_ids(folder, backend, special)
        pad = backend.token_to_id(special["pad_token"]) if "pad_token" in special else None
        source = _template_source(folder, config)
        return cls(
            eos_token_ids=eos,
            pad_token_id=eos[0] if pad is None else pad,
            vocab_size=backend.get_vocab_size(with_added_tokens=True),
            _backend=backend,
            _template=None if source is None else ChatTemplate(source, special),
        )

    @property
    def has_chat_template(self) -> bool:
        """Whether `render` works."""
        return self._template is not None

    def encode(self, text: str, *, add_special_tokens: bool = False) -> list[int]:
        """Token ids of a text; add_special_tokens adds what the model's post-processor adds (a BOS, say).

        Raises DataError when the text holds what the vocabulary cannot express, or is no valid Unicode.
        """
        try:
            ids: list[int] = self._backend.encode(text, add_special_tokens=add_special_tokens).ids
        except Exception as error:  # the package raises nothing narrower
            reason = str(error).rstrip(".")
            raise DataError(f"the tokenizer cannot encode the text: {reason}.", field="text") from error
        return ids

    def decode(self, ids: Iterable[int], *, skip_special_tokens: bool = True) -> str:
        """Text of token ids; special tokens (end of sequence, padding) are left out unless asked for."""
        text: str = self._backend.decode(list(ids), skip_special_tokens=skip_special_tokens)
        return text

    def render(self, messages: Sequence[Message], *, add_generation_prompt: bool = True) -> str:
        """The conversation in the model's chat format, ready for the assistant's turn.

        The result holds the model's special tokens already: encode it without adding any.
        """
        if self._template is None:
            raise DataError(
                "the model's tokenizer has no chat template.",
                field="data.chat_template",
                fix="Set data.chat_template to false, or use an instruction-tuned model.",
            )
        return self._template.render(messages, add_generation_prompt=add_generation_prompt)


def _load_backend(path: Path) -> tokenizers.Tokenizer:
    if not path.is_file():
        raise DataError(
            f"{path.parent} has no tokenizer.json.",
            field="model.source",
            fix="Give a folder with a fast tokenizer; transformers' `save_pretrained` writes one.",
        )
    try:
        return tokenizers.Tokenizer.from_str(path.read_text(encoding="utf-8"))
    except Exception as error:  # the package raises nothing narrower
        raise DataError(f"{path} is damaged: {error}.", field="model.source", fix="Copy the model again.") from error


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        loaded = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"{path} is damaged: {error}.", field="model.source", fix="Copy the model again.") from error
    return loaded if isinstance(loaded, dict) else {}


def _special_tokens(*sources: dict[str, Any]) -> dict[str, str]:
    """bos_token, eos_token, ... by name; a value is a string or an added-token object with `content`."""
    found: dict[str, str] = {}
    for source in sources:
        for name in _NAMED_SPECIAL_TOKENS:
            value = source.get(name)
            content = value.get("content") if isinstance(value, dict) else value
            if isinstance(content, str):
                found.setdefault(name, content)
    return found


def _template_source(folder: Path, config: dict[str, Any]) -> str | None:
    file = folder / "chat_template.jinja"
    if file.is_file():
        return file.read_text(encoding="utf-8")
    source = config.get("chat_template")
    if isinstance(source, list):
        source = next((entry["template"] for entry in source if entry.get("name") == "default"), None)
    return source if isinstance(source, str) else None


def _eos_token_ids(folder: Path, backend: tokenizers.Tokenizer, special: dict[str, str]) -> tuple[int, ...]:
    ids: list[int] = []
    for name in ("generation_config.json", "config.json"):
        value = _read_json(folder / name).get("eos_token_id")
        ids += [value] if isinstance(value, int) else value if isinstance(value, list) else []
        if ids:
            break
    own = backend.token_to_id(special["eos_token"]) if "eos_token" in special else None
    if own is not None:
        ids.append(own)
    if not ids:
        raise DataError(
            f"{folder} names no end-of-sequence token.",
            field="model.source",
            fix="Set eos_token_id in generation_config.json, or eos_token in tokenizer_config.json.",
        )
    return tuple(dict.fromkeys(ids))
