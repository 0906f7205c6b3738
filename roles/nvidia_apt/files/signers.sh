# signers KEYRING ADDRESS: the fingerprint of the primary key that signed the fetched lists of ADDRESS.
set -eu
eval "$(apt-config shell lists Dir::State::lists/d)"
# apt names the files after the address: slashes as _, underscores as %5f.
list="$lists$(printf %s "$2" | sed 's/_/%5f/g; s:/:_:g')_"
if [ -f "${list}InRelease" ]; then
  set -- "$1" "${list}InRelease"
else
  set -- "$1" "${list}Release.gpg" "${list}Release"
fi
keyring=$1
shift
verdict=$(gpgv --keyring "$keyring" --status-fd 1 "$@")
printf '%s\n' "$verdict" | sed -n 's/^\[GNUPG:\] VALIDSIG .* //p'
