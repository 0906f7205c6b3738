# install.sh WHEELS BUILT PYTHONS SERIES TARGET EPOCH: qsctl in an environment of its own.
set -euo pipefail
wheels=$1 built=$2 pythons=$3 series=$4 target=$5 epoch=$6
lines=$(mktemp)
trap 'rm -f "$lines"' EXIT

# A wheel built from a source archive takes the place of its line.
own=$built/requirements-python$series.txt
[ -f "$own" ] || own=/dev/null
awk 'FILENAME == ARGV[1] { own[$1]; print; next } !($1 in own)' "$own" "$wheels/requirements-python$series.txt" > "$lines"

[ -x "$target/bin/pip" ] ||
  "$pythons/$series/bin/python$series" -B "$pythons/virtualenv/virtualenv.py" -q --no-download "$target"
"$target/bin/python" -m pip install --no-index --no-deps --require-hashes --no-compile --no-cache-dir --no-warn-script-location \
  --find-links "$wheels" --find-links "$built/python$series" -r "$lines"
"$target/bin/python" -m pip check
find "$target" -exec touch -h -d "@$epoch" {} +
"$target/bin/python" -m compileall -q -f "$target/lib/python$series/site-packages"
# Last: it tells a finished environment.
ln -sfn "$target/bin/qsctl-checked" /usr/local/bin/qsctl
