from typing import Any

class Host:
    def __getattr__(self, name: str) -> Any: ...
