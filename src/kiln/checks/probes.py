"""Scripts that run in a node's virtualenvs, Python 2.7 and 3.6: import, compute, and print one JSON object."""

TENSORFLOW = """
import json, os
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
import numpy, tensorflow
a = numpy.arange(12.0).reshape(3, 4)
with tensorflow.Session() as session:
    product = session.run(tensorflow.matmul(tensorflow.constant(a), tensorflow.constant(a.T)))
    x = tensorflow.Variable(3.0)
    session.run(tensorflow.global_variables_initializer())
    slope = session.run(tensorflow.gradients(x * x, x))[0]
right = bool(numpy.allclose(product, a.dot(a.T)) and abs(slope - 6) < 1e-6)
print(json.dumps({"version": tensorflow.__version__, "right": right, "cuda": tensorflow.test.is_built_with_cuda()}))
"""

KERAS = """
import json, os
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
import numpy, keras
numpy.random.seed(1)
x = numpy.random.rand(256, 8)
y = (x.sum(axis=1) > 4).astype("float32")
from keras.layers import Dense
layers = [Dense(16, activation="relu", input_shape=(8,)), Dense(1, activation="sigmoid")]
model = keras.models.Sequential(layers)
model.compile(optimizer="adam", loss="binary_crossentropy")
losses = model.fit(x, y, epochs=12, batch_size=16, verbose=0).history["loss"]
right = bool(losses[-1] < losses[0])
print(json.dumps({"version": keras.__version__, "right": right, "backend": keras.backend.backend()}))
"""

PYTORCH = """
import json
import torch
from torch.autograd import Variable
x = Variable(torch.ones(3), requires_grad=True)
(x * x * 2).sum().backward()
right = x.grad.data.tolist() == [4.0, 4.0, 4.0]
print(json.dumps({"version": torch.__version__, "right": right, "cuda": torch.cuda.is_available()}))
"""

CAFFE = """
import json, os, tempfile
os.environ["GLOG_minloglevel"] = "2"
import numpy, caffe
caffe.set_mode_cpu()
net = '''
name: "probe"
force_backward: true
layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 2 dim: 1 dim: 8 dim: 8 } } }
layer { name: "conv" type: "Convolution" bottom: "data" top: "conv"
        convolution_param { num_output: 4 kernel_size: 3 weight_filler { type: "xavier" } } }
layer { name: "ip" type: "InnerProduct" bottom: "conv" top: "ip"
        inner_product_param { num_output: 3 weight_filler { type: "xavier" } } }
layer { name: "sum" type: "Reduction" bottom: "ip" top: "sum" loss_weight: 1 }
'''
with tempfile.NamedTemporaryFile(suffix=".prototxt") as stream:
    stream.write(net.encode())
    stream.flush()
    net = caffe.Net(stream.name, caffe.TRAIN)
numpy.random.seed(1)
net.blobs["data"].data[...] = numpy.random.rand(2, 1, 8, 8)
def loss():
    return float(net.forward()["sum"])
before = loss()
net.backward()
slope = net.blobs["data"].diff.copy()
net.blobs["data"].data[...] += 1e-2 * slope
rise = loss() - before
wanted = 1e-2 * float((slope ** 2).sum())
print(json.dumps({"version": caffe.__version__, "right": bool(abs(rise - wanted) < 1e-3 * max(1.0, abs(wanted))),
                  "layers": list(caffe.layer_type_list()), "file": caffe.__file__}))
"""

FRAMEWORKS = {"tensorflow": TENSORFLOW, "keras": KERAS, "pytorch": PYTORCH, "caffe": CAFFE}

BENDING = ("LD_LIBRARY_PATH", "LD_PRELOAD", "PYTHONHOME", "PYTHONPATH", "PYTHONSTARTUP")
"""Variables that would make every program of a node load another library or module than was tested."""
