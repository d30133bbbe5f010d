"""Models from other formats into Hugging Face folders."""

from crescendo.trainer.models.gguf import ConversionReport, convert_gguf

__all__ = ["ConversionReport", "convert_gguf"]
