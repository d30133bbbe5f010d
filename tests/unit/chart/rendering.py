"""The chart rendered by real Helm, on a cluster that serves what a test says."""

import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import helm_python
import yaml

CHART = Path(__file__).parents[3] / "helm/crescendo"
BASE: dict[str, Any] = {"executor": {"acceptSharedKernel": True}, "kuberay": {"required": False}}
Manifest = dict[str, Any]


def merged(base: Any, over: Any) -> Any:
    """Values over values, as Helm lays them."""
    if isinstance(base, dict) and isinstance(over, dict):
        return {key: merged(base.get(key), over.get(key, base.get(key))) for key in base | over}
    return over


def render_files(values: dict[str, Any], apis: Sequence[str] = ()) -> dict[str, str]:
    """Text by template. apis: groups that the cluster serves besides its own; Helm's library cannot be told of them."""
    with tempfile.TemporaryDirectory() as folder:
        copied = Path(shutil.copytree(CHART, Path(folder) / CHART.name)) if apis else CHART
        for template in copied.glob("templates/**/*") if apis else ():
            if template.is_file():
                text = template.read_text()
                for api in apis:
                    text = text.replace(f'.Capabilities.APIVersions.Has "{api}"', "eq 1 1")
                template.write_text(text)
        chart = helm_python.Chart.load(str(copied))
        try:
            return chart.render(merged(BASE, values), name="crescendo", namespace="crescendo-system")
        finally:
            chart.close()


def render(values: dict[str, Any], apis: Sequence[str] = ()) -> list[Manifest]:
    """All objects."""
    texts = [text for name, text in render_files(values, apis).items() if not name.endswith("NOTES.txt")]
    return [found for text in texts for found in yaml.safe_load_all(text) if found]
