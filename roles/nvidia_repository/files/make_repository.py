"""Makes the stand-in of NVIDIA's apt repositories from a JSON specification on standard input, below the folder argv[1].

Every package is a real .deb with the name, version, paths and SONAMEs that the specification gives. The libraries are
stubs: they answer their version query, where the real library has one, and hold nothing else.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

NOTICE = "Stand-in made by the image build, not NVIDIA's software: names, versions, paths and SONAMEs only."
MULTIARCH = "x86_64-linux-gnu"

# What CUDA's headers call CUDART_VERSION: 1000 * major + 10 * minor.
VERSION_QUERIES = {
    "libcudart": "int cudaRuntimeGetVersion(int *version) {{ *version = {number}; return 0; }}",
    "libcublas": "int cublasGetVersion_v2(void *handle, int *version) {{ *version = {number}; return 0; }}",
    "libcudnn": "unsigned long cudnnGetVersion(void) {{ return {number}; }}",
}


def run(*command: str, **options: Any) -> str:
    """Standard output of a command that must succeed."""
    return str(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, **options).stdout)


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def link(path: Path, target: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to(target)


def library(folder: Path, name: str, soname: str, file: str, number: int) -> None:
    """Compiles ``name.so.file`` and links ``name.so.soname`` to it."""
    folder.mkdir(parents=True, exist_ok=True)
    query = VERSION_QUERIES.get(name, "").format(number=number)
    symbol = name.replace("-", "_")
    source = f'const char {symbol}_stand_in[] = "{NOTICE}";\n{query}\n'
    target = folder / f"{name}.so.{file}"
    options = ["-shared", "-fPIC", "-s", "-Wl,--build-id=none", f"-Wl,-soname,{name}.so.{soname}"]
    run("gcc", *options, "-x", "c", "-", "-o", str(target), input=source)
    if file != soname:
        link(folder / f"{name}.so.{soname}", target.name)


def package(root: Path, pool: Path, name: str, version: str, depends: "list[str]") -> None:
    """Packs the tree ``root`` as ``name`` at ``version``."""
    write(root / "usr/share/doc" / name / "README.stand-in", NOTICE + "\n")
    size = sum(path.lstat().st_size for path in root.rglob("*") if path.is_file()) // 1024 + 1
    fields = {
        "Package": name,
        "Version": version,
        "Architecture": "amd64",
        "Maintainer": "Image build <root@localhost>",
        "Installed-Size": str(size),
        "Section": "multiverse/devel",
        "Priority": "optional",
        "Depends": ", ".join(depends),
        "Description": f"{name} (stand-in)\n {NOTICE}",
    }
    write(root / "DEBIAN/control", "".join(f"{key}: {value}\n" for key, value in fields.items() if value))
    if (root / "usr/lib").is_dir():
        write(root / "DEBIAN/triggers", "activate-noawait ldconfig\n")
    epoch = int(os.environ["SOURCE_DATE_EPOCH"])
    for path in (root, *root.rglob("*")):
        os.utime(path, (epoch, epoch), follow_symlinks=False)
        if not path.is_symlink():
            path.chmod(0o755 if path.is_dir() else 0o644)
    pool.mkdir(parents=True, exist_ok=True)
    run(
        "dpkg-deb",
        "--root-owner-group",
        "-Zxz",
        "--build",
        str(root),
        f"{pool}/{name}_{version.replace(':', '%3a')}_amd64.deb",
    )


def cuda(spec: "dict[str, Any]", series: str, pool: Path) -> None:
    """The packages of one CUDA toolkit."""
    major, minor = (int(part) for part in series.split("."))
    number = 1000 * major + 10 * minor
    for row in spec["packages"]:
        with tempfile.TemporaryDirectory() as scratch:
            root = Path(scratch) / "root"
            top = root / f"usr/local/cuda-{series}"
            target = top / "targets/x86_64-linux"
            for entry in row.get("libraries", []):
                library(target / "lib", entry["name"], entry["soname"], entry["file"], number)
            for header in row.get("headers", []):
                guard = header.upper().replace(".", "_")
                lines = [f"/* {NOTICE} */", f"#ifndef {guard}", f"#define {guard}"]
                lines += [f"#define CUDA_VERSION {number}", f"#define CUDART_VERSION {number}", "#endif", ""]
                write(target / "include" / header, "\n".join(lines))
            if row["package"].startswith("cuda-license-"):
                write(top / "version.txt", f"CUDA Version {spec['toolkit']}\n")
                link(top / "lib64", "targets/x86_64-linux/lib")
                link(top / "include", "targets/x86_64-linux/include")
            package(root, pool, row["package"], row["version"], row.get("depends", []))


def cudnn(spec: "dict[str, Any]", pool: Path) -> None:
    """cuDNN's run-time and development package, one pair for each CUDA it is built for."""
    major, minor, patch = (int(part) for part in spec["library"].split("."))
    for version in spec["builds"].values():
        for name in spec["packages"]:
            with tempfile.TemporaryDirectory() as scratch:
                root = Path(scratch) / "root"
                folder = root / "usr/lib" / MULTIARCH
                depends = []
                if name.endswith("-dev"):
                    lines = [f"/* {NOTICE} */", f"#define CUDNN_MAJOR {major}", f"#define CUDNN_MINOR {minor}"]
                    write(root / "usr/include/cudnn.h", "\n".join([*lines, f"#define CUDNN_PATCHLEVEL {patch}", ""]))
                    link(folder / "libcudnn.so", f"libcudnn.so.{spec['soname']}")
                    depends = [f"{name[: -len('-dev')]} (= {version})"]
                else:
                    library(folder, "libcudnn", spec["soname"], spec["library"], 1000 * major + 100 * minor + patch)
                package(root, pool, name, version, depends)


def index(folder: Path, origin: str, home: str) -> None:
    """Package index and signed release file of a flat repository."""
    packages = run("apt-ftparchive", "packages", ".", cwd=folder)
    write(folder / "Packages", packages)
    run("gzip", "-9nk", "Packages", cwd=folder)
    settings = ["-o", f"APT::FTPArchive::Release::Origin={origin}", "-o", f"APT::FTPArchive::Release::Label={origin}"]
    write(folder / "Release", run("apt-ftparchive", *settings, "release", ".", cwd=folder))
    sign = ["gpg", "--homedir", home, "--batch", "--yes"]
    run(*sign, "--clearsign", "--output", "InRelease", "Release", cwd=folder)
    run(*sign, "--armor", "--detach-sign", "--output", "Release.gpg", "Release", cwd=folder)


def main() -> None:
    output = Path(sys.argv[1])
    spec = json.load(sys.stdin)
    cuda_pool = output / spec["host"] / spec["cuda_path"].strip("/")
    cudnn_pool = output / spec["host"] / spec["cudnn_path"].strip("/")
    for series, toolkit in spec["cuda"].items():
        cuda(toolkit, series, cuda_pool)
    for release in spec["cudnn"].values():
        cudnn(release, cudnn_pool)
    # The private key lives in a temporary folder and goes with the container: nobody can sign for this repository again.
    with tempfile.TemporaryDirectory() as home:
        identity = "Stand-in of NVIDIA's repositories"
        run(
            "gpg",
            "--homedir",
            home,
            "--batch",
            "--passphrase",
            "",
            "--quick-generate-key",
            identity,
            "rsa3072",
            "sign",
            "never",
        )
        index(cuda_pool, "NVIDIA (stand-in)", home)
        index(cudnn_pool, "NVIDIA machine learning (stand-in)", home)
        run("gpg", "--homedir", home, "--batch", "--output", str(output / "keyring.gpg"), "--export")
        listed = run("gpg", "--homedir", home, "--batch", "--with-colons", "--fingerprint")
        run("gpgconf", "--homedir", home, "--kill", "all")
    fingerprint = next(line.split(":")[9] for line in listed.splitlines() if line.startswith("fpr:"))
    write(output / "fingerprint", fingerprint + "\n")


main()
