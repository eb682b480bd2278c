"""OHIF's built pages, as npm has them: the package's dependencies are built into its ``dist``."""

from __future__ import annotations

from pathlib import Path

from tests.browser.npm import npm_package

PACKAGE = "@ohif/app"
VERSION = "3.13.2"
#: `npm view @ohif/app@3.13.2 dist.integrity`
INTEGRITY = "sha512-WZdxmpmG7rqFgW9ZJLcbgr3XCtLi1KDNPoMaeY5PPe6j4G4fjEjjkycZM6C6Zk2F87BKxFfpq+jd5xXZB9E8EA=="


def ohif_pages(cache: Path) -> Path:
    """The folder that a web server serves as OHIF. See ``npm_package``."""
    return npm_package(PACKAGE, VERSION, INTEGRITY, cache) / "dist"
