"""What the shell offers at a TAB. It must answer at once, so nothing heavy is imported."""

from __future__ import annotations

import ast
from importlib import resources

MODELS = ("shapes", "random:sd1", "random:sd2", "random:sdxl")
DTYPES = ("float32", "bfloat16", "float16", "float64", "tf32", "fp8")
BACKENDS = ("torch", "onnx", "tensorrt", "onnx+torch", "tensorrt+torch")
POLICIES = ("fit", "crop", "pad", "stretch")
KINDS = ("auto", "swap", "refine", "reweight")


def method_names() -> tuple[str, ...]:
    """Those of `inversion.registry`, read from its source: to import it takes seconds."""
    source = resources.files("pivotal") / "inversion" / "registry.py"
    return tuple(
        keyword.value.value
        for call in ast.walk(ast.parse(source.read_text("utf-8")))
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Name)
        if call.func.id == "Method"
        for keyword in call.keywords
        if keyword.arg == "name" and isinstance(keyword.value, ast.Constant)
        if isinstance(keyword.value.value, str)
    )


def complete_methods(incomplete: str) -> list[str]:
    return _starting(method_names(), incomplete)


def complete_models(incomplete: str) -> list[str]:
    return _starting(MODELS, incomplete)


def complete_dtypes(incomplete: str) -> list[str]:
    return _starting(DTYPES, incomplete)


def complete_backends(incomplete: str) -> list[str]:
    return _starting(BACKENDS, incomplete)


def complete_policies(incomplete: str) -> list[str]:
    return _starting(POLICIES, incomplete)


def complete_kinds(incomplete: str) -> list[str]:
    return _starting(KINDS, incomplete)


def _starting(names: tuple[str, ...], incomplete: str) -> list[str]:
    return [name for name in names if name.startswith(incomplete)]
