from ansible.playbook.role import Role

class Task:
    action: str
    no_log: bool
    _role: Role | None
    def get_name(self, include_role_fqcn: bool = True) -> str: ...
