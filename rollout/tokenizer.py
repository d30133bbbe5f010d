"""Token ids to text, for stop strings."""

from collections.abc import Sequence
from pathlib import Path

from tokenizers import Tokenizer

from crescendo.rollout.watch import Decode


def load_decode(folder: Path) -> Decode | None:
    """The decoder of a model folder; None when it has no tokenizer.json."""
    path = folder / "tokenizer.json"
    if not path.exists():
        return None
    tokenizer = Tokenizer.from_file(str(path))

    def decode(token_ids: Sequence[int]) -> str:
        return str(tokenizer.decode(list(token_ids), skip_special_tokens=False))

    return decode
