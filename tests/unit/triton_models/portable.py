"""What every exported graph must be."""

from __future__ import annotations

from pathlib import Path

import onnx

from triton_models.export import OPSET


def check_portable(path: Path) -> None:
    """One opset, nothing that TensorRT's parser lacks, nothing of the machine."""
    model = onnx.load(path)
    assert [(imported.domain, imported.version) for imported in model.opset_import] == [("", OPSET)]
    assert not [node for node in model.graph.node if node.op_type in {"Loop", "If", "NonZero", "GridSample"}]
    assert b"/site-packages/" not in path.read_bytes()
