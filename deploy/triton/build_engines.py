#!/usr/bin/env python3
"""Build TensorRT engines of the served models: an overlay of the repository for Triton on an NVIDIA GPU.

In: the model repository (config.pbtxt with profiles, model.onnx).  Out: a repository in which the models are
``tensorrt_plan`` engines, each with ``engine.json``: from which file, by which TensorRT, for which GPU, and
how far its answers are from ONNX Runtime's. An engine that is too far is not written.

Run it in NVIDIA's TensorRT container of the same release as the Triton container (engines are of one TensorRT
version, unless --version-compatible), with this project installed:

    cp -r triton_models/repository /models/tensorrt
    deploy/triton/build_engines.py --out /models/tensorrt
    tritonserver --model-repository=/models/tensorrt …

Triton takes no model from two repositories, so the overlay is laid over a copy; docs/operations.md has the
whole sequence, with the way back.

Needs tensorrt (10) and polygraphy, which the container has. --dry-run needs neither, nor a GPU.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from triton_models.registry import REPOSITORY, file_sha256
from triton_models.tensorrt import (
    TOLERANCES,
    Profile,
    differences,
    engine_graph,
    overlay,
    profiles,
    read_config,
)

ONNX_FILE, PLAN_FILE, PROVENANCE_FILE = "model.onnx", "model.plan", "engine.json"
SEED = 20261121


def main(arguments: list[str] | None = None) -> int:
    """Exit code: 0 ok, 1 an engine failed or is too far off, 2 bad usage."""
    options = _parser().parse_args(arguments)
    known = sorted(path.parent.name for path in options.repository.glob("*/config.pbtxt"))
    unknown = sorted(set(options.models) - set(known))
    if unknown or not known:
        print(
            f"no model {', '.join(unknown) or 'at all'} in {options.repository}; it has {known}",
            file=sys.stderr,
        )
        return 2
    failed = []
    for name in options.models or known:
        try:
            _build(options.repository / name, options)
        except (ValueError, RuntimeError, OSError) as error:
            print(f"{name}: {error}", file=sys.stderr)
            failed.append(name)
    if failed:
        print(f"not built: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("models", nargs="*", help="names; all of the repository if none is given")
    parser.add_argument("--repository", type=Path, default=REPOSITORY, help="where the models are")
    parser.add_argument("--out", type=Path, required=True, help="the overlay repository to write")
    parser.add_argument("--precision", choices=sorted(TOLERANCES), default="fp16")
    parser.add_argument("--timing-cache", type=Path, help="read and written; a second build is quicker")
    parser.add_argument("--workspace-gib", type=float, default=4.0, help="what tactics may use of the GPU")
    parser.add_argument(
        "--version-compatible", action="store_true", help="engines that later TensorRT versions load"
    )
    parser.add_argument("--dry-run", action="store_true", help="say what would be built, write nothing")
    return parser


def _build(folder: Path, options: argparse.Namespace) -> None:
    config = read_config(folder)
    if config.platform == "ensemble":
        print(f"{config.name}: an ensemble, its parts are built on their own")
        return
    source = folder / "1" / ONNX_FILE
    graph = engine_graph(onnx.load(source))
    shapes = profiles(config)
    parts = overlay(config)
    print(f"{config.name}: {options.precision}, {', '.join(f'{k} {v}' for k, v in shapes.items())}")
    if options.dry_run:
        print(f"{config.name}: would write {', '.join(parts.configs)}")
        return
    plan, made_by = build_plan(graph.SerializeToString(), shapes, options)
    far = check(plan, source, config, shapes, options.precision)
    provenance = {
        "model": config.name,
        "onnx_sha256": file_sha256(source),
        "precision": options.precision,
        "version_compatible": options.version_compatible,
        "profiles": {name: str(profile) for name, profile in shapes.items()},
        "built": datetime.now(UTC).isoformat(timespec="seconds"),
        **made_by,
        "against_onnx_runtime": far,
    }
    print(f"{config.name}: {json.dumps(far)}")
    if not all(one["within"] for one in far.values()):
        raise ValueError(f"the engine's answers are beyond {TOLERANCES[options.precision]}; not written")
    write_overlay(options.out, parts, plan, provenance)


def build_plan(
    graph: bytes, shapes: Mapping[str, Profile], options: argparse.Namespace
) -> tuple[bytes, dict[str, str]]:
    """The serialised engine, and by what it was made. Raises RuntimeError without TensorRT."""
    try:
        import tensorrt  # noqa: PLC0415 - only where engines are really built
        from polygraphy.backend.trt import (  # noqa: PLC0415
            CreateConfig,
            engine_bytes_from_network,
            network_from_onnx_bytes,
        )
        from polygraphy.backend.trt import Profile as TrtProfile  # noqa: PLC0415
    except ImportError as error:
        raise RuntimeError(f"needs TensorRT and polygraphy, as NVIDIA's container has ({error})") from error
    profile = TrtProfile()
    for name, one in shapes.items():
        profile.add(name, min=one.least, opt=one.best, max=one.most)
    cache = str(options.timing_cache) if options.timing_cache else None
    config = CreateConfig(
        fp16=options.precision == "fp16",
        profiles=[profile],
        load_timing_cache=cache if cache and options.timing_cache.is_file() else None,
        version_compatible=options.version_compatible or None,
        memory_pool_limits={tensorrt.MemoryPoolType.WORKSPACE: int(options.workspace_gib * 2**30)},
    )
    plan = engine_bytes_from_network(network_from_onnx_bytes(graph), config=config, save_timing_cache=cache)
    return bytes(plan), {"tensorrt": tensorrt.__version__, "gpu": _gpu_name()}


def _gpu_name() -> str:
    command = shutil.which("nvidia-smi")
    if command is None:
        return "unknown"
    import subprocess  # noqa: PLC0415 - only where engines are really built

    query = [command, "--query-gpu=name,driver_version", "--format=csv,noheader"]
    return subprocess.run(query, capture_output=True, text=True, check=True).stdout.splitlines()[0]


def sample_inputs(
    config: model_config_pb2.ModelConfig, shapes: Mapping[str, Profile]
) -> dict[str, np.ndarray[Any, Any]]:
    """Inputs at the profile's usual shapes: smooth noise over the range of HU, masks, fractions."""
    rng = np.random.default_rng(SEED)
    result = {}
    for tensor in config.input:
        shape = shapes[tensor.name].best
        if tensor.data_type == model_config_pb2.TYPE_FP32:
            result[tensor.name] = rng.random(shape, dtype=np.float32)
        elif tensor.data_type == model_config_pb2.TYPE_UINT8:
            result[tensor.name] = (rng.random(shape) < 0.2).astype(np.uint8)
        else:
            coarse = [max(n // 16, 1) if i else n for i, n in enumerate(shape)]
            knots = rng.normal(-500.0, 450.0, coarse)
            for axis in range(1, len(shape)):
                index = np.arange(shape[axis]) * coarse[axis] // shape[axis]
                knots = np.take(knots, index, axis=axis)
            hu = knots + rng.normal(0.0, 25.0, shape)
            result[tensor.name] = np.clip(np.rint(hu), -1024, 3071).astype(np.int16)
    return result


def check(
    plan: bytes,
    source: Path,
    config: model_config_pb2.ModelConfig,
    shapes: Mapping[str, Profile],
    precision: str,
) -> dict[str, dict[str, float | bool]]:
    """The engine's answers against ONNX Runtime's, by output."""
    from polygraphy.backend.trt import TrtRunner, engine_from_bytes  # noqa: PLC0415

    inputs = sample_inputs(config, shapes)
    wide = {k: v.astype(np.int32) if v.dtype == np.int16 else v for k, v in inputs.items()}
    with TrtRunner(engine_from_bytes(plan)) as runner:
        actual = {name: np.asarray(value) for name, value in runner.infer(wide).items()}
    session = ort.InferenceSession(str(source), providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    expected = dict(zip(names, session.run(names, inputs), strict=True))
    return differences(expected, actual, TOLERANCES[precision])


def write_overlay(out: Path, parts: Any, plan: bytes, provenance: Mapping[str, object]) -> None:
    """Each folder is made aside and renamed, so that a running Triton never sees half of one."""
    for name, config in parts.configs.items():
        making = out / f".{name}.partial"
        shutil.rmtree(making, ignore_errors=True)
        (making / "1").mkdir(parents=True)
        (making / "config.pbtxt").write_text(text_format.MessageToString(config), encoding="utf-8")
        if name in parts.graphs:
            onnx.save(parts.graphs[name], making / "1" / ONNX_FILE)
        elif name == parts.engine:
            (making / "1" / PLAN_FILE).write_bytes(plan)
            (making / PROVENANCE_FILE).write_text(json.dumps(provenance, indent=1) + "\n", encoding="utf-8")
        shutil.rmtree(out / name, ignore_errors=True)
        making.replace(out / name)


if __name__ == "__main__":
    sys.exit(main())
