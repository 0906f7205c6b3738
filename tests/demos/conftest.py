"""The scripts run on a node's own Python; test_pretrained.py has its name from the guide and is no test."""

collect_ignore_glob = ["*.py"]
