# seal HOME: removes what must not be in an image; prints each path that it removed. What else is in HOME stays.
set -eu
home=$1

gone() {
  for path in "$@"; do
    if [ -e "$path" ] || [ -L "$path" ]; then
      rm -rf "$path"
      echo "$path"
    fi
  done
}

# What is mounted there is the build's, and no part of the image.
emptied() {
  [ ! -d "$1" ] || mountpoint -q "$1" || find "$1" -mindepth 1 ! -path '*/partial' ! -path '*/lock' -print -delete
}

# Every node makes its own.
gone /etc/ssh/ssh_host_* /var/lib/systemd/random-seed /var/lib/systemd/credential.secret /var/lib/dbus/machine-id
if [ -s /etc/machine-id ]; then
  : > /etc/machine-id
  echo /etc/machine-id
fi

# Traces of the build and of whoever built.
for folder in /root "$home"; do
  gone "$folder/.ansible" "$folder/.cache" "$folder/.gnupg" "$folder/.sudo_as_admin_successful"
  gone "$folder/.bash_history" "$folder/.python_history" "$folder/.lesshst" "$folder/.viminfo" "$folder/.wget-hsts"
  gone "$folder/.ssh/authorized_keys" "$folder/.ssh/known_hosts" "$folder"/.ssh/id_*
  gone "$folder/.aws" "$folder/.docker" "$folder/.git-credentials" "$folder/.netrc" "$folder/.pypirc"
  gone "$folder/.pip" "$folder/.config/pip"
done
gone /etc/group- /etc/gshadow- /etc/passwd- /etc/shadow- /etc/subgid- /etc/subuid-
gone /var/backups/* /var/cache/ldconfig/aux-cache /var/cache/debconf/*-old /var/lib/dpkg/*-old

# The build's mirrors and proxies, and what they gave. mmdebstrap writes its sources to 0000sources.list.
gone /etc/pip.conf /etc/apt/auth.conf /etc/apt/auth.conf.d/* /etc/apt/sources.list.d/0000sources.list
for file in /etc/apt/apt.conf /etc/apt/apt.conf.d/*; do
  if grep -qis '^[^#/]*proxy' "$file"; then gone "$file"; fi
done
if grep -qi '^[[:space:]]*\(export \)\{0,1\}[a-z]*_proxy=' /etc/environment 2>/dev/null; then
  sed -i '/^[[:space:]]*\(export \)\{0,1\}[A-Za-z]*_\(proxy\|PROXY\)=/d' /etc/environment
  echo /etc/environment
fi
emptied /var/lib/apt/lists
emptied /var/cache/apt/archives
gone /var/cache/apt/pkgcache.bin /var/cache/apt/srcpkgcache.bin /var/lib/apt/periodic/*
find /var/log /var/tmp -mindepth 1 -type f -print -delete
