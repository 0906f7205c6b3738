from collections.abc import Callable, Mapping
from typing import Any

from pystache.parsed import ParsedTemplate as ParsedTemplate

class Renderer:
    def __init__(
        self,
        *,
        escape: Callable[[str], str] | None = None,
        partials: Mapping[str, str] | None = None,
        missing_tags: str | None = None,
    ) -> None: ...
    def render(self, template: str | ParsedTemplate, *context: Any, **kwargs: Any) -> str: ...

def parse(template: str, delimiters: tuple[str, str] | None = None) -> ParsedTemplate: ...
