"""Unpack chosen libraries, and the licenses, of the wheels of mkl and intel-openmp. Runs with Python 2.7 and 3.

Arguments: folder of the wheels, destination, names of the libraries. Fails where a library is in no wheel.
"""

import glob
import os
import shutil
import sys
import zipfile


def write(archive, member, target):
    """Write one member under a temporary name first: nothing that is half there has the final name."""
    if not os.path.isdir(os.path.dirname(target)):
        os.makedirs(os.path.dirname(target))
    with archive.open(member) as source, open(target + ".partial", "wb") as sink:
        shutil.copyfileobj(source, sink, 1 << 20)
    os.chmod(target + ".partial", 0o644)
    os.rename(target + ".partial", target)


def main(wheels, destination, libraries):
    missing = set(libraries)
    for pattern in ("mkl-[0-9]*.whl", "intel_openmp-*.whl"):
        for wheel in glob.glob(os.path.join(wheels, pattern)):
            project = os.path.basename(wheel).split("-")[0]
            with zipfile.ZipFile(wheel) as archive:
                for member in archive.namelist():
                    folder, name = os.path.split(member)
                    if name in missing and folder.endswith(".data/data/lib"):
                        write(archive, member, os.path.join(destination, "lib", name))
                        missing.remove(name)
                    elif folder.endswith(".dist-info") and name.upper().startswith("LICENSE"):
                        write(archive, member, os.path.join(destination, "licenses", project, name))
    if missing:
        sys.exit("the wheels of mkl and intel-openmp in {} hold no {}".format(wheels, ", ".join(sorted(missing))))


main(sys.argv[1], sys.argv[2], sys.argv[3:])
