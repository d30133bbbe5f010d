"""Loads the tensors of a WeightManifest into vLLM's model, in place.

vLLM makes one `ManifestLoader` a worker and calls it on the engine's thread: start_weight_update,
update_weights with the manifest, finish_weight_update. Tensors are views of mapped shards, or stream in (arriving.py).
Dense models on a CPU take the short way of packed_layers.py, all others vLLM's layerwise reload.
"""

from dataclasses import dataclass
from typing import Any

import torch
from vllm.distributed.weight_transfer.base import (
    WeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
)
from vllm.model_executor.layers.linear import LinearBase
from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload
from vllm.model_executor.model_loader.reload.layerwise import get_layerwise_info

from crescendo.common.errors import WeightMismatchError
from crescendo.proto.v1 import common_pb2
from crescendo.rollout.engine import packed_layers
from crescendo.rollout.engine.arriving import Arriving
from crescendo.rollout.engine.packed_layers import PackedUpdate, Scratch


@dataclass
class ManifestInit(WeightTransferInitInfo):  # type: ignore[misc]
    """Nothing to set up: a manifest names its shards."""


@dataclass
class ManifestUpdate(WeightTransferUpdateInfo):  # type: ignore[misc]
    """manifest: a serialized WeightManifest."""

    manifest: bytes = b""


class ManifestLoader(WeightTransferEngine[ManifestInit, ManifestUpdate]):  # type: ignore[misc]
    """The receiving side of every channel."""

    init_info_cls = ManifestInit
    update_info_cls = ManifestUpdate

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        self._scratch = Scratch()
        self.digests: list[int] | None = None

    def init_transfer_engine(self, init_info: ManifestInit) -> None:
        """Nothing to set up."""

    def start_weight_update(self) -> None:
        """Prepares the layers to be loaded anew."""
        # Taken while shared parameters are still shared: a tied lm_head is not listed, and not published.
        self._expected = {name for name, _ in self.model.named_parameters()}
        self._packed: PackedUpdate | None = None
        if packed_layers.is_supported(self.model, self.device):
            self._packed = PackedUpdate(self.model, self._scratch)
        else:
            initialize_layerwise_reload(self.model)

    def update_weights(self, update_info: dict[str, bytes]) -> None:
        """Loads all tensors. The base class would wait for an accelerator, which a CPU does not have."""
        self.receive_weights(self.parse_update_info(update_info))
        if self.device.type != "cpu":
            torch.accelerator.synchronize()

    def receive_weights(self, update_info: ManifestUpdate) -> None:
        """Raises WeightMismatchError when the manifest left parameters of the model untouched."""
        manifest = common_pb2.WeightManifest.FromString(update_info.manifest)
        try:
            arriving = Arriving(manifest, self.device)
            self._check_complete(self.model.load_weights(arriving.tensors()))
            self.digests = arriving.digests
        except Exception:
            # Leave no layer half prepared, or the next update would go on with this one's remains.
            if self._packed is not None:
                self._packed.cancel()
            else:
                finalize_layerwise_reload(self.model, self.model_config)
            raise

    def finish_weight_update(self) -> None:
        """Ends the update."""
        if self._packed is not None:
            self._packed.finish()
        else:
            finalize_layerwise_reload(self.model, self.model_config)
        self._packed = None

    def shutdown(self) -> None:
        """Nothing is held between updates."""

    def _check_complete(self, loaded: set[str] | None) -> None:
        """A fused layer that got some of its tensors only counts as loaded by name; it is unfinished."""
        missing = self._expected - loaded if loaded is not None else set()
        missing |= self._packed.incomplete if self._packed is not None else _incomplete_layers(self.model)
        if missing:
            raise WeightMismatchError(
                f"the manifest does not fill {len(missing)} parameters of the model, such as {min(missing)}.",
                field="manifest.tensors",
                fix="Publish every tensor under its Hugging Face name.",
            )


def _incomplete_layers(model: torch.nn.Module) -> set[str]:
    """Linear layers that vLLM's general reload still waits for."""
    modules = model.named_modules()
    return {name for name, one in modules if isinstance(one, LinearBase) and get_layerwise_info(one).can_load()}


class WorkerDigests:
    """Added to vLLM's worker class (worker_extension_cls), so that the engine can ask every worker."""

    weight_transfer_engine: ManifestLoader

    def weight_digests(self) -> list[int] | None:
        """Of what the last update streamed to this worker."""
        return self.weight_transfer_engine.digests
