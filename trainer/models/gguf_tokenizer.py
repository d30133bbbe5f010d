"""The tokenizer in a GGUF file's metadata, as tokenizer.json and tokenizer_config.json.

Byte-level BPE only (`tokenizer.ggml.model` gpt2). How text is cut before merging is named, not stored, by
`tokenizer.ggml.pre`; the names are llama.cpp's, the patterns those of the models' own tokenizer.json.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from crescendo.common.errors import DataError
from crescendo.common.runfolder import write_atomically

_CONTROL, _USER_DEFINED = 3, 4  # tokenizer.ggml.token_type
_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|{digits}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|"
    r"\s*[\r\n]+|\s+(?!\S)|\s+"
)


def _split_words(digits: str) -> Any:
    pattern = Regex(_WORDS.format(digits=digits))
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(pattern, behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


def _pre_tokenizer(name: str) -> Any:
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    known: dict[str, Callable[[], Any]] = {
        "gpt-2": lambda: byte_level,
        "smollm": lambda: pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), byte_level]),
        "llama-bpe": lambda: _split_words(r"\p{N}{1,3}"),
        "qwen2": lambda: _split_words(r"\p{N}"),
    }
    if name not in known:
        raise DataError(
            f"tokenizer.ggml.pre is {name!r}; the converter knows {', '.join(sorted(known))}.", field="source"
        )
    return known[name]()


def write_tokenizer(fields: dict[str, Any], target: Path, *, max_positions: int) -> None:
    """Writes both files; raises DataError for a kind of tokenizer without a mapping."""
    kind = fields.get("tokenizer.ggml.model")
    if kind != "gpt2":
        raise DataError(
            f"tokenizer.ggml.model is {kind!r}; the converter knows byte-level BPE, 'gpt2'.", field="source"
        )
    tokens: list[str] = fields["tokenizer.ggml.tokens"]
    types: list[int] = fields.get("tokenizer.ggml.token_type") or [1] * len(tokens)
    merges = [tuple(merge.split(" ", 1)) for merge in fields["tokenizer.ggml.merges"]]
    name = str(fields.get("tokenizer.ggml.pre", "gpt-2"))
    tokenizer = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=merges))
    tokenizer.pre_tokenizer = _pre_tokenizer(name)
    if name == "qwen2":
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.decoder = decoders.ByteLevel()
    control = [token for token, of in zip(tokens, types, strict=True) if of == _CONTROL]
    user = [token for token, of in zip(tokens, types, strict=True) if of == _USER_DEFINED]
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in control])
    tokenizer.add_tokens([AddedToken(token, special=False, normalized=False) for token in user])
    write_atomically(target / "tokenizer.json", tokenizer.to_str(pretty=True))
    config: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": max_positions,
        "clean_up_tokenization_spaces": False,
        "add_prefix_space": False,
    }
    for role in ("bos", "eos", "unk", "pad"):
        key = {"unk": "unknown", "pad": "padding"}.get(role, role)
        index = fields.get(f"tokenizer.ggml.{key}_token_id")
        if index is not None:
            config[f"{role}_token"] = tokens[int(index)]
    if "tokenizer.chat_template" in fields:
        config["chat_template"] = fields["tokenizer.chat_template"]
    write_atomically(target / "tokenizer_config.json", json.dumps(config, indent=2, ensure_ascii=False))
