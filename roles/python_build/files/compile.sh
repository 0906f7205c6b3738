# compile.sh ARCHIVE PREFIX: builds an interpreter from its source archive and installs it in PREFIX.
set -euo pipefail
archive=$1 prefix=$2
build=$(mktemp -d)
trap 'rm -rf "$build"' EXIT

tar -xf "$archive" -C "$build" --strip-components=1
cd "$build"
options=(--prefix="$prefix" --enable-shared --without-ensurepip)
# Without this, wheels tagged cp27mu do not load (PEP 513).
grep -q -e '--enable-unicode' configure && options+=(--enable-unicode=ucs4)
# Objects were 8-byte aligned until 3.7, and the vectoriser of GCC 8 and newer takes them for 16: bugs.python.org/issue27987
./configure "${options[@]}" CFLAGS="-fno-tree-vectorize -fno-tree-slp-vectorize" LDFLAGS="-Wl,-rpath,$prefix/lib" > configure.log ||
  { tail -n 20 configure.log >&2; exit 1; }
make -j"$(nproc)" > make.log 2>&1 || { tail -n 40 make.log >&2; exit 1; }
make install DESTDIR="$build/root" > install.log 2>&1 || { tail -n 40 install.log >&2; exit 1; }
makefile=$(find "$build/root$prefix"/lib/python*/config* -name Makefile)
built=$(sed -n 's/^abs_builddir=[[:space:]]*//p' "$makefile")
grep -rlIZ -e "$built" "$build/root$prefix" | xargs -0 -r sed -i "s|$built|/usr/src/python|g"
find "$build/root$prefix" -type f \( -name '*.so' -o -name '*.so.*' -o -path '*/bin/python?.?' -o -path '*/bin/python?.?m' \) \
  -exec strip --strip-unneeded {} +
mkdir -p "$(dirname "$prefix")"
mv "$build/root$prefix" "$prefix.part"
mv "$prefix.part" "$prefix"
