"""The service: receive, route, run, deliver. The folder listing reads as the data path."""

from importlib.metadata import version

__version__ = version("pacsnode")
