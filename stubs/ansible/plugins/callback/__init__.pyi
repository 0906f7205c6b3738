from typing import Any

class Display:
    def error(self, msg: str) -> None: ...

class CallbackBase:
    _display: Display
    def set_options(self, task_keys: Any = None, var_options: Any = None, direct: Any = None) -> None: ...
