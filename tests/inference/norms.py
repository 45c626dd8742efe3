"""Print how far norms over space are from double precision: `python -m tests.inference.norms`."""

import time
import warnings
from collections.abc import Callable

import torch
from torch import Tensor, nn

from bts_lightning.inference.norms import spell_norms_out

MAPS: dict[str, Callable[[Tensor], Tensor]] = {
    "noise": lambda x: x,
    "half of it zero": lambda x: torch.cat([0 * x[:, :, 1::2], 1 + x[:, :, ::2]], dim=2),
    "hardly varies": lambda x: 0.7 + 1e-3 * x,
    "constant": lambda x: torch.full_like(x, 0.7),
}


def norm(x: Tensor, *, spelt_out: bool) -> Callable[[Tensor], Tensor]:
    """Give a norm of eight channels as onnxruntime runs it, its own or in plain operators."""
    from onnxruntime import InferenceSession, SessionOptions

    options = SessionOptions()
    options.intra_op_num_threads = 1
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(nn.InstanceNorm3d(8).eval(), (x,), dynamo=True, verbose=False)
    if spelt_out:
        spell_norms_out(program)  # type: ignore[arg-type]
    graph = program.model_proto.SerializeToString()  # type: ignore[union-attr]
    session = InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda given: torch.from_numpy(session.run(None, {name: given.numpy()})[0])


def main() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    for edge in (32, 128):
        x = torch.randn(1, 8, edge, edge, edge)
        ways = {
            "onnxruntime's own": norm(x, spelt_out=False),
            "spelt out": norm(x, spelt_out=True),
            "torch": nn.functional.instance_norm,
        }
        for what, make in MAPS.items():
            given = make(x)
            wanted = nn.functional.instance_norm(given.double())
            for way, run in ways.items():
                began = time.perf_counter()
                worst = (run(given) - wanted).abs().max()
                spent = 1000 * (time.perf_counter() - began)
                print(f"{edge}  {what:16} {way:18} off by {worst:.1e}, {spent:.0f} ms", flush=True)


if __name__ == "__main__":
    main()
