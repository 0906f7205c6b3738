# create.sh PYTHONS WORKSPACES EPOCH NAME=SERIES…: a virtualenv WORKSPACES/NAME for each, side by side.
set -euo pipefail
pythons=$1 workspaces=$2 epoch=$3
shift 3

create() {
  local workspace=$workspaces/$1 series=$2
  [ -e "$workspace/constraints.txt" ] && return
  "$pythons/$series/bin/python$series" -B "$pythons/virtualenv/virtualenv.py" -q --no-download "$workspace"
  cat > "$workspace/pip.conf" <<EOF
[global]
disable-pip-version-check = true

[install]
constraint = $workspace/constraints.txt
EOF
  find "$workspace" -exec touch -h -d "@$epoch" {} +
  "$workspace/bin/python" -m compileall -q -f "$workspace/lib/python$series/site-packages"
  # Last: it tells a finished virtualenv.
  cat > "$workspace/constraints.txt" <<EOF
# pip keeps to these lines, so that installing a package does not replace a framework of this node.
# To replace one on purpose: PIP_CONSTRAINT=/dev/null pip install ...
EOF
  echo "created $workspace"
}

mkdir -p "$workspaces"
processes=()
for pair in "$@"; do
  create "${pair%%=*}" "${pair#*=}" &
  processes+=($!)
done
for process in "${processes[@]}"; do wait "$process"; done

# The interpreters have no Tk, and a node has no screen: pyplot would not even import with matplotlib's own default.
if [ ! -e ~/.config/matplotlib/matplotlibrc ]; then
  mkdir -p ~/.config/matplotlib
  echo "backend: Agg" > ~/.config/matplotlib/matplotlibrc
  echo "created ~/.config/matplotlib/matplotlibrc"
fi
