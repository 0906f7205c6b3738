# install.sh WHEELS BUILT WORKSPACES EPOCH "HELD…" "REFUSED…" NAME=SERIES…: packages into the virtualenvs, side by side.
set -euo pipefail
wheels=$1 built=$2 workspaces=$3 epoch=$4 held=$5 refused=$6
shift 6
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

install() {
  local workspace=$workspaces/$1 series=$2
  local pip=("$workspace/bin/python" -m pip) lines=$work/$1.lines packages=$workspace/lib/python$series/site-packages
  [ -f "$wheels/requirements-python$series.txt" ] || { echo "$wheels/requirements-python$series.txt does not exist" >&2; return 1; }

  # A wheel built from a source archive takes the place of its line.
  local own=$built/requirements-python$series.txt
  [ -f "$own" ] || own=/dev/null
  awk 'FILENAME == ARGV[1] { own[$1]; print; next } !($1 in own)' "$own" "$wheels/requirements-python$series.txt" > "$lines"

  touch "$work/$1.start"
  "${pip[@]}" install --no-index --no-deps --require-hashes --no-compile --no-cache-dir --no-warn-script-location \
    --find-links "$wheels" --find-links "$built/python$series" -r "$lines" > "$work/$1.log" || { tail -n 20 "$work/$1.log" >&2; return 1; }
  if grep '^Successfully installed' "$work/$1.log"; then
    # What stands in site-packages itself and is new, or has something new in it.
    find "$packages" -newer "$work/$1.start" -type f -printf '%P\n' | cut -d/ -f1 | sort -u | sed "s|^|$packages/|" > "$work/$1.new"
    find "$workspace" -newer "$work/$1.start" -exec touch -h -d "@$epoch" {} +
    compile "$workspace/bin/python" < "$work/$1.new"
  fi
  "${pip[@]}" check
  constrain "$workspace/constraints.txt" "$lines"
}

# Some packages carry modules for the other Python, which do not compile here; pip passes over them in the same way.
compile() {
  "$1" -c '
import compileall, os, sys
for path in sys.stdin.read().splitlines():
    (compileall.compile_dir if os.path.isdir(path) else compileall.compile_file)(path, quiet=1)
' > /dev/null
}

constrain() {
  local name line
  for name in $held $refused; do
    line="$name<0"
    [[ " $held " == *" $name "* ]] && line=$(grep -i -o "^$name==[^ ]*" "$2")
    grep -qxF "$line" "$1" && continue
    sed -i -E "/^$name(==|<)/Id" "$1"
    echo "$line" >> "$1"
    echo "Constrained $line"
  done
}

processes=()
for pair in "$@"; do
  install "${pair%%=*}" "${pair#*=}" &
  processes+=($!)
done
for process in "${processes[@]}"; do wait "$process"; done

if compgen -G "$work/*.new" > /dev/null; then
  sort "$work"/*.new | tr '\n' '\0' | xargs -0 -n 100000 hardlink --ignore-time
fi
