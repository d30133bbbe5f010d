"""The only place that imports Megatron-Core: the model, its parallel groups and the mapping from Hugging Face."""

import warnings

# Megatron warns about accelerator packages that it can do without; said once here, it would be said at each import.
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import megatron.core.models.gpt
    import megatron.core.tensor_parallel.random  # noqa: F401
