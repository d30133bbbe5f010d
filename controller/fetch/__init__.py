"""Inputs of a run by URI: what `crescendo fetch` brings into a folder before a run starts."""

from crescendo.controller.fetch.cache import fetch
from crescendo.controller.fetch.uri import SCHEMES, Kind, Source, parse

__all__ = ["SCHEMES", "Kind", "Source", "fetch", "parse"]
