"""What a login of the buffer's server must be allowed: exactly the commands used, on the keys of runs only.

`crescendo buffer acl` prints `acl_rule`, and errors about missing permissions name it. The commands are read from the
scripts, since the server checks a script's commands as the caller's own; what clients call themselves is listed here.
"""

import functools
import re

from crescendo.buffer.scripts import script, script_names

KEY_PATTERN = "~{crescendo:*"

CLIENT_COMMANDS = (
    "auth",
    "hello",
    "ping",
    "select",
    "client|setname",
    "client|setinfo",
    "client|list",
    "info",
    "evalsha",
    "script|load",
    "blpop",
    "waitaof",
    "scan",
    "object|idletime",
    "set",
    "get",
    "del",
    "zrange",
    "hmget",
)
"""What connections, waits, checks and `crescendo buffer` call outside scripts."""

SHOW_OTHERS = frozenset({"scan", "client|list"})
"""Of these, what shows other runs' keys and connections whatever a login may reach; `crescendo buffer` needs it."""

_IN_SCRIPT = re.compile(r"\bcall(?:_in_parts)?\(\s*'([A-Z]+)'")


@functools.cache
def script_commands() -> tuple[str, ...]:
    """Commands that scripts call, in lower case; `read.lua` takes its commands from its caller."""
    found = {name.lower() for one in script_names() for name in _IN_SCRIPT.findall(script(one).text)}
    return tuple(sorted(found | {"get", "hget", "hgetall"}))


def commands() -> tuple[str, ...]:
    """Every command that a login needs."""
    return tuple(sorted({*script_commands(), *CLIENT_COMMANDS}))


def acl_rule(user: str = "crescendo", run_id: str = "") -> str:
    """The command that makes such a login; run_id: for that run alone, which cannot list others then."""
    keys = f"~{{crescendo:{run_id}}}:*" if run_id else KEY_PATTERN
    allowed = " ".join(f"+{command}" for command in commands() if not (run_id and command in SHOW_OTHERS))
    return f"ACL SETUSER {user} on >PASSWORD resetkeys {keys} resetchannels -@all {allowed}"
