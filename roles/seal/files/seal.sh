# seal HOME: removes what must not be in an image; prints each path that it removed.
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

# Every node makes its own.
gone /etc/ssh/ssh_host_* /var/lib/systemd/random-seed /var/lib/dbus/machine-id
if [ -s /etc/machine-id ]; then
  : > /etc/machine-id
  echo /etc/machine-id
fi

# Traces of the build and of whoever built.
for folder in /root "$home"; do
  gone "$folder/.ansible" "$folder/.bash_history" "$folder/.cache" "$folder/.gnupg" "$folder/.pip" "$folder/.python_history" \
    "$folder/.ssh/authorized_keys" "$folder/.wget-hsts" "$folder/.config/pip"
done
gone /etc/group- /etc/gshadow- /etc/passwd- /etc/shadow- /etc/subgid- /etc/subuid- /etc/pip.conf /etc/apt/apt.conf.d/*proxy*
gone /var/backups/* /var/cache/ldconfig/aux-cache /var/cache/apt/pkgcache.bin /var/cache/apt/srcpkgcache.bin
gone /var/cache/debconf/*-old /var/lib/dpkg/*-old /var/lib/apt/periodic/*
find /var/log /var/tmp -mindepth 1 -type f -print -delete
