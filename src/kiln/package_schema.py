"""The platform's specification of a package as JSON schemas. Source: its developer guide, "specifications"."""

from __future__ import annotations

from typing import Any

Schema = dict[str, Any]

TEXT: Schema = {"type": "string"}
FLAG: Schema = {"type": "boolean"}
LONGEST_S = 86_400
"""Of a service's command."""
CPUS = [1, 2, 4, 8, 12, 16, 24, 32, 64]
MEMORY_MIB = [
    *(1024, 2048, 4096, 6144, 8192, 12288, 16384, 24576, 32768, 40960, 49152, 65536, 81920, 98304),
    *(114688, 131072, 163840, 196608, 229376, 262144, 327680),
]
GPUS = [0, 1, 2, 4, 8]
STATISTICS = ["min", "max", "avg", "delta", "rate", "mode", "median", "latest"]
TEXT_STATISTICS = ["mode", "latest"]
"""Those that a monitor item of type str may have."""
SYSTEM_SERVICES = [
    *("init", "start", "stop", "restart", "scale_out", "scale_in", "destroy", "upgrade", "rollback"),
    *("get_nodes_order", "backup", "restore", "delete_snapshot"),
]


def integer(least: int, most: int | None = None) -> Schema:
    return {"type": "integer", "minimum": least, **({"maximum": most} if most is not None else {})}


def an_object(properties: Schema, *required: str) -> Schema:
    """An object without other keys than ``properties``."""
    return {"type": "object", "properties": properties, "required": list(required), "additionalProperties": False}


def mapping(values: Schema, most: int | None = None) -> Schema:
    limit = {"maxProperties": most} if most is not None else {}
    return {"type": "object", "additionalProperties": values, **limit}


def array(items: Schema, least: int = 0, most: int | None = None) -> Schema:
    return {"type": "array", "items": items, "minItems": least, **({"maxItems": most} if most is not None else {})}


PROPERTY = an_object(
    {
        "key": {"type": "string", "pattern": r"^\S+$"},
        "label": TEXT,
        "description": TEXT,
        "type": {
            "enum": [
                *("integer", "boolean", "string", "number", "array", "service", "loadbalancer", "password"),
                *("accesskey", "vxnet", "eip"),
            ]
        },
        "required": {"enum": ["yes", "no"]},
        "default": {},
        "range": array({}, least=1),
        "min": {"type": "number"},
        "max": {"type": "number"},
        "step": {"type": "number", "exclusiveMinimum": 0},
        "auto_scale_step": {"type": "number", "exclusiveMinimum": 0},
        "pattern": TEXT,
        "changeable": FLAG,
        "changeable_when_create": FLAG,
        "multichoice": FLAG,
        "separator": TEXT,
        "system": FLAG,
        "expanded": FLAG,
        "customizable": FLAG,
        "resource_group": array({}),
        "dependencies": array({"type": "object"}),
        "associate_mode": {"enum": [0, 1]},
        "limits": {"type": "object"},
        "allowed_operations": array({"enum": ["add", "modify", "delete"]}),
        "port": {},
        "properties": array({"$ref": "#/$defs/property"}),
    },
    "key",
    "type",
)

FORM: Schema = {
    "$defs": {"property": PROPERTY},
    **an_object(
        {"type": {"const": "array"}, "properties": array({"$ref": "#/$defs/property"}, least=1)}, "type", "properties"
    ),
}

SERVICE = an_object(
    {
        "type": {"const": "custom"},
        "cmd": {"type": "string", "minLength": 1},
        "timeout": integer(1, LONGEST_S),
        "order": integer(0),
        "nodes_to_execute_on": integer(1),
        "post_start_service": FLAG,
        "post_stop_service": FLAG,
        "pre_check": {"type": "string", "minLength": 1},
        "allow_force": FLAG,
        "with_replica": FLAG,
        "event": array({"enum": ["upgrade", "rollback", "scale_vertical"]}),
        "service_params": {"type": "object"},
    }
)

HEALTH_CHECK = an_object(
    {
        "enable": FLAG,
        "interval_sec": integer(60),
        "timeout_sec": integer(3),
        "action_timeout_sec": integer(3),
        "healthy_threshold": integer(2),
        "unhealthy_threshold": integer(2),
        "check_cmd": {"type": "string", "minLength": 1},
        "action_cmd": {"type": "string", "minLength": 1},
    }
)

MONITOR = an_object(
    {
        "enable": FLAG,
        "cmd": {"type": "string", "minLength": 1},
        "items": mapping(
            an_object(
                {
                    "unit": TEXT,
                    "value_type": {"enum": ["int", "str"]},
                    "statistics_type": {"enum": STATISTICS},
                    "scale_factor_when_display": {"type": "number", "exclusiveMinimum": 0},
                    "enums": array({}, least=1),
                }
            ),
            most=50,
        ),
        "groups": mapping(array(TEXT, least=1, most=5)),
        "display": array(TEXT),
        "alarm": array(TEXT),
    }
)

VOLUME = an_object(
    {
        "size": {"type": "integer", "minimum": 10, "multipleOf": 10},
        "mount_point": {"type": ["string", "array"], "items": TEXT, "minItems": 1, "maxItems": 3},
        "mount_options": TEXT,
        "filesystem": {"enum": ["ext4", "xfs", "ntfs"]},
        "class": {"enum": [0, 2, 3, 5, 6, 100, 200]},
    },
    "size",
)

ACTIONS = array({"enum": ["change_vxnet", "scale_horizontal", "associate_eip"]})
ENV: Schema = {"type": "object"}

NODE = an_object(
    {
        "role": {"type": "string", "pattern": r"^(?!.*-replica$)\S+$"},
        "loadbalancer": {},
        "container": an_object({"type": {"enum": ["kvm", "docker"]}, "image": TEXT, "zone": TEXT}, "type", "image"),
        "instance_class": integer(0),
        "gpu_class": {"enum": [0, 2]},
        "count": integer(0),
        "cpu": {"enum": CPUS},
        "cpu_model": TEXT,
        "memory": {"enum": MEMORY_MIB},
        "gpu": {"enum": GPUS},
        "volume": VOLUME,
        "replica": integer(0),
        "extra_quota": {"type": "object"},
        "reserved_ips": {"type": "object"},
        "passphraseless": {"enum": ["ssh-dsa", "ssh-rsa"]},
        "vertical_scaling_policy": {"enum": ["sequential", "parallel"]},
        "user_access": FLAG,
        "eip_class": {"const": "base"},
        "services": mapping(SERVICE),
        "server_id_upper_bound": integer(1),
        "env": ENV,
        "agent_installed": FLAG,
        "custom_metadata": an_object({"cmd": TEXT}, "cmd"),
        "advanced_actions": ACTIONS,
        "health_check": HEALTH_CHECK,
        "monitor": MONITOR,
    },
    "container",
    "count",
)

TOPOLOGY: Schema = an_object(
    {
        "name": TEXT,
        "description": TEXT,
        "vxnet": TEXT,
        "need_tag": FLAG,
        "links": {"type": "object"},
        "exclude_node_columns": array(TEXT),
        "need_intranet_api_server": FLAG,
        "backup_policy": {"enum": ["device", "custom"]},
        "incremental_backup_supported": FLAG,
        "upgrade_policy": array({"type": "string", "pattern": "^appv-[a-z0-9]+$"}),
        "upgrading_policy": {"enum": ["parallel", "sequential", "in-place-parallel", "in-place-sequential"]},
        "nodes": array(NODE, least=1),
        "advanced_services": {},
        "env": ENV,
        "advanced_actions": ACTIONS,
        "endpoints": {"type": "object"},
        "metadata_root_access": FLAG,
        "health_check": HEALTH_CHECK,
        "monitor": MONITOR,
        "display_tabs": mapping(
            an_object(
                {"cmd": TEXT, "roles_to_execute_on": array(TEXT), "description": TEXT, "timeout": integer(1, 10)}, "cmd"
            ),
            most=5,
        ),
    },
    "name",
    "description",
    "vxnet",
    "nodes",
)

LOCALE: Schema = mapping({"type": "string", "minLength": 1})
