"""What Ansible loads from kiln."""
