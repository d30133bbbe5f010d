"""The Redis or Valkey that many jobs share: one login a job, which reaches that job's run and nothing else.

The operator is its administrator: it sets a job's login before each attempt (a repeated write changes nothing) and
removes logins whose jobs are gone, with the run's keys under `Delete`. What a later job is to know of a login stands in
its name: PREFIX.retain|delete.NAMESPACE.UID. Passwords reach the server as hashes, so no answer of it can hold one.
Clusters that share a server need different prefixes.
"""

import hashlib
import logging
import re
from collections.abc import Iterable, Set
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import urlencode, urlsplit, urlunsplit

from redis import exceptions as redis_errors

from crescendo.buffer import runs
from crescendo.buffer.connections import make_redis
from crescendo.buffer.permissions import acl_rule
from crescendo.common.errors import CrescendoError, EnvironmentProblem, RequestError
from crescendo.controller.operator.options import Options
from crescendo.controller.operator.resource import Job

log = logging.getLogger(__name__)

_STORAGE_ID: Final = re.compile(r"[A-Za-z0-9-]{1,64}")
_KEYS: Final = re.compile(r"~\{crescendo:([A-Za-z0-9.-]{1,128})\}:\*")
_KEEP: Final = "retain"
_DROP: Final = "delete"


class SharedBufferProblem(EnvironmentProblem):
    """The shared server could not be reached or refused; the next look tries again."""

    retryable = True


def is_shared(job: Job) -> bool:
    """Whether the job uses it."""
    return bool((job.spec.get("buffer") or {}).get("mode", "Dedicated") == "Shared")


def run_id(job: Job) -> str:
    """The run's id, which its keys begin with: of the namespace, so that no other's storage can be adopted."""
    return f"{job.namespace}.{job.storage_id}"


def user_name(job: Job, options: Options) -> str:
    """The job's login."""
    retention = (job.spec.get("storage") or {}).get("retention", "Retain")
    return f"{options.shared_buffer_prefix}.{_DROP if retention == 'Delete' else _KEEP}.{job.namespace}.{job.uid}"


def job_url(job: Job, options: Options, password_file: str) -> str:
    """The server's URL as the run's pods use it."""
    parts = urlsplit(options.shared_buffer_url)
    host = f"{parts.hostname}:{parts.port or 6379}"
    query = "&".join(filter(None, (parts.query, urlencode({"password_file": password_file}, safe="/"))))
    return urlunsplit(parts._replace(netloc=f"{user_name(job, options)}@{host}", query=query))


def shared_problems(job: Job, options: Options) -> list[str]:
    """Why the job cannot use it."""
    if not is_shared(job):
        return []
    if not options.shared_buffer_url:
        return [
            "spec.buffer.mode is Shared, but this installation has no shared server (valkey.enabled or externalUrl)"
        ]
    if not _STORAGE_ID.fullmatch(job.storage_id):
        return ["the annotation rl.crescendo.dev/adopt-storage must be the uid of an RLJob"]
    return []


@dataclass(frozen=True)
class Login:
    """A job's login as the server lists it. drops: whether the run's keys go with it; run_id: which it may reach."""

    name: str
    drops: bool
    uid: str
    run_id: str


@dataclass(frozen=True)
class SharedBuffer:
    """The server, seen by its administrator."""

    options: Options

    async def admit(self, job: Job, password: str) -> None:
        """Makes the job's login, or makes it what it should be. Raises SharedBufferProblem."""
        if wrong := shared_problems(job, self.options):  # an id of other characters would end the rule, and go on
            raise SharedBufferProblem(wrong[0])
        digest = hashlib.sha256(password.encode()).hexdigest()
        rule = acl_rule(user_name(job, self.options), run_id(job)).split()
        place = rule.index(">PASSWORD")
        await self._do([(*rule[:place], "resetpass", f"#{digest}", *rule[place + 1 :])])

    async def logins(self) -> list[Login]:
        """Logins of the watched namespaces' jobs. Raises SharedBufferProblem."""
        (lines,) = await self._do([("ACL", "LIST")], save=False)
        found = []
        for line in map(_text, lines):
            name = line.split()[1]
            parts = name.rsplit(".", 3)
            if len(parts) != 4 or parts[0] != self.options.shared_buffer_prefix or parts[1] not in (_KEEP, _DROP):
                continue
            if self.options.watch_namespaces and parts[2] not in self.options.watch_namespaces:
                continue
            keys = _KEYS.search(line)
            found.append(Login(name, parts[1] == _DROP, parts[3], keys[1] if keys else ""))
        return found

    async def sweep(self, logins: Iterable[Login], uids: Set[str]) -> list[str]:
        """Removes the logins of jobs that are gone, and under `Delete` their keys; returns the logins' names.

        logins: read before the jobs were, so that a job made meanwhile is not taken for gone; uids: of the jobs.
        """
        gone = [login for login in logins if login.uid not in uids]
        for login in gone:
            if login.drops and login.run_id:
                await self._remove_run(login.run_id)
            await self._do([("ACL", "DELUSER", login.name)])
        return [login.name for login in gone]

    async def _remove_run(self, run: str) -> None:
        try:
            await runs.remove(self._url, run, force=True)
        except RequestError:
            log.info("run %s has written nothing", run)
        except CrescendoError as error:
            raise SharedBufferProblem(f"keys of run {run} stay for now: {error}") from None

    @property
    def _url(self) -> str:
        url, file = self.options.shared_buffer_url, self.options.shared_buffer_password_file
        if not file:
            return url
        return f"{url}{'&' if urlsplit(url).query else '?'}{urlencode({'password_file': file}, safe='/')}"

    async def _do(self, commands: list[tuple[str, ...]], *, save: bool = True) -> list[Any]:
        """Commands of the administrator; what they changed is stored where the server has a file for it."""
        redis: Any = make_redis(self._url)
        try:
            answers = [await redis.execute_command(*command) for command in commands]
            if save:
                await _save(redis)
            return answers
        except (redis_errors.RedisError, OSError) as error:
            raise SharedBufferProblem(
                f"the shared buffer cannot be administered: {type(error).__name__}: {error}.",
                field="valkey",
                fix="Check valkey.externalUrl, the password in its Secret and the network policy.",
            ) from None
        finally:
            await redis.aclose()


async def _save(redis: Any) -> None:
    try:
        await redis.execute_command("ACL", "SAVE")
    except redis_errors.ResponseError as error:
        if "ACL file" not in str(error) and "unknown" not in str(error).lower():
            raise  # without a file the server's own configuration, or its provider, keeps users


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
