"""Arguments of the commands that handle RLJobs on a Kubernetes cluster. Called by main.py."""

import argparse
from collections.abc import Callable

from crescendo import __version__

Add = Callable[..., argparse.ArgumentParser]


def add_job_commands(commands: object, add: Add) -> None:
    """submit, get, logs, suspend, delete, render and fetch; resume and promote take --cluster."""
    submit = add(
        commands,
        "submit",
        "jobs:submit",
        "submit a run file, or an RLJob, to the cluster",
        "crescendo submit recipes/quickstart/recipe.yaml --image registry.example.com/crescendo/run:0.1.0 -n team",
    )
    submit.add_argument("file", metavar="FILE", help="a run file or an RLJob in YAML")
    submit.add_argument("--image", default="", help="image of head and workers; an RLJob's own when left out")
    submit.add_argument("--name", default="", help="name of the job; run.name when left out")
    get = add(commands, "get", "jobs:get", "list the cluster's jobs, or show one with its conditions")
    get.add_argument("job", metavar="JOB", nargs="?", default="", help="name; all when left out")
    get.add_argument("-A", "--all-namespaces", action="store_true", help="jobs of every namespace")
    logs = add(commands, "logs", "jobs:logs", "print what a job's run says, also when it has ended")
    logs.add_argument("--head", action="store_true", help="the log of the head pod, Ray's own, while there is one")
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
    _add_fetch(commands, add)


def _add_fetch(commands: object, add: Add) -> None:
    fetch = add(
        commands,
        "fetch",
        "fetch:bring",
        "bring a model or a data set into a folder, once and whole; what a job's pods do first",
        "crescendo fetch hf://Qwen/Qwen3-0.6B models/qwen",
        "crescendo fetch s3://bucket/math/train.jsonl data/train --kind dataset",
        "",
        "S3 reads AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_REGION and AWS_ENDPOINT_URL; the hub HF_TOKEN and",
        "HF_ENDPOINT. Exit code 75: the source did not answer well, or the deadline passed; run it again.",
    )
    fetch.add_argument("uri", metavar="URI", help="file:///path, s3://bucket/key or hf://owner/name[@revision][/path]")
    fetch.add_argument("target", metavar="FOLDER", help="where to; its files come to FOLDER/files")
    fetch.add_argument("--kind", choices=("model", "dataset"), default="model", help="which files are wanted (model)")
    fetch.add_argument("--deadline", type=float, default=1800.0, metavar="S", help="longest time for all (1800)")
    fetch.add_argument("--field", default="", metavar="NAME", help="the RLJob's field, for messages")


def add_namespace(command: argparse.ArgumentParser) -> None:
    """Where the job is, and how to reach the cluster."""
    command.add_argument("-n", "--namespace", default="", metavar="NAMESPACE", help="of the job (the kubeconfig's)")
    command.add_argument("--kubeconfig", default="", metavar="FILE", help="instead of KUBECONFIG or ~/.kube/config")


def add_cluster(command: argparse.ArgumentParser) -> None:
    """For commands that also work on runs of this machine."""
    command.add_argument("--cluster", action="store_true", help="an RLJob on the cluster, not a run on this machine")
    add_namespace(command)
