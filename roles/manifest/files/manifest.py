# Python 2.7 and 3: completes the manifest on standard input with what the image holds and writes it to argv[1].
import io
import json
import os
import re
import subprocess
import sys


def packages():
    """Name to version and hold of every package that dpkg knows as installed."""
    listed = subprocess.check_output(
        ["dpkg-query", "-W", "-f", "${db:Status-Want} ${db:Status-Status} ${Package} ${Version}\n"]
    )
    found = {}
    for line in listed.decode("utf-8").splitlines():
        want, status, name, version = line.split(" ")
        if status == "installed":
            found[name] = {"version": version, "held": want == "hold"}
    return found


def distributions(workspace):
    """Name to version of every Python distribution in a virtualenv."""
    found = {}
    for place, folders, files in os.walk(os.path.join(workspace, "lib")):
        folders.sort()
        for name in folders + files:
            if not name.endswith((".dist-info", ".egg-info")):
                continue
            path = os.path.join(place, name)
            for metadata in (os.path.join(path, "METADATA"), os.path.join(path, "PKG-INFO"), path):
                if os.path.isfile(metadata):
                    with io.open(metadata, encoding="utf-8", errors="replace") as stream:
                        head = stream.read(20000)
                    fields = dict(re.findall(r"^(Name|Version): (.*?)\s*$", head, re.MULTILINE))
                    found[fields["Name"]] = fields["Version"]
                    break
        if os.path.basename(place) == "site-packages":
            folders[:] = []
    return found


def main():
    given = json.loads(sys.stdin.read())
    manifest = dict(given["content"])
    manifest["packages"] = packages()
    manifest["workspaces"] = {name: distributions(path) for name, path in given["workspaces"].items()}
    text = json.dumps(manifest, indent=1, sort_keys=True, separators=(",", ": ")) + "\n"
    target = sys.argv[1]
    if os.path.exists(target):
        with io.open(target, encoding="utf-8") as stream:
            if stream.read() == text:
                return
    with io.open(target + ".new", "w", encoding="utf-8") as stream:
        stream.write(text if isinstance(text, type("")) else text.decode("utf-8"))
    os.chmod(target + ".new", 0o644)
    os.rename(target + ".new", target)
    print("written")


main()
