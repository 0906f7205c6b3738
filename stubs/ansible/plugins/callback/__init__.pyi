from typing import Any

class CallbackBase:
    def set_options(self, task_keys: Any = None, var_options: Any = None, direct: Any = None) -> None: ...
