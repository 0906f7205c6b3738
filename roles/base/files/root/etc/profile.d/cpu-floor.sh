# Sourced by login shells: says so when this processor lacks what the frameworks of this image were compiled for; they
# would die with "Illegal instruction". The file lists one flag of /proc/cpuinfo per line.
if [ -r /etc/deeplearning/cpu-floor ]; then
  cpu_missing=
  while read -r cpu_flag; do
    grep -qsw "$cpu_flag" /proc/cpuinfo || cpu_missing="$cpu_missing $cpu_flag"
  done < /etc/deeplearning/cpu-floor
  if [ -n "$cpu_missing" ]; then
    echo "Warning: this processor lacks${cpu_missing}, which the deep learning frameworks of this image need." >&2
  fi
  unset cpu_flag cpu_missing
fi
