"""A vLLM platform for tests of Ray placement without GPUs: the CPU's, which Ray knows by GPUs that it only counts.

vLLM's executor for Ray refuses a CPU, because that platform has no name in Ray's resources. `installed` writes the
metadata of a vLLM platform plugin that adds the name, into a folder that goes on PYTHONPATH.
"""

from pathlib import Path

NAME = "tests.integration.vllm_on_ray"


def installed(folder: Path) -> Path:
    """A folder with the plugin's entry point."""
    metadata = folder / "crescendo_test_platform-1.dist-info"
    metadata.mkdir(parents=True)
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: crescendo-test-platform\nVersion: 1\n")
    (metadata / "entry_points.txt").write_text(f"[vllm.platform_plugins]\ncrescendo_test = {NAME}:register\n")
    return folder


def register() -> str:
    """Called by vLLM: the platform's class."""
    return f"{NAME}_platform.CountedCpuPlatform"
