"""Arguments of the commands that handle RLJobs on a Kubernetes cluster. Called by main.py."""

import argparse
from collections.abc import Callable

from crescendo import __version__

Add = Callable[..., argparse.ArgumentParser]


def add_job_commands(commands: object, add: Add) -> None:
    """submit, get, logs, suspend, delete and render; resume and promote take --cluster."""
    submit = add(
        commands,
        "submit",
        "jobs:submit",
        "submit a run file, or an RLJob, to the cluster",
        "crescendo submit recipes/quickstart/recipe.yaml --image registry.example.com/crescendo/run:0.1.0 -n team",
    )
    submit.add_argument("file", metavar="FILE", help="a run file or an RLJob in YAML")
    submit.add_argument("--image", default="", help="image of head and workers; an RLJob names its own")
    submit.add_argument("--name", default="", help="name of the job; run.name when left out")
    get = add(commands, "get", "jobs:get", "list the cluster's jobs, or show one with its conditions")
    get.add_argument("job", metavar="JOB", nargs="?", default="", help="name; all when left out")
    get.add_argument("-A", "--all-namespaces", action="store_true", help="jobs of every namespace")
    logs = add(commands, "logs", "jobs:logs", "print the log of a job's head pod")
    logs.add_argument("-f", "--follow", action="store_true", help="go on with what is added")
    logs.add_argument("--lines", type=int, default=200, metavar="N", help="newest lines to begin with (200)")
    suspend = add(
        commands, "suspend", "jobs:suspend", "commit, then give a job's devices back", "crescendo suspend math -n team"
    )
    delete = add(commands, "delete", "jobs:delete", "delete a job; retained volumes stay")
    delete.add_argument("--yes", action="store_true", help="do not ask")
    for command in (logs, suspend, delete):
        command.add_argument("job", metavar="JOB", help="name of the job")
    for command in (submit, get, logs, suspend, delete):
        add_namespace(command)
    render = add(
        commands,
        "render",
        "jobs:render",
        "turn a run file into RLJob YAML, or an RLJob back into a run file",
        "crescendo render recipes/quickstart/recipe.yaml --image crescendo/run:0.1.0 > rljob.yaml",
    )
    render.add_argument("file", metavar="FILE", help="a run file or an RLJob in YAML")
    render.add_argument("--image", default=f"crescendo/run:{__version__}", help="image of head and workers")
    render.add_argument("--name", default="", help="name of the job; run.name when left out")


def add_namespace(command: argparse.ArgumentParser) -> None:
    """Where the job is, and how to reach the cluster."""
    command.add_argument("-n", "--namespace", default="default", metavar="NAMESPACE", help="of the job (default)")
    command.add_argument("--kubeconfig", default="", metavar="FILE", help="instead of KUBECONFIG or ~/.kube/config")


def add_cluster(command: argparse.ArgumentParser) -> None:
    """For commands that also work on runs of this machine."""
    command.add_argument("--cluster", action="store_true", help="an RLJob on the cluster, not a run on this machine")
    add_namespace(command)
