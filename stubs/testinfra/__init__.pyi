from collections.abc import Iterable

from testinfra.host import Host

def get_hosts(hosts: Iterable[str], **options: str | bool | None) -> list[Host]: ...
