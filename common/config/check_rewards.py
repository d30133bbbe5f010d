"""Rules over what a run file rewards: chains, their scorers and options, reward models. Called by check.py."""

from collections.abc import Callable, Iterator

from crescendo.common.config import check_rl
from crescendo.common.config.problems import Problem
from crescendo.common.config.reward_models import RewardModelConfig
from crescendo.common.config.rl import StageConfig
from crescendo.common.config.schema import Config, ScorerConfig
from crescendo.common.config.scorers import GROUP_KINDS, SCORER_KINDS, check_link

# Group-wise rewards whose worst value is for reaching the limit, which `truncated: zero` would erase.
PUNISH_THE_LIMIT = ("cosine_length", "soft_overlong")

Links = list[tuple[str, ScorerConfig, tuple[str, ...]]]


def links_of(config: Config) -> Links:
    """All links with their paths in the run file and the kinds of scorers that may stand there."""
    chains = [
        (f"rewards.chains.{domain}[{i}]", link, SCORER_KINDS)
        for domain, chain in config.rewards.chains.items()
        for i, link in enumerate(chain)
    ]
    return chains + [(f"rewards.group[{i}]", link, GROUP_KINDS) for i, link in enumerate(config.rewards.group)]


def _scorers(config: Config) -> Iterator[Problem]:
    for path, link, kinds in links_of(config):
        if not link.scorer:
            yield Problem(f"{path}.scorer", f"{path}.scorer is not set; it is required.", "Name a scorer.")
            continue
        # An option that stages fill in may be right in one and wrong in another. Without weight it is not applied.
        stages: list[StageConfig | None] = [
            stage for _, stage in check_rl.stages(config) if stage.reward_weights.get(link.scorer, link.weight)
        ]
        found = [
            problem
            for stage in stages or [None]
            for problem in check_link(path, link.scorer, link.options, kinds, stage)
        ]
        yield from dict.fromkeys(found)


def _domains(config: Config) -> Iterator[Problem]:
    if not any(step.kind == "rl" for step in config.steps):
        return
    for path, source in (("data.train", config.data.train), ("data.validation", config.data.validation)):
        if not config.rewards.chains.get(source.domain):
            known = ", ".join(config.rewards.chains) or "none"
            yield Problem(
                f"{path}.domain",
                f"{path}.domain is {source.domain!r}, for which rewards.chains has no scorers (it has: {known}).",
                f"Add rewards.chains.{source.domain}, or correct the domain.",
                ("rewards.chains",),
            )


def _limits(config: Config) -> Iterator[Problem]:
    for path, stage in check_rl.stages(config):
        for link in config.rewards.group:
            weight = stage.reward_weights.get(link.scorer, link.weight)
            if link.scorer in PUNISH_THE_LIMIT and weight and stage.truncated == "zero":
                yield Problem(
                    f"{path}.truncated",
                    f"{path}.truncated is zero, which makes the whole reward of a cut response 0, and with it what "
                    f"{link.scorer} takes for reaching the limit.",
                    f"Set it to score, or give {link.scorer} weight 0 in this stage.",
                    ("rewards.group",),
                )


def _models(config: Config) -> Iterator[Problem]:
    for name, model in config.rewards.models.items():
        path = f"rewards.models.{name}"
        yield from _address(path, model)
        if model.low >= model.high:
            yield Problem(
                f"{path}.low", f"{path}.low is {model.low:g}; it must be below high, {model.high:g}.", "Swap."
            )
    for path, link, _ in links_of(config):
        named = link.options.get("model", "")
        if link.scorer == "reward_model" and named and named not in config.rewards.models:
            known = ", ".join(config.rewards.models) or "none"
            yield Problem(
                f"{path}.options.model",
                f"{path}.options.model is {named!r}; rewards.models has no such model (it has: {known}).",
                f"Describe it under rewards.models.{named}, or correct the name.",
                ("rewards.models",),
            )


def _address(path: str, model: RewardModelConfig) -> Iterator[Problem]:
    is_http = model.url.startswith(("http://", "https://"))
    if model.protocol == "openai" and not is_http:
        yield Problem(
            f"{path}.url",
            f"{path}.url is {model.url!r}; with protocol openai it must begin with http:// or https://.",
            "Give the server's address, such as https://judge.example:8000.",
        )
    if model.path and not model.path.startswith("/"):
        yield Problem(f"{path}.path", f"{path}.path is {model.path!r}; it must begin with /.", "Write the slash.")
    if model.protocol == "grpc" and (is_http or ":" not in model.url):
        yield Problem(
            f"{path}.url",
            f"{path}.url is {model.url!r}; with protocol grpc it must be host:port.",
            "Give the address of its RewardModelService.",
        )


RULES: tuple[Callable[[Config], Iterator[Problem]], ...] = (_scorers, _domains, _limits, _models)
