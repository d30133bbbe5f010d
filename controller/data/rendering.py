"""From a question to the tokens that the policy reads: template, system prompt, chat template."""

from dataclasses import dataclass

from crescendo.common.config.schema import DataConfig
from crescendo.common.errors import DataError
from crescendo.common.tokenizer import Tokenizer
from crescendo.proto.v1 import common_pb2

_PLACEHOLDER = "{question}"


@dataclass(frozen=True)
class RenderedPrompt:
    """A prompt as messages for people and scorers, and as token ids for the policy."""

    parts: tuple[common_pb2.PromptPart, ...]
    token_ids: tuple[int, ...]


class PromptRenderer:
    """Renders questions; one for prompts and demonstrations, so that warm-up and RL read the same format."""

    def __init__(self, config: DataConfig, tokenizer: Tokenizer) -> None:
        """Raises DataError when the chat template is asked for and the tokenizer has none."""
        if config.chat_template and not tokenizer.has_chat_template:
            raise DataError(
                "data.chat_template is true, but the model's tokenizer has no chat template.",
                field="data.chat_template",
                fix="Set data.chat_template to false, or use an instruction-tuned model.",
            )
        self._config = config
        self._tokenizer = tokenizer

    def render(self, question: str) -> RenderedPrompt:
        """Raises DataError when template or tokenizer refuse the question."""
        message = self._config.template.replace(_PLACEHOLDER, question)
        if not self._config.chat_template:
            ids = self._tokenizer.encode(message, add_special_tokens=True)
            return RenderedPrompt((common_pb2.PromptPart(text=message, role="user"),), tuple(ids))
        messages = [{"role": "user", "content": message}]
        if self._config.system_prompt:
            messages.insert(0, {"role": "system", "content": self._config.system_prompt})
        # The template writes the special tokens itself.
        ids = self._tokenizer.encode(self._tokenizer.render(messages))
        parts = tuple(common_pb2.PromptPart(text=item["content"], role=item["role"]) for item in messages)
        return RenderedPrompt(parts, tuple(ids))
