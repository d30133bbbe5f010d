"""Registers our transport with vLLM's RL weight interface.

vLLM calls `register` in each of its processes, through the entry point group `vllm.general_plugins`; the
transport itself is in weight_loader.py, which imports torch and is loaded when an engine is made.
"""

BACKEND = "crescendo"


def register() -> None:
    """Adds the backend `crescendo` to vLLM's registry; repeating it changes nothing."""
    from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory

    if BACKEND not in WeightTransferEngineFactory._registry:
        WeightTransferEngineFactory.register_engine(BACKEND, "crescendo.rollout.engine.weight_loader", "ManifestLoader")
