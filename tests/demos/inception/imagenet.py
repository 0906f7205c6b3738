"""The classes of ImageNet that the two animals belong to, as TensorFlow-Slim counts them: 0 is the ground."""

CLASSES = 1001

# github.com/tensorflow/models, research/slim/datasets/imagenet.py
NAMES = {"dog": (209, "Labrador retriever"), "cat": (283, "tiger cat")}
