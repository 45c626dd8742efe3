"""The selective scan of `mamba.py` in the operators of ONNX; needs onnxscript."""

from onnxscript import FLOAT, graph, script
from onnxscript import opset18 as op


@script(default_opset=op)
def selective_scan(
    x: FLOAT[...], step: FLOAT[...], rates: FLOAT[...], write: FLOAT[...], read: FLOAT[...]
) -> FLOAT[...]:
    """h ← exp(step·rates)·h + step·x·writeᵀ, y = h·read, token by token."""

    @graph()
    def advance(  # type: ignore[no-untyped-def]
        states: FLOAT[...],
        x_t: FLOAT[...],
        step_t: FLOAT[...],
        write_t: FLOAT[...],
        read_t: FLOAT[...],
    ):
        written = op.Unsqueeze(step_t * x_t, [-1]) * op.Unsqueeze(write_t, [-2])
        after = op.Exp(op.Unsqueeze(step_t, [-1]) * rates) * states + written
        answer = op.ReduceSum(after * op.Unsqueeze(read_t, [-2]), [-1], keepdims=0)
        return after, answer

    start = op.Expand(0.0, op.Concat(op.Shape(x, start=0, end=1), op.Shape(rates), axis=0))
    x_rows = op.Transpose(x, perm=[1, 0, 2])
    step_rows = op.Transpose(step, perm=[1, 0, 2])
    write_rows = op.Transpose(write, perm=[1, 0, 2])
    read_rows = op.Transpose(read, perm=[1, 0, 2])
    _, answers = op.Scan(
        start, x_rows, step_rows, write_rows, read_rows, body=advance, num_scan_inputs=4
    )
    return op.Transpose(answers, perm=[1, 0, 2])
