"""Models as folders in Hugging Face format, without torch."""

from crescendo.common.models.scratch import write_scratch_model

__all__ = ["write_scratch_model"]
