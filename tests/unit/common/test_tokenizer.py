"""The tokenizer equals transformers' on the same folder, and says clearly what it cannot do."""

import json
import sys
from pathlib import Path

import pytest
from tokenizers import AddedToken, decoders, models, pre_tokenizers, processors
from tokenizers import Tokenizer as Backend

from crescendo.common.errors import DataError
from crescendo.common.tokenizer import Tokenizer

TEMPLATES = {
    "chatml": (
        "{% for message in messages %}{% if loop.first and message['role'] != 'system' %}<|im_start|>system\n"
        "You help.<|im_end|>\n{% endif %}<|im_start|>{{ message['role'] }}\n{{ message['content'] | trim }}<|im_end|>\n"
        "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    ),
    "special tokens and json": (
        "{{ bos_token }}{% for message in messages %}{{ {'role': message.role, 'text': message.content} | tojson }}"
        "{% if loop.index > 40 %}{% break %}{% endif %}{{ eos_token }}{% endfor %}{{ strftime_now('%Y') }}"
    ),
    "generation block": (
        "{%- for message in messages %}\n    {%- if message.role == 'assistant' %}\n"
        "        {%- generation %}{{ message.content }}{% endgeneration %}\n    {%- else %}\n"
        "        {{- message.role ~ ': ' ~ message.content }}\n    {%- endif %}\n{%- endfor %}"
    ),
}
MESSAGES = [
    {"role": "system", "content": "Be <b>brief</b> & 'exact'."},
    {"role": "user", "content": '  How much is 2 + 2?\nÜber "quotes"  '},
    {"role": "assistant", "content": "4"},
    {"role": "user", "content": "And 3 + 3?"},
]


def write_model(folder: Path, template: str | None, *, in_config: bool = True, eos_in_generation: object = 1) -> Path:
    """A byte-level tokenizer with a BOS post-processor, as instruction-tuned models have."""
    backend = Backend(
        models.BPE({symbol: i for i, symbol in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}, [])
    )
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(text) for text in ("<s>", "<|im_start|>", "<|im_end|>", "<pad>")])
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", backend.token_to_id("<s>"))]
    )
    backend.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<s>",
        "eos_token": {"content": "<|im_end|>", "__type": "AddedToken"},
        "pad_token": "<pad>",
    }
    if template is not None and in_config:
        config["chat_template"] = template
    elif template is not None:
        (folder / "chat_template.jinja").write_text(template)
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    if eos_in_generation is not None:
        (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": eos_in_generation}))
    return folder


@pytest.mark.parametrize("in_config", [True, False], ids=["tokenizer_config.json", "chat_template.jinja"])
@pytest.mark.parametrize("name", TEMPLATES)
def test_renders_and_encodes_as_transformers_does(tmp_path: Path, name: str, in_config: bool) -> None:
    from transformers import AutoTokenizer

    write_model(tmp_path, TEMPLATES[name], in_config=in_config)
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    ours = Tokenizer.from_folder(tmp_path)
    for messages in (MESSAGES, MESSAGES[1:2]):
        for generation in (True, False):
            text = ours.render(messages, add_generation_prompt=generation)
            assert text == theirs.apply_chat_template(messages, tokenize=False, add_generation_prompt=generation)
            expected = theirs.apply_chat_template(messages, add_generation_prompt=generation)["input_ids"]
            assert ours.encode(text) == expected
    text = "Grüße, 2 + 2 <|im_end|> 世界"
    assert ours.encode(text, add_special_tokens=True) == theirs(text)["input_ids"]
    assert ours.decode(ours.encode(text)) == theirs.decode(ours.encode(text), skip_special_tokens=True)
    assert ours.decode(ours.encode(text), skip_special_tokens=False) == text
    assert ours.vocab_size == len(theirs)
    assert ours.pad_token_id == theirs.pad_token_id


@pytest.mark.parametrize(("value", "expected"), [(7, (7, 258)), ([258, 9], (258, 9)), (None, (258,))])
def test_end_of_sequence_ids_come_from_generation_config_and_tokenizer(
    tmp_path: Path, value: object, expected: tuple[int, ...]
) -> None:
    write_model(tmp_path, None, eos_in_generation=value)
    assert Tokenizer.from_folder(tmp_path).eos_token_ids == expected


def test_a_template_cannot_reach_python_internals(tmp_path: Path) -> None:
    write_model(tmp_path, "{{ messages.__class__.__mro__[1].__subclasses__() }}")
    with pytest.raises(DataError, match="refused"):
        Tokenizer.from_folder(tmp_path).render(MESSAGES)


def test_a_template_cannot_change_the_messages(tmp_path: Path) -> None:
    write_model(tmp_path, "{{ messages.clear() }}")
    with pytest.raises(DataError, match="refused"):
        Tokenizer.from_folder(tmp_path).render(MESSAGES)


def test_errors_name_file_and_fix(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no tokenizer\.json"):
        Tokenizer.from_folder(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(DataError, match="damaged"):
        Tokenizer.from_folder(tmp_path)
    write_model(tmp_path, "{% if %}")
    with pytest.raises(DataError, match="does not compile"):
        Tokenizer.from_folder(tmp_path)
    write_model(tmp_path, "{{ raise_exception('no system role') }}")
    with pytest.raises(DataError, match="no system role"):
        Tokenizer.from_folder(tmp_path).render(MESSAGES)
    write_model(tmp_path, None)
    with pytest.raises(DataError, match="no chat template"):
        Tokenizer.from_folder(tmp_path).render(MESSAGES)
    with pytest.raises(DataError, match="cannot encode"):
        Tokenizer.from_folder(tmp_path).encode("\ud800")


def test_a_model_without_end_of_sequence_is_refused(tmp_path: Path) -> None:
    write_model(tmp_path, None, eos_in_generation=None)
    (tmp_path / "tokenizer_config.json").write_text("{}")
    with pytest.raises(DataError, match="end-of-sequence"):
        Tokenizer.from_folder(tmp_path)


def test_loads_no_torch() -> None:
    import subprocess

    code = (
        "import sys, crescendo.common.tokenizer, crescendo.common.models, crescendo.controller.data, "
        "crescendo.controller.report; assert not {'torch', 'transformers', 'datasets'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
