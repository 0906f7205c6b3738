#!/bin/bash
# Unpacks and patches the sources, the headers and the protoc that Caffe is built with. Settings come as environment variables:
# WORK, SOURCES (folder of one archive each of Caffe, Boost and OpenCV), OPENCV (true: build it), OPENCV_KEPT (module/file, by
# spaces), PATCHES (names in WORK/patches), GROUPED (true: write the grouped sources), SERIES (of Python), PYTHON_PATH,
# PYTHON_ARCHIVES, NUMPY_WHEELS, PROTOC_WHEELS, MKL (where it stands; empty without), MKL_WHEELS.
set -euo pipefail
shopt -s failglob

cd "$WORK"
mkdir -p core boost opencv/source

# An archive from a forge has one folder on top, Debian's has none.
tar -xf "$SOURCES"/caffe[-_]* -C core
if [ ! -e core/Makefile ]; then
  mv core unwrapped
  mv unwrapped/* core
fi
for name in $PATCHES; do
  patch -d core -p1 --no-backup-if-mismatch <"patches/$name"
done

# Sources in groups of twelve, so that the headers, most of the work, are read once for each group. What depends on the BLAS
# (math_functions, syncedmem) or on Python (layer_factory) stays by itself.
if [ "$GROUPED" = true ]; then
  mkdir core/src/caffe/group
  (
    cd core/src/caffe/group
    find .. -name '*.cpp' ! -path '../test/*' ! -name math_functions.cpp ! -name syncedmem.cpp ! -name layer_factory.cpp |
      LC_ALL=C sort | awk '{ printf "#include \"%s\"\n", $0 > sprintf("%02d.cpp", (NR - 1) / 12) }'
  )
fi

# Boost.Python is bound to the minor version of Python: Debian's libraries fit Debian's Python only.
tar -xf "$SOURCES"/boost* -C boost --wildcards --no-wildcards-match-slash --strip-components=4 '*/libs/python/src'
for file in boost/{,converter/,object/}*.cpp; do
  printf '#include "%s"\n' "${file#boost/}"
done >boost/all.cc

if [ "$OPENCV" = true ]; then
  tar -xf "$SOURCES"/opencv* -C opencv/source --strip-components=1
  for module in core imgproc; do
    (
      cd "opencv/source/modules/$module/src"
      find . -name '*.cpp' | while read -r file; do
        name=${file#./}
        [[ " $OPENCV_KEPT " == *" $module/${name%.cpp} "* ]] || rm "$file"
      done
    )
  done
fi

for version in $SERIES; do
  [ -d "$PYTHON_PATH/$version" ] || tar -xf "$PYTHON_ARCHIVES/python-$version.tar" -C /
  unzip -q "$NUMPY_WHEELS"/numpy-*-"cp${version/./}"-*.whl 'numpy/core/include/*' -d "numpy-$version"
  last=$version
done

# protoc of the virtualenvs' own time: a newer one writes Python that their protobuf cannot read.
unzip -q "$PROTOC_WHEELS"/grpcio_tools-*-"cp${last/./}"-*.whl -d protoc
mkdir -p core/python/caffe/proto
touch core/python/caffe/proto/__init__.py
(
  cd core
  PYTHONPATH=$WORK/protoc "$PYTHON_PATH/$last/bin/python$last" -B - <<'PYTHON'
import sys
from grpc_tools import _protoc_compiler
sys.exit(_protoc_compiler.run_main([b"protoc", b"--proto_path=src", b"--python_out=python", b"src/caffe/proto/caffe.proto"]))
PYTHON
)

if [ -n "$MKL" ]; then
  mkdir -p "$MKL/lib" "$MKL/include"
  unzip -q -o -j "$MKL_WHEELS"/mkl_include-*.whl '*/include/*' -d "$MKL/include"
  unzip -q -o -j "$MKL_WHEELS"/mkl-*.whl '*/lib/libmkl_rt.so' -d "$MKL/lib"
  unzip -q -o -j "$MKL_WHEELS"/intel_openmp-*.whl '*/lib/libiomp5.so' -d "$MKL/lib"
fi
touch unpacked
