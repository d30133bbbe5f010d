"""Programs and outcomes as protobuf messages, for the pipe between a worker and the executor's main process."""

from crescendo.common.errors import RequestError
from crescendo.proto.v1 import reward_pb2
from crescendo.reward_service.sandbox.protocol import Boundary, Ending, Jail, Limits, Outcome, Program


def program_message(program: Program) -> reward_pb2.SandboxProgram:
    """The message that a worker sends."""
    limits = program.limits
    return reward_pb2.SandboxProgram(
        profile=program.profile,
        files=dict(program.files),
        stdin=program.stdin,
        arguments=program.arguments,
        environment=dict(program.environment),
        limits=reward_pb2.SandboxLimits(
            wall_seconds=limits.wall_s,
            cpu_seconds=limits.cpu_s,
            memory_bytes=limits.memory_bytes,
            output_bytes=limits.output_bytes,
            files_bytes=limits.files_bytes,
            num_files=limits.num_files,
            file_bytes=limits.file_bytes,
            num_processes=limits.num_processes,
        ),
    )


def read_program(message: reward_pb2.SandboxProgram, most: Limits) -> Program:
    """The program, checked, its limits no higher than `most`: the worker that made it has read model text.

    Raises RequestError naming the field that breaks a rule.
    """
    asked = message.limits
    limits = Limits(
        wall_s=min(asked.wall_seconds, most.wall_s),
        cpu_s=min(asked.cpu_seconds, most.cpu_s),
        memory_bytes=min(asked.memory_bytes, most.memory_bytes),
        output_bytes=min(asked.output_bytes, most.output_bytes),
        files_bytes=min(asked.files_bytes, most.files_bytes),
        num_files=min(asked.num_files, most.num_files),
        file_bytes=min(asked.file_bytes, most.file_bytes),
        num_processes=min(asked.num_processes, most.num_processes),
    )
    program = Program(
        profile=message.profile,
        files=dict(message.files),
        stdin=message.stdin,
        arguments=tuple(message.arguments),
        environment=dict(message.environment),
        limits=limits,
    )
    program.check()
    return program


def outcome_message(outcome: Outcome) -> reward_pb2.SandboxOutcome:
    """The message that the main process sends back."""
    return reward_pb2.SandboxOutcome(
        ending=outcome.ending,
        code=outcome.code,
        stdout=outcome.stdout,
        stderr=outcome.stderr,
        is_stdout_truncated=outcome.is_stdout_truncated,
        is_stderr_truncated=outcome.is_stderr_truncated,
        seconds=outcome.seconds,
        cpu_seconds=outcome.cpu_seconds,
        peak_bytes=outcome.peak_bytes,
        boundary=outcome.boundary,
        jail=outcome.jail,
        reason=outcome.reason,
    )


def read_outcome(message: reward_pb2.SandboxOutcome) -> Outcome:
    """The outcome; raises RequestError for words that are not the contract's."""
    try:
        ending, boundary, jail = Ending(message.ending), Boundary(message.boundary), Jail(message.jail)
    except ValueError as error:
        raise RequestError(f"a sandbox outcome cannot be read: {error}.", field="ended") from None
    return Outcome(
        ending=ending,
        code=message.code,
        stdout=message.stdout,
        stderr=message.stderr,
        is_stdout_truncated=message.is_stdout_truncated,
        is_stderr_truncated=message.is_stderr_truncated,
        seconds=message.seconds,
        cpu_seconds=message.cpu_seconds,
        peak_bytes=message.peak_bytes,
        boundary=boundary,
        jail=jail,
        reason=message.reason,
    )
