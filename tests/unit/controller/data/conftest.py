"""Tokenizers shared by the data tests."""

import json
from pathlib import Path

import pytest
from tokenizers import AddedToken, decoders, models, pre_tokenizers
from tokenizers import Tokenizer as Backend

from crescendo.common.config.schema import ScratchModelConfig
from crescendo.common.models import write_scratch_model
from crescendo.common.tokenizer import Tokenizer

CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message.role }}|>{{ message.content }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def _write_byte_tokenizer(folder: Path) -> Path:
    """One token a byte, special tokens for roles; `<|end|>` ends a sequence."""
    backend = Backend(
        models.BPE({symbol: i for i, symbol in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}, [])
    )
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(f"<|{name}|>") for name in ("end", "system", "user", "assistant")])
    folder.mkdir(parents=True, exist_ok=True)
    backend.save(str(folder / "tokenizer.json"))
    config = {"eos_token": "<|end|>", "chat_template": CHAT_TEMPLATE}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """A byte tokenizer with a chat template."""
    return Tokenizer.from_folder(_write_byte_tokenizer(tmp_path_factory.mktemp("bytes")))


@pytest.fixture(scope="session")
def characters(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """The quick start's character tokenizer, without a chat template."""
    folder = tmp_path_factory.mktemp("characters")
    write_scratch_model(folder, ScratchModelConfig(vocabulary="0123456789>=?#.abcdefghijklmnopqrstuvwxyz$"), 0)
    return Tokenizer.from_folder(folder)
