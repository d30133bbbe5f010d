"""Loading dense weights into vLLM's CPU layers without vLLM's intermediate copies.

A CPU linear layer computes with a packed copy of its weight, made by process_weights_after_loading, and drops
the weight itself. vLLM's general reload allocates every layer anew, copies, packs, copies again, and packs
embeddings that nothing multiplies with. Here the layers that dropped their weight get it back for the length
of an update: tensors of fused layers gather in one warm scratch buffer, whole ones are packed from the mapped
shard itself, and every layer is packed as soon as it is complete. Parameters that stayed (norms, biases,
embeddings) are written where they are. Only an output head is packed again for them.

`PackedUpdate` lives for one weight update, on the worker's thread.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from vllm.model_executor.layers.linear import LinearBase, UnquantizedLinearMethod
from vllm.model_executor.layers.vocab_parallel_embedding import (
    ParallelLMHead,
    UnquantizedEmbeddingMethod,
    VocabParallelEmbedding,
)
from vllm.model_executor.model_loader.reload.layerwise import _get_original_loader, get_layerwise_info
from vllm.model_executor.model_loader.reload.meta import get_numel_loaded
from vllm.model_executor.model_loader.reload.sanitize import restore_layer_refs


def is_supported(model: torch.nn.Module, device: torch.device) -> bool:
    """Whether every weight is dense and packed on a CPU; other models take vLLM's general reload."""
    methods = [module.quant_method for module in model.modules() if hasattr(module, "quant_method")]
    dense = (UnquantizedLinearMethod, UnquantizedEmbeddingMethod)
    return device.type == "cpu" and all(type(method) in dense for method in methods)


class Scratch:
    """Memory that fused layers gather in, kept warm from update to update."""

    def __init__(self) -> None:
        self._free: dict[tuple[int, torch.dtype], list[torch.Tensor]] = {}

    def take(self, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        """A tensor with undefined content."""
        free = self._free.setdefault((math.prod(shape), dtype), [])
        return (free.pop() if free else torch.empty(math.prod(shape), dtype=dtype)).view(shape)

    def give_back(self, tensor: torch.Tensor) -> None:
        """Its content is not needed any more."""
        self._free[(tensor.numel(), tensor.dtype)].append(tensor.view(-1))


class PackedUpdate:
    """One update of one model: construct, let the model load, then `finish` or `cancel`."""

    def __init__(self, model: torch.nn.Module, scratch: Scratch) -> None:
        self._model = model
        self._scratch = scratch
        self._waiting: dict[torch.nn.Module, _WaitingLayer] = {}
        for module in model.modules():
            if isinstance(module, LinearBase) and hasattr(module, "cpu_linear") and not module.weight.numel():
                self._waiting[module] = _WaitingLayer(module, scratch, self._waiting)

    @property
    def incomplete(self) -> set[str]:
        """Names of linear layers that did not get all of their weight."""
        return {name for name, module in self._model.named_modules() if module in self._waiting}

    def finish(self) -> None:
        """Packs the output head, which computes with a copy of a weight that was written in place.

        A tied head shares its parameter with the embedding, so no loader ever sees it: without this it would
        silently go on with the old embedding.
        """
        modules = self._model.named_modules(remove_duplicate=False)
        heads: set[Any] = {module for name, module in modules if _is_head(name, module)}
        for head in heads:
            head.quant_method.process_weights_after_loading(head)

    def cancel(self) -> None:
        """After a failure: layers that wait go back to their old packed weight."""
        for layer in list(self._waiting.values()):
            layer.drop()


def _is_head(name: str, module: Any) -> bool:
    kept = hasattr(module, "cpu_linear") and hasattr(module, "weight") and bool(module.weight.numel())
    embedding_only = isinstance(module, VocabParallelEmbedding) and not isinstance(module, ParallelLMHead)
    return kept and not (embedding_only and name.rpartition(".")[2] != "lm_head")


class _WaitingLayer:
    """A linear layer whose weight is on its way."""

    def __init__(
        self,
        layer: Any,
        scratch: Scratch,
        waiting: "dict[torch.nn.Module, _WaitingLayer]",
    ) -> None:
        self._layer = layer
        self._scratch = scratch
        self._waiting = waiting
        self._gathered: torch.Tensor | None = None
        self._num_loaded = 0
        recorded = get_layerwise_info(layer).restore_metadata[0]["weight"]
        self._target = restore_layer_refs(_like(recorded, recorded.data), layer)
        # vLLM's general reload leaves its wrapper on the recorded tensor.
        self._original: Callable[..., Any] = _get_original_loader(self._target)
        self._target.weight_loader = self._load
        layer.register_parameter("weight", self._target)

    def drop(self) -> None:
        """Leaves the layer without a weight, as it was."""
        if self._gathered is not None:
            self._scratch.give_back(self._gathered)
            self._gathered = None
        self._waiting.pop(self._layer, None)
        empty = torch.empty(0, dtype=self._target.dtype)
        self._layer.weight = torch.nn.Parameter(empty, requires_grad=False)

    def _load(self, param: torch.Tensor, loaded: torch.Tensor, *arguments: Any, **keywords: Any) -> None:
        """Stands in for the parameter's weight_loader while the update runs."""
        whole = not arguments and not keywords and loaded.shape == param.shape and loaded.dtype == param.dtype
        if whole:
            self._pack(loaded)
            return
        if self._gathered is None:
            self._gathered = self._scratch.take(tuple(param.shape), param.dtype)
        target = _like(self._target, self._gathered)
        bound = _Bound(target, loaded, arguments, keywords)
        self._num_loaded += get_numel_loaded(self._original, bound)[0]
        if self._num_loaded >= param.numel():
            self._pack(self._gathered)

    def _pack(self, weight: torch.Tensor) -> None:
        layer = self._layer
        layer.weight = torch.nn.Parameter(weight, requires_grad=False)
        layer.quant_method.process_weights_after_loading(layer)
        self.drop()


class _Bound:
    """Arguments of one loader call in the form that vLLM's counter reads (inspect.BoundArguments)."""

    def __init__(
        self, param: torch.Tensor, loaded: torch.Tensor, rest: tuple[Any, ...], keywords: dict[str, Any]
    ) -> None:
        self.args = (param, loaded, *rest)
        self.kwargs = keywords
        self.arguments = {"param": param}


def _like(recorded: torch.Tensor, data: torch.Tensor) -> torch.Tensor:
    """`data` as a parameter of the recorded one's class, with its attributes (loader, partitioned dimensions)."""
    tensor = data.detach()
    tensor.__class__ = recorded.__class__
    tensor.__dict__ = recorded.__dict__.copy()
    return tensor
