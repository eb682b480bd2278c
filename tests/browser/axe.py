"""axe-core's judgement of a page: what keeps people from using it.

In: a page that is open.  Out: the violations that axe calls serious or critical, each with where.
"""

from __future__ import annotations

from pathlib import Path

from playwright.sync_api import Page

from tests.browser.npm import npm_package

VERSION = "4.14.1"
#: `npm view axe-core@4.14.1 dist.integrity`
INTEGRITY = "sha512-FHfa+lmNjQZfJz1q8wKqIDwC6DExcHt/pkjNQb09a3NPjCKg2rhu5qb2S4r76ASyFNNtuFooJpZe37OgudVGtQ=="
_SERIOUS = ("serious", "critical")


class Axe:
    """axe-core, fetched into ``cache`` once."""

    def __init__(self, cache: Path) -> None:
        self._source = (npm_package("axe-core", VERSION, INTEGRITY, cache) / "axe.min.js").read_text()

    def violations(self, page: Page) -> list[str]:
        """In light and dark."""
        found = []
        for scheme in ("light", "dark"):
            page.emulate_media(color_scheme=scheme)
            page.evaluate(self._source)
            result = page.evaluate("axe.run()")
            found += [
                f"{scheme}: {one['id']} ({one['help']}): {node['target']} {node['html'][:120]}"
                for one in result["violations"]
                if one["impact"] in _SERIOUS
                for node in one["nodes"]
            ]
        return found
