"""The other side of the e2e benchmark: TRL's GRPOTrainer on the same model, task, samples and forced lengths.

bench_e2e.py starts it with the Python of .venv-trl, which has TRL and no Crescendo, and steers it through its pipes: a
number on a line runs so many steps and is answered by one JSON line with their seconds and trained tokens; end of input
ends it. So both sides stay warm and take turns on the machine, and what one side waits is in nobody's time.

A step is what the trainer does between two optimizer steps: generation, rewards, loss, backward, update. There is no
weight sync to count: TRL generates with the module that it trains. Gradient checkpointing, which TRL switches on by
default, is off, and there is no reference model: both would only slow it down.
"""

import argparse
import json
import sys
import time
from pathlib import Path
from typing import IO, Any

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, LogitsProcessor, LogitsProcessorList, TrainerCallback
from trl import GRPOConfig, GRPOTrainer


class ForcedLengths(LogitsProcessor):
    """Lets each row end at its own length and not before.

    lengths_B: response tokens of each row, the end-of-sequence token included.
    """

    def __init__(self, lengths_B: torch.Tensor, prompt_length: int, eos_id: int) -> None:
        self.lengths_B = lengths_B
        self.prompt_length = prompt_length
        self.eos_id = eos_id

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """scores: [B, V] logits of the next token, changed in place."""
        position = input_ids.shape[1] - self.prompt_length + 1
        scores[:, self.eos_id] = -torch.inf
        ends = self.lengths_B == position
        scores[ends] = -torch.inf
        scores[ends, self.eos_id] = 0.0
        return scores


class Turns(TrainerCallback):
    """Runs as many steps as the other end of the pipe asks for, and tells how long each took."""

    def __init__(self, commands: IO[str], answers: IO[str]) -> None:
        self.commands = commands
        self.answers = answers
        self.left = 0
        self.began = 0.0
        self.tokens: list[int] = []
        self.seconds: list[float] = []

    def wait_for_turn(self, control: Any) -> None:
        """Blocks until steps are asked for; end of input stops the training."""
        line = self.commands.readline().strip()
        self.left = int(line) if line else 0
        control.should_training_stop = self.left == 0
        self.began = time.perf_counter()

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Before the first batch is made."""
        self.wait_for_turn(control)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """After the optimizer's step; the next step's clock starts here."""
        now = time.perf_counter()
        self.seconds.append(now - self.began)
        self.began = now
        self.left -= 1
        if self.left == 0:
            print(json.dumps({"seconds": self.seconds, "tokens": self.tokens}), file=self.answers, flush=True)
            self.seconds, self.tokens = [], []
            self.wait_for_turn(control)


def force_lengths(model: Any, steps: list[dict[str, Any]], samples: int, eos_id: int) -> None:
    """Makes each call of model.generate produce the plan's next step of lengths."""
    generate = model.generate
    pending = iter(steps)

    def forced(**arguments: Any) -> torch.Tensor:
        lengths = [length for row in next(pending)["lengths"] for length in row]
        rows, prompt_length = arguments["input_ids"].shape
        if rows != len(lengths) or rows % samples:
            raise ValueError(f"TRL asked for {rows} rows, the plan has {len(lengths)}")
        processor = ForcedLengths(torch.tensor(lengths), prompt_length, eos_id)
        made: torch.Tensor = generate(**arguments, logits_processor=LogitsProcessorList([processor]))
        return made

    model.generate = forced


def trainer_for(plan: dict[str, Any], arguments: argparse.Namespace, turns: Turns) -> GRPOTrainer:
    """The trainer, its data in the plan's order."""
    tokenizer = AutoTokenizer.from_pretrained(arguments.model, padding_side="left")
    model = AutoModelForCausalLM.from_pretrained(arguments.model, dtype=torch.float32)
    steps, samples = plan["steps"], plan["samples_per_prompt"]
    force_lengths(model, steps, samples, tokenizer.eos_token_id)
    rows = [
        {"prompt": prompt, "answer": answer}
        for step in steps
        for prompt, answer in zip(step["prompts"], step["answers"], strict=True)
    ]
    batch = samples * len(steps[0]["prompts"])
    micro_batch = arguments.micro_batch or batch

    def reward(completions: list[str], answer: list[str], completion_ids: list[list[int]], **_: Any) -> list[float]:
        turns.tokens.append(sum(len(ids) for ids in completion_ids))
        correct = [text.rpartition("#")[2].rstrip("$") == gold for text, gold in zip(completions, answer, strict=True)]
        # Forced lengths make the answers meaningless; the plan's rewards give every sample an advantage.
        return [float(index % 2) for index, _ in enumerate(correct)]

    config = GRPOConfig(
        output_dir=arguments.output,
        use_cpu=True,
        bf16=False,
        max_steps=len(steps),
        per_device_train_batch_size=micro_batch,
        gradient_accumulation_steps=batch // micro_batch,
        generation_batch_size=batch,
        num_generations=samples,
        max_completion_length=plan["max_response_tokens"],
        gradient_checkpointing=False,
        shuffle_dataset=False,
        beta=0.0,
        learning_rate=1e-5,
        lr_scheduler_type="constant",
        use_transformers_continuous_batching=arguments.continuous_batching,
        logging_strategy="no",
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        seed=0,
    )
    return GRPOTrainer(
        model=model,
        reward_funcs=reward,
        args=config,
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
        callbacks=[turns],
    )


def main() -> None:
    """Trains under the steering of the pipe; what the libraries print goes to standard error."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True, help="Hugging Face model folder")
    parser.add_argument("--plan", type=Path, required=True, help="JSON: steps of prompts, answers, lengths")
    parser.add_argument("--output", required=True, help="scratch folder")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--micro-batch", type=int, default=0, help="rows a backward pass; 0: the whole batch")
    parser.add_argument("--continuous-batching", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    answers, sys.stdout = sys.stdout, sys.stderr
    plan = json.loads(arguments.plan.read_text())
    trainer_for(plan, arguments, Turns(sys.stdin, answers)).train()


if __name__ == "__main__":
    main()
