"""The data of one run: training prompts, held-out prompts, and demonstrations that leave the held-out ones out."""

from collections.abc import Iterator
from dataclasses import dataclass

from crescendo.common.config.schema import Config, SftStepConfig
from crescendo.common.runfolder import RunFolder
from crescendo.common.telemetry import JsonlWriter
from crescendo.common.tokenizer import Tokenizer
from crescendo.controller.data import PromptSet, demonstrations, load_prompts
from crescendo.proto.v1 import trainer_pb2


@dataclass(frozen=True)
class Dataset:
    """Loaded once a controller; the same config gives the same prompts in every incarnation."""

    config: Config
    folder: RunFolder
    tokenizer: Tokenizer
    train: PromptSet
    validation: PromptSet

    @classmethod
    def load(cls, config: Config, folder: RunFolder) -> "Dataset":
        """Reads both sources; rows set aside go to quarantine.jsonl. Raises DataError."""
        tokenizer = Tokenizer.from_folder(folder.model)
        quarantine = JsonlWriter(folder.quarantine)
        try:
            domains = config.rewards.chains.keys()
            held_out = load_prompts(
                config.data.validation, config.data, tokenizer,
                field="data.validation", domains=domains, quarantine=quarantine.write,
            )  # fmt: skip
            train = load_prompts(
                config.data.train, config.data, tokenizer,
                domains=domains, held_out=held_out.fingerprints, quarantine=quarantine.write,
            )  # fmt: skip
        finally:
            quarantine.close()
        return cls(config, folder, tokenizer, train, held_out)

    def demonstrations(self, step: SftStepConfig, first_step: int) -> Iterator[trainer_pb2.SftExample]:
        """Examples of a supervised step from one of its steps on."""
        return demonstrations(
            step, self.config.data, self.tokenizer, self.config.run.seed,
            first_example=first_step * step.batch_size, held_out=self.validation.fingerprints,
        )  # fmt: skip
