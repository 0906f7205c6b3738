#!/bin/bash
# Unpacks the digits where they stand and gives each Caffe tree what its examples/mnist expects.
# Arguments: folder of the digits, the trees. What the trees hold alike stands once.
set -euo pipefail

digits=$1
first=$2
shift 2

for file in "$digits"/*-ubyte.gz; do
  gunzip --keep --force "$file"
done

for set in train:train test:t10k; do
  database=$first/examples/mnist/mnist_${set%:*}_lmdb
  rm -rf "$database"
  "$first/build/examples/mnist/convert_mnist_data.bin" --backend=lmdb \
    "$digits/${set#*:}-images-idx3-ubyte" "$digits/${set#*:}-labels-idx1-ubyte" "$database"
done

for tree in "$first" "$@"; do
  ln -sf "$digits"/*-ubyte "$tree/data/mnist"
  if [ "$tree" != "$first" ]; then
    rm -rf "$tree"/examples/mnist/mnist_{train,test}_lmdb
    cp -al "$first"/examples/mnist/mnist_{train,test}_lmdb "$tree/examples/mnist"
  fi
done
