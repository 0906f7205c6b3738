"""The NVIDIA GPUs of a target, whether or not a driver answers: where there is one, it must be tested."""

from __future__ import annotations

from testinfra.host import Host

from kiln.checks.asking import lines

# Vendor and class of a PCI device as sysfs writes them: NVIDIA Corporation, display controller. Source: pci.ids.
# Only the shell's own words: a program that is missing would find no GPU.
LOOK = """
for file in {root}/dev/nvidia0 {root}/dev/nvidiactl; do
  [ ! -e $file ] || echo $file
done
for device in {root}/sys/bus/pci/devices/*; do
  if [ -r $device/vendor ] && read -r vendor < $device/vendor && read -r class < $device/class; then
    case $vendor$class in 0x10de0x03*) echo $device ;; esac
  fi
done
"""


def nvidia_gpus(host: Host, root: str = "") -> list[str]:
    """Paths of what the kernel shows of NVIDIA GPUs; ``root``: where /dev and /sys are."""
    return lines(host.run(LOOK.format(root=root)))
