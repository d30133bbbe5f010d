"""`crescendo buffer`: the runs on a Redis or Valkey server: ls, show, rm, and the login that a run needs: acl."""

import argparse
import asyncio
import json
import sys
from dataclasses import asdict

from rich.console import Console
from rich.table import Table

from crescendo.buffer import EmbeddedServer, runs
from crescendo.buffer.permissions import acl_rule
from crescendo.cli.exits import Exit
from crescendo.cli.folders import find_run
from crescendo.common.errors import RequestError


def ls(options: argparse.Namespace) -> int:
    """Lists the runs on a server."""
    url = _url(options)
    found = [asyncio.run(runs.describe(url, run_id)) for run_id in asyncio.run(runs.list_runs(url))]
    if options.json:
        print(json.dumps([asdict(one) for one in found]))
        return Exit.DONE
    table = Table("run", "open groups", "payload", "commit", "epoch", "state", box=None)
    for one in found:
        commit = f"{one.commit[0]}:{one.commit[1]}" if one.commit else "-"
        state = "held" if one.held else "free"
        table.add_row(
            one.run_id, str(one.counts["groups.open"]), _size(one.payload_bytes), commit, str(one.epoch), state
        )
    Console().print(table if found else "no runs")
    return Exit.DONE


def show(options: argparse.Namespace) -> int:
    """Shows what a server holds of a run."""
    one = asyncio.run(runs.describe(_url(options), options.run_id))
    if options.json:
        print(json.dumps(asdict(one)))
        return Exit.DONE
    table = Table(show_header=False, box=None)
    table.add_row("run", one.run_id)
    table.add_row("schema version", str(one.schema))
    table.add_row("fence", f"epoch {one.epoch}, counter {one.counter}")
    table.add_row("held", f"yes, {one.connections} connections" if one.held else "no")
    table.add_row(
        "commit", f"branch {one.commit[0]}, iteration {one.commit[1]}, {one.commit[2]}" if one.commit else "none yet"
    )
    table.add_row("payload", _size(one.payload_bytes))
    table.add_row("reserved for open trajectories", _size(one.reserved_bytes))
    for name, number in one.counts.items():
        table.add_row(name, str(number))
    Console().print(table)
    return Exit.DONE


def rm(options: argparse.Namespace) -> int:
    """Removes a run from a server, after a question."""
    url = _url(options)
    one = asyncio.run(runs.describe(url, options.run_id))
    if not options.yes:
        if not sys.stdin.isatty():
            raise RequestError(
                f"run {one.run_id} was not removed: nobody can be asked here.", field="--yes", fix="Add --yes."
            )
        question = f"Remove run {one.run_id} with {_size(one.payload_bytes)} of trajectories for good? [y/N] "
        if input(question).strip().lower() not in ("y", "yes"):
            print("nothing removed")
            return Exit.DONE
    print(f"{asyncio.run(runs.remove(url, one.run_id, force=options.force))} keys removed")
    return Exit.DONE


def acl(options: argparse.Namespace) -> int:
    """Prints the command that makes a login with what a run needs, and nothing else."""
    print(acl_rule(options.user, options.run_id))
    return Exit.DONE


def _url(options: argparse.Namespace) -> str:
    """The server that --url or --run names."""
    if options.url:
        return str(options.url)
    return EmbeddedServer(find_run(options.run).buffer).url


def _size(num_bytes: int) -> str:
    value, units = float(num_bytes), iter(("KiB", "MiB", "GiB", "TiB"))
    unit = "B"
    while value >= 1024 and (larger := next(units, None)):
        value, unit = value / 1024, larger
    return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
