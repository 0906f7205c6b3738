# pack.sh PREFIX ARCHIVE VERSION EPOCH: drops what no node needs, checks the interpreter, and packs it.
set -euo pipefail
prefix=$1 archive=$2 version=$3 epoch=$4
program=$prefix/bin/python${version%.*}

# Tests, Tk (matplotlib draws with Agg), static libraries, byte code, and programs of packages that stay behind.
rm -rf "$prefix"/lib/python*/{test,tkinter,lib-tk,idlelib,turtledemo,turtle.py} "$prefix"/share \
  "$prefix"/lib/python*/lib-dynload/_tkinter* "$prefix"/lib/python*/lib-dynload/_*test*.so "$prefix"/bin/*-gdb.py \
  "$prefix"/bin/{pip,easy_install,idle,smtpd}*
find "$prefix/lib" -depth \( -type d \( -name tests -o -name test -o -name __pycache__ \) -o -name '*.py[co]' -o -name '*.a' \
  -o -name '*.exe' \) -exec rm -rf {} +
mkdir -p "$prefix/lib/python${version%.*}/site-packages"

"$program" -B - "$version" <<'EOF'
import platform, sys, sysconfig
assert platform.python_version() == sys.argv[1], "is Python %s, not %s" % (platform.python_version(), sys.argv[1])
assert sys.maxunicode == 0x10FFFF, "is a UCS2 build: wheels tagged cp27mu would not load"
for name in "ssl sqlite3 bz2 zlib ctypes readline curses hashlib json".split() + ["lzma"] * (sys.version_info[0] > 2):
    __import__(name)
for name in ("prefix", "INCLUDEPY", "LIBDIR"):
    value = sysconfig.get_config_var(name)
    assert value.startswith(sys.prefix), "%s is %s, not below %s" % (name, value, sys.prefix)
EOF

# The users who run it may not write here. The byte code names the source's time: it stays good while the times do.
find "$prefix" -exec touch -h -d "@$epoch" {} +
"$program" -m compileall -q "$prefix/lib/python${version%.*}"

mkdir -p "$(dirname "$archive")"
tar --sort=name --mtime="@$epoch" --owner=0 --group=0 --numeric-owner --format=gnu \
  -cf "$archive.part" -C / "${prefix#/}"
mv "$archive.part" "$archive"
