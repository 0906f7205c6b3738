# signers KEYRING ADDRESS [FILE]: the fingerprint of the primary key that signed the fetched lists of ADDRESS, then FILE's.
set -eu
lists=/var/lib/apt/lists/$(printf %s "$2" | tr / _)_
if [ -f "${lists}InRelease" ]; then
  set -- "$1" "$2" "${3-}" "${lists}InRelease"
else
  set -- "$1" "$2" "${3-}" "${lists}Release.gpg" "${lists}Release"
fi
keyring=$1
file=$3
shift 3
gpgv --keyring "$keyring" --status-fd 1 "$@" 2>/dev/null | sed -n 's/^\[GNUPG:\] VALIDSIG .* //p'
if [ -n "$file" ]; then cat "$file"; fi
