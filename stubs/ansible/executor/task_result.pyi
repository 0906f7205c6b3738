from typing import Any

from ansible.playbook.task import Task

class TaskResult:
    _task: Task
    _result: dict[str, Any]
