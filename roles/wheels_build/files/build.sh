# build.sh PYTHONS ARTIFACTS OUTPUT "GROUP…" SERIES…: a wheel for every source archive that a group lists for a series.
set -euo pipefail
pythons=$1 artifacts=$2 output=$3 groups=$4
shift 4
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# Lines of GROUP's requirements for SERIES whose hash is that of a source archive.
sources() {
  local list=$artifacts/$1/requirements-python$2.txt hashes=$work/$1-$2.sha256
  [ -f "$list" ] || return 0
  find "$artifacts/$1" -maxdepth 1 -type f ! -name '*.whl' ! -name '*.txt' -exec sha256sum {} + | cut -d' ' -f1 > "$hashes"
  grep -F -f "$hashes" "$list" || [ $? -eq 1 ]
}

# A name as PEP 503 compares them.
normalised() { tr '[:upper:]' '[:lower:]' <<< "$1" | sed -E 's/[-_.]+/-/g'; }

build() {
  local series=$1 group out line wheel name
  "$pythons/$series/bin/python$series" "$pythons/virtualenv/virtualenv.py" -q --no-download "$work/venv-$series"
  for group in $groups; do
    out=$work/out/$group
    mkdir -p "$out/python$series"
    sources "$group" "$series" > "$work/$group-$series.txt"
    [ -s "$work/$group-$series.txt" ] || continue
    "$work/venv-$series/bin/pip" -q wheel --no-deps --require-hashes --find-links "$artifacts/$group" \
      --wheel-dir "$out/python$series" -r "$work/$group-$series.txt"
    while read -r line; do
      name=$(normalised "${line%%==*}")
      for wheel in "$out/python$series"/*.whl; do
        [ "$(normalised "$(basename "${wheel%%-[0-9]*}")")" = "$name" ] || continue
        echo "${line%% *} --hash=sha256:$(sha256sum "$wheel" | cut -d' ' -f1)"
      done
    done < "$work/$group-$series.txt" > "$out/requirements-python$series.txt"
    if [ "$(wc -l < "$work/$group-$series.txt")" != "$(wc -l < "$out/requirements-python$series.txt")" ]; then
      echo "not every source archive of $group gave one wheel for Python $series" >&2
      return 1
    fi
  done
}

for group in $groups; do
  compgen -G "$artifacts/$group/requirements-python*.txt" > /dev/null ||
    { echo "$artifacts/$group holds no requirements-python*.txt" >&2; exit 1; }
done
processes=()
for series in "$@"; do
  build "$series" &
  processes+=($!)
done
for process in "${processes[@]}"; do wait "$process"; done
mkdir -p "$output"
# The group that tells a finished run goes last.
for group in $groups; do cp -r "$work/out/$group" "$output/$group"; done
