"""Modules of PyTorch: equal to PyTorch at other batch sizes, by both exporters, under the names of the state dict."""

from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import lepton_jax as lepton
from lepton_jax.core import paths
from lepton_jax.interchange import from_onnx, from_torch, torch_module

RNG = np.random.default_rng(0)


def test_what_is_no_module_is_named():
    with pytest.raises(TypeError, match=r"must be a torch.nn.Module; got a dict"):
        from_torch({"weight": 1.0}, jnp.ones(1))


def saved(path: Path, nodes, constants: dict[str, np.ndarray], width: int) -> Path:
    """An ONNX file of nodes from x ``[batch, width]`` to y."""
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", width]) for name in ("x", "y")]
    tensors = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], tensors)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)
    return path


def test_tensors_that_an_exporter_wrote_once_are_variables_of_their_own(tmp_path: Path):
    ones = np.ones(3, np.float32)
    nodes = [helper.make_node("Identity", ["a.bias"], [name]) for name in ("b.bias", "tied.bias")]
    sums = [("x", "a.bias", "s"), ("s", "b.bias", "t"), ("t", "tied.bias", "y")]
    nodes += [helper.make_node("Add", [left, right], [out]) for left, right, out in sums]
    path = saved(tmp_path / "m.onnx", nodes, {"a.bias": ones}, 3)
    own = {"a.bias": 1, "b.bias": 2, "tied.bias": 1}
    state = {name: SimpleNamespace(data_ptr=lambda place=place: place) for name, place in own.items()}
    torch_module._apart(str(path), SimpleNamespace(state_dict=lambda: state))
    model = from_onnx(path)
    assert set(paths.flatten(model.variables)) == {"params/a.bias", "params/b.bias"}
    variables = {"params": {"a.bias": jnp.asarray(ones), "b.bias": jnp.asarray(5 * ones)}}
    np.testing.assert_array_equal(model.apply(variables, jnp.zeros((2, 3))), np.full((2, 3), 7.0))


def test_weights_that_are_moved_twice_keep_their_names(tmp_path: Path):
    weight = RNG.standard_normal((4, 4)).astype(np.float32)
    cuts = {"zero": 0, "two": 2, "four": 4, "axis": 0}
    constants = {"r.weight": weight} | {name: np.array([value], np.int64) for name, value in cuts.items()}
    nodes = [
        helper.make_node("Slice", ["r.weight", "two", "four", "axis"], ["low"]),
        helper.make_node("Slice", ["r.weight", "zero", "two", "axis"], ["high"]),
        helper.make_node("Concat", ["low", "high"], ["both"], axis=0),
        helper.make_node("Transpose", ["both"], ["turned"], perm=[1, 0]),
        helper.make_node("MatMul", ["x", "turned"], ["y"]),
    ]
    model = from_onnx(saved(tmp_path / "m.onnx", nodes, constants, 4))
    assert set(paths.flatten(model.variables)) == {"params/r.weight"}
    x = RNG.standard_normal((3, 4)).astype(np.float32)
    np.testing.assert_allclose(model(x), x @ np.concatenate([weight[2:], weight[:2]]).T, rtol=1e-5, atol=1e-6)


def built(name: str):
    """A module in training mode with drawn statistics, and how its inputs are drawn."""
    torch = pytest.importorskip("torch")
    nn = torch.nn
    torch.manual_seed(0)

    class Encoder(nn.Module):
        def __init__(self):
            super().__init__()
            layer = nn.TransformerEncoderLayer(16, 4, 24, batch_first=True)
            self.embed, self.blocks = nn.Embedding(50, 16), nn.TransformerEncoder(layer, 1)

        def forward(self, tokens):
            return self.blocks(self.embed(tokens)).mean(1)

    class Recurrent(nn.Module):
        def __init__(self):
            super().__init__()
            self.cell, self.head = nn.LSTM(5, 6, batch_first=True, bidirectional=True), nn.Linear(12, 3)

        def forward(self, x):
            return self.head(self.cell(x)[0][:, -1])

    class Residual(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.norm = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
            self.second, self.other = nn.Conv2d(8, 8, 3, padding=1, groups=2), nn.BatchNorm2d(8)
            self.head = nn.Linear(8, 5)

        def forward(self, x):
            x = self.norm(self.first(x)).relu()
            x = x + self.other(self.second(x))
            return self.head(x.mean((2, 3))), x

    module = {"encoder": Encoder, "recurrent": Recurrent, "residual": Residual}[name]()
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.running_mean.normal_(0, 0.1)
            part.running_var.uniform_(0.5, 1.5)
    module.train()
    shape = {"encoder": (7,), "recurrent": (6, 5), "residual": (3, 8, 8)}[name]
    draw = (lambda n: torch.randint(0, 50, (n, *shape))) if name == "encoder" else (lambda n: torch.randn(n, *shape))
    return torch, module, draw


@pytest.mark.parametrize("exporter", ["legacy", "dynamo"])
@pytest.mark.parametrize("name", ["encoder", "recurrent", "residual"])
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
def test_outputs_and_names_are_those_of_the_module(name: str, exporter: str, tmp_path: Path):
    _, module, draw = built(name)
    if exporter == "dynamo":
        pytest.importorskip("onnxscript")
    frozen = next(part for part in module.modules() if part is not module)
    frozen.eval()
    model = from_torch(module, draw(1), exporter=exporter)
    assert module.training
    assert not frozen.training
    module.eval()
    for size in (1, 2, 5):
        x = draw(size)
        wanted, got = module(x), model(jnp.asarray(x.numpy()))
        for one, other in zip(got if name == "residual" else [got], wanted if name == "residual" else [wanted]):
            other = other.detach().numpy()
            assert np.abs(one - other).max() <= 1e-5 * np.abs(other).max()
    names = {path.partition("/")[2] for path in paths.flatten(model.variables)}
    own = {key for key in module.state_dict() if not key.endswith("num_batches_tracked")}
    assert names <= own
    assert names == own or (name == "recurrent" and exporter == "legacy")  # which joins the two directions
    slopes = jax.grad(lambda v: sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(model.apply(v, *model.example))))(
        model.variables
    )
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(slopes))
    packed = lepton.quantize_model(model, 8)
    packed.save(tmp_path / "m.lepton")
    x = model.example[0]
    for one, other in zip(jax.tree.leaves(lepton.load_model(tmp_path / "m.lepton")(x)), jax.tree.leaves(packed(x))):
        np.testing.assert_array_equal(one, other)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
def test_a_module_that_cannot_be_written_says_why():
    torch, module, draw = built("residual")
    module.forward = lambda x: torch.linalg.eig(x[:, 0])[0].real
    with pytest.raises(ValueError, match=r"cannot write Residual as ONNX: legacy: "):
        from_torch(module, draw(2), exporter="legacy")
    with pytest.raises(ValueError, match="give examples"):
        from_torch(module)
    with pytest.raises(ValueError, match="exporter must be one of 'dynamo', 'legacy'"):
        from_torch(module, draw(2), exporter="jit")
