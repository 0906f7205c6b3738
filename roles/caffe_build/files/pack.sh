#!/bin/bash
# Makes the trees of one BLAS ready for a node and packs them into one archive, in which files that they hold alike stand once.
# Settings come as environment variables: WORK, BLAS, WORKSPACES, SERIES (in the same order), CPU_ONLY (true or false), OUTPUT,
# SOURCE_DATE_EPOCH.
set -euo pipefail
shopt -s failglob

read -ra names <<<"$WORKSPACES"
read -ra versions <<<"$SERIES"
packed=$WORK/packed/$BLAS
rm -rf "$packed"
mkdir -p "$packed" "$OUTPUT/$BLAS"

trees=()
for i in "${!names[@]}"; do
  name=caffe-${names[i]}
  trees+=("$name")
  cp -a "$WORK/trees/$BLAS-${names[i]}" "$packed/$name"
  cd "$packed/$name"

  rm -rf .built .git .github .travis.yml docker matlab src/caffe/group
  find .build_release \( -name '*.o' -o -name '*.d' -o -name '*.warnings.txt' -o -name '*.pb.cc' \) -delete
  cp -a "$WORK/boost-${versions[i]}"/libboost_python*.so.1 build/lib
  find build/lib build/tools build/examples python -type f \( -name '*.so*' -o -name '*.bin' \) -exec strip --strip-unneeded {} +
  find .build_release -type d -empty -delete

  # Without CUDA a solver that asks for the GPU does not start.
  if [ "$CPU_ONLY" = true ]; then
    grep -rlE '^solver_mode: *GPU' examples models | xargs sed -i -E 's/^solver_mode: *GPU/solver_mode: CPU/'
  fi

  # Each program and library finds what it needs in a plain shell.
  while read -r file; do
    if ldd "$file" | grep 'not found'; then
      echo "$file lacks a library" >&2
      exit 1
    fi
  done < <(find build/ python -type f \( -name '*.so*' -o -name '*.bin' \))
done

cd "$packed"
python="$(command -v python3 || command -v python2.7)"
"$python" - "${trees[@]}" <<'PYTHON'
import filecmp
import os
import sys

first, others = sys.argv[1], sys.argv[2:]
for folder, _, files in os.walk(first):
    for name in files:
        one = os.path.join(folder, name)
        for other in others:
            same = os.path.join(other, os.path.relpath(one, first))
            regular = os.path.isfile(same) and not os.path.islink(one) and not os.path.islink(same)
            if regular and os.stat(one).st_mode == os.stat(same).st_mode and filecmp.cmp(one, same, shallow=False):
                os.remove(same)
                os.link(one, same)
PYTHON

chmod -R u=rwX,go=rX .
tar --create --file "$OUTPUT/$BLAS/caffe.tar.partial" --format=gnu --sort=name --mtime="@$SOURCE_DATE_EPOCH" \
  --owner=0 --group=0 --numeric-owner "${trees[@]}"
mv "$OUTPUT/$BLAS/caffe.tar.partial" "$OUTPUT/$BLAS/caffe.tar"
