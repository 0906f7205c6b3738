# carry.sh ARCHIVE PREFIX: unpacks an interpreter that was installed elsewhere to PREFIX and makes it at home there.
set -euo pipefail
archive=$1 prefix=$2

mkdir -p "$prefix.part"
tar -xf "$archive" -C "$prefix.part" --strip-components=1

# The old prefix, and the folder it was compiled in, stand in what a C extension's build reads.
makefile=$(find "$prefix.part"/lib/python*/config* -name Makefile)
value() { sed -n "s/^$1=[[:space:]]*//p" "$makefile"; }
old=$(value prefix)
built=$(value abs_builddir)
[ -n "$old" ] || { echo "no prefix= in $makefile" >&2; exit 1; }
grep -rlIZ -e "$old" ${built:+-e "$built"} "$prefix.part" |
  xargs -0 -r sed -i -e "s|$old|$prefix|g" ${built:+-e "s|$built|/usr/src/python|g"}

# Absolute, since a virtualenv copies the program.
find "$prefix.part/bin" "$prefix.part/lib" -type f \( -name 'python*' -o -name '*.so*' \) -print0 |
  while IFS= read -r -d '' file; do
    case "$(patchelf --print-rpath "$file" 2>/dev/null)" in
      *"$old"*) patchelf --set-rpath "$prefix/lib" "$file" ;;
    esac
  done
mv "$prefix.part" "$prefix"
