"""Settings of a training run."""

from __future__ import annotations

from pathlib import Path

import pytest

from triton_models.training.settings import bf16_is_fast


@pytest.mark.parametrize(
    ("flags", "fast"),
    [
        ("flags\t\t: fpu avx2 avx512f avx512_bf16 avx512_fp16", True),
        ("flags\t\t: avx512f amx_bf16 amx_tile", True),
        ("Features\t: fp asimd bf16 i8mm", True),
        ("flags\t\t: fpu avx2 avx512f avx512_vnni", False),
    ],
)
def test_bfloat16_is_used_where_the_cpu_has_it(tmp_path: Path, flags: str, fast: bool) -> None:
    (tmp_path / "cpuinfo").write_text(f"processor\t: 0\n{flags}\n")
    assert bf16_is_fast(tmp_path / "cpuinfo") is fast


def test_bfloat16_is_not_used_where_nothing_tells(tmp_path: Path) -> None:
    assert bf16_is_fast(tmp_path / "none") is False
