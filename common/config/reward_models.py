"""Config of remote reward models: where they are, how they answer, and what a call may cost."""

from dataclasses import dataclass

from crescendo.common.config.fields import setting


@dataclass
class RewardModelConfig:
    """A reward model that the reward process asks over the network."""

    protocol: str = setting(
        "openai",
        "openai: HTTP as OpenAI's and vLLM's servers speak it; grpc: RewardModelService (proto/crescendo/v1)",
        choices=("openai", "grpc"),
    )
    url: str = setting("", "openai: http:// or https:// address of the server; grpc: host:port", pattern=r"\S{1,1000}")
    path: str = setting(
        "", "openai: path after the address; empty: /v1/chat/completions for a verdict, /pooling for a score"
    )
    model: str = setting("", "name that the server knows the model by", pattern=r".{1,300}")
    answers: str = setting(
        "verdict",
        "verdict: it reasons and ends with a JSON verdict; score: it answers with a number (classic)",
        choices=("verdict", "score"),
        source="k1.5 section 2.3.5: accuracy 98.5 against 84.4",
    )
    instructions: str = setting(
        "", "verdict: what to judge by; empty: whether the response's answer equals the reference answer"
    )
    low: float = setting(0.0, "scores below count as this", at_least=-1e6, at_most=1e6)
    high: float = setting(1.0, "scores above count as this", at_least=-1e6, at_most=1e6)
    api_key_file: str = setting("", "file with the key, sent as a bearer token; read by the reward process only")
    ca_file: str = setting(
        "", "file with certificates to trust; openai: in place of the public ones, grpc: makes it TLS"
    )
    temperature: float = setting(0.0, "verdict: sampling of the model", at_least=0, at_most=2)
    max_tokens: int = setting(4096, "verdict: longest reasoning", unit="tokens", at_least=16)
    timeout_s: float = setting(120.0, "longest wait for one answer", unit="s", above=0, at_most=3600)
    attempts: int = setting(3, "tries, with growing waits between them, before it is a fault", at_least=1, at_most=20)
    max_concurrency: int = setting(32, "calls at once", at_least=1, at_most=4096)
    cache_entries: int = setting(
        65536, "answers kept, by digest of what was asked, so that none is asked for twice; 0: none", at_least=0
    )
