"""Ansible callback: a play that changes a host ends with an error; this machine itself may change."""

from __future__ import annotations

import sys

from ansible.executor.stats import AggregateStats
from ansible.plugins.callback import CallbackBase

DOCUMENTATION = """
name: kiln_unchanged
type: aggregate
short_description: Fails where something was changed
description:
  - For roles that run again on what they made. Molecule's own step, idempotence, looks at the second run only.
options: {}
"""


class CallbackModule(CallbackBase):
    """Ends Ansible with an error once the recap tells of a change."""

    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "aggregate"
    CALLBACK_NAME = "kiln_unchanged"
    CALLBACK_NEEDS_ENABLED = True

    def v2_playbook_on_stats(self, stats: AggregateStats) -> None:
        changed = sorted(host for host in stats.changed if host != "localhost")
        if changed:
            self._display.error(f"nothing may change here, but something did on {', '.join(changed)}")
            sys.exit(2)
