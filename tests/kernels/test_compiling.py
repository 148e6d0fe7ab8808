"""The Triton kernels through Triton's compiler and ptxas, which need no GPU: what the interpreter
can't see.
"""

import pytest

triton = pytest.importorskip("triton")

from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.compiler import ASTSource  # noqa: E402

from pivotal_kernels.guided_step import triton_kernel as guided  # noqa: E402
from pivotal_kernels.routed_attention import triton_kernel as routed  # noqa: E402

pytestmark = pytest.mark.slow
BYTES = {"fp16": 2, "bf16": 2, "fp32": 4}
SHARED_MEMORY = 99 * 1024  # of the smallest GPUs since Ampere, a block's bytes


def compiled(kernel, types, constants, capability, **options):
    """types: of named arguments; the last strides are 1, and the rest
    are 32-bit integers.
    """
    unit = [name for name in kernel.arg_names if name.endswith(("_stride_d", "_stride_w"))]
    constants = constants | dict.fromkeys(set(unit) - {"mix_stride_d"}, 1)
    signature = {
        name: "constexpr" if name in constants else types.get(name, "i32")
        for name in kernel.arg_names
    }
    target = GPUTarget("cuda", capability, 32)
    return triton.compile(ASTSource(kernel, signature, constants), target=target, options=options)


@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize(
    ("dtype", "queries", "length", "width", "columns"),
    [
        ("fp16", 4096, 77, 40, 5),
        ("bf16", 256, 77, 160, None),
        ("fp16", 4096, 154, 64, None),
        ("fp32", 1024, 77, 80, 5),
    ],
)
def test_routed_attention_fits_every_gpu_since_ampere(
    capability, dtype, queries, length, width, columns
):
    made, blocks = compiled_attention(capability, dtype, queries, length, width, columns)
    assert made.metadata.shared <= SHARED_MEMORY
    on_tensor_cores = "wgmma" if capability == 90 and blocks.queries >= 64 else "mma.sync"
    assert on_tensor_cores in made.asm["ptx"]


@pytest.mark.parametrize(
    ("ones", "shape"),
    [
        (("columns", "words_stride_l"), {"columns": 1}),
        (("rows", "columns"), {"columns": 1, "length": 154}),
        (("heads",), {}),
        (("queries", "query_stride_h", "out_stride_h"), {"queries": 1}),
        (("length", "mix_stride_b", "mix_stride_d", "mix_stride_l"), {"length": 1}),
        (("width",), {"width": 1}),
    ],
)
def test_sizes_of_1_compile_too(ones, shape):
    """Triton makes constants of integers that are 1, where other code may not compile."""
    sizes = {"queries": 64, "length": 77, "width": 40, "columns": 3} | shape
    compiled_attention(80, "fp16", **sizes, more=dict.fromkeys(ones, 1))


def compiled_attention(capability, dtype, queries, length, width, columns, more=()):
    """The compiled kernel and its blocks; without word columns, without a gate."""
    blocks = routed.Blocks.of(queries, length, width, columns or 0, BYTES[dtype])
    types = dict.fromkeys(("query", "key", "value", "out"), f"*{dtype}")
    types |= dict.fromkeys(("mix", "keep", "gate", "words", "maps"), "*fp32")
    types |= {"donors": "*i64", "log2_scale": "fp32"}
    constants = {
        "BLOCK_N": blocks.queries,
        "BLOCK_L": blocks.keys,
        "BLOCK_D": blocks.width,
        "BLOCK_K": blocks.columns,
        "KEY_BLOCKS": -(-length // blocks.keys),
        "WIDEN": False,
    }
    if columns is None:
        constants |= {"words": None, "gate": None}
    constants |= dict(more)
    made = compiled(
        routed._kernel, types, constants, capability, num_warps=blocks.warps, num_stages=1
    )
    return made, blocks


@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("working", ["fp32", "fp64"])
def test_the_predictions_kernels_compile(capability, kind, working):
    types = {"prediction": "*fp16", "alpha_bar": "*fp64"}
    named = ("latents", "offset", "eps", "x0", "sums", "prediction_gradient", "latents_gradient")
    types |= dict.fromkeys((*named, "scale"), f"*{working}")
    for kernel in (guided._conversion_kernel, guided._residual_kernel):
        fits(compiled(kernel, types, {"KIND": kind, "BLOCK": guided.BLOCK}, capability))


@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize("without", ["nothing", "offset", "guidance", "step"])
@pytest.mark.parametrize("working", ["fp32", "fp64"])
def test_the_step_kernel_compiles(capability, without, working):
    left_out = {
        "nothing": (),
        "offset": ("offset",),
        "guidance": ("uncond_eps", "uncond_x0", "guidance_scale", "guided_eps", "guided_x0"),
        "step": ("to_alpha_bar", "out", "offset"),
    }[without]
    types = {"to_alpha_bar": "*fp64", "guidance_scale": "*fp64"}
    named = ("eps", "x0", "uncond_eps", "uncond_x0", "offset", "out", "guided_eps", "guided_x0")
    types |= dict.fromkeys(named, f"*{working}")
    constants = {"BLOCK": guided.BLOCK, **dict.fromkeys(left_out)}
    fits(compiled(guided._step_kernel, types, constants, capability))


def fits(made):
    assert made.metadata.shared <= SHARED_MEMORY
    assert made.asm["cubin"]
