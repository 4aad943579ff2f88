"""Wrong calls that a type alone does not show: (what, the call, how its error begins)."""

import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

import lepton_jax as lepton
from lepton_jax import data, formats, graph, interchange, lowrank, native, precision, pruning, training
from lepton_jax import distillation as d
from lepton_jax import quantization as q
from lepton_jax.core import paths, schedules
from lepton_jax.data import compressed
from lepton_jax.pruning import channels
from lepton_jax.pruning import sparse_training as st

HELD = tempfile.TemporaryDirectory()
FOLDER = Path(HELD.name)
KEY, X, WIDE = jax.random.key(0), jnp.ones((2, 4)), jnp.ones((2, 5))
W = {"a": {"kernel": jnp.ones((4, 3)), "bias": jnp.zeros(3)}}
net = nn.Dense(3)
V = net.init(KEY, X)


def apply(v, x):
    return x @ v["a"]["kernel"] + v["a"]["bias"][None]


lepton.save(FOLDER / "m.lepton", apply, W, X)
compressed.write_dataset(FOLDER / "s", {"x": np.arange(5.0)})
(FOLDER / "file").write_text("x")
art = lepton.load(FOLDER / "m.lepton")
model = lepton.Model.from_linen(net, V, X)

ROWS = [
    (
        "load max_bytes -1",
        lambda: lepton.load(FOLDER / "m.lepton", max_bytes=-1),
        "load: max_bytes must be a whole number from 0 up; got",
    ),
    (
        "load max_bytes '1'",
        lambda: lepton.load(FOLDER / "m.lepton", max_bytes="1"),
        "load: max_bytes must be a whole number or None; got",
    ),
    (
        "load max_bytes 1.5",
        lambda: lepton.load(FOLDER / "m.lepton", max_bytes=1.5),
        "load: max_bytes must be a whole number from 0 up; got",
    ),
    ("load missing", lambda: lepton.load(FOLDER / "none.lepton"), "cannot read /none.lepton: No such file or directory"),
    (
        "load_model missing",
        lambda: lepton.load_model(FOLDER / "none.lepton"),
        "cannot read /none.lepton: No such file or directory",
    ),
    (
        "account missing",
        lambda: lepton.account(FOLDER / "none.lepton"),
        "cannot read /none.lepton: No such file or directory",
    ),
    ("summary shapes", lambda: graph.summary(net.apply, V, WIDE), "Module.apply does not take these variables with the inputs"),
    ("summary none", lambda: graph.summary(net.apply, V), "Module.apply does not take these variables with the inputs"),
    ("summary many", lambda: graph.summary(net.apply, V, X, X), "Module.apply does not take these variables with the inputs"),
    ("summary plain", lambda: graph.summary(apply, W, WIDE), "apply does not take these variables with the inputs (0:"),
    (
        "summary missing key",
        lambda: graph.summary(apply, {"b": 1.0}, X),
        "apply does not take these variables with the inputs (0:",
    ),
    ("cost shapes", lambda: graph.cost(net.apply, V, WIDE), "Module.apply does not take these variables with the inputs"),
    (
        "fold shapes",
        lambda: graph.fold_batch_norm(net.apply, V, WIDE),
        "Module.apply does not take these variables with the inputs",
    ),
    (
        "capture",
        lambda: graph.capture(net.apply, "*Dense*")(V, WIDE),
        "Module.apply does not take these variables with the inputs",
    ),
    ("capture none", lambda: graph.capture(net.apply, "nothing*")(V, X), "select='nothing*' matches no value of Module.apply."),
    (
        "plan shapes",
        lambda: channels.plan(net.apply, V, WIDE, fraction=0.5),
        "Module.apply does not take these variables with the inputs",
    ),
    (
        "plan fraction",
        lambda: channels.plan(net.apply, V, X, fraction=1.5),
        "fraction must be in [0, 1), the fraction of weights removed; got",
    ),
    (
        "explain",
        lambda: precision.explain(net.apply, precision.Policy(), V, WIDE),
        "Module.apply does not take these variables with the inputs",
    ),
    ("packed", lambda: native.packed(net.apply)(V, WIDE), "Module.apply does not take these variables with the inputs"),
    (
        "rewrite",
        lambda: q.quantize_activations(net.apply, [q.Rule(quantizer=q.Dynamic(q.Uniform(8)))])(V, WIDE),
        "Module.apply does not take these variables with the inputs",
    ),
    (
        "calibrate",
        lambda: q.calibrate_activations(net.apply, [q.Rule(quantizer=q.Static(q.Uniform(8)))], V, [WIDE]),
        "Module.apply does not take these variables with the inputs",
    ),
    ("art shape", lambda: art(WIDE), "0: needs float32[b,4]; got"),
    ("art none", lambda: art(), "0: missing; needs float32[b,4]"),
    ("art str", lambda: art("x"), "0: needs float32[b,4]; got"),
    ("art.apply shape", lambda: art.apply(W, WIDE), "0: needs float32[b,4]; got"),
    (
        "art.apply weights",
        lambda: art.apply({"a": {"kernel": jnp.ones((5, 3)), "bias": jnp.zeros(3)}}, X),
        "a/kernel: needs float32[4,3]; got",
    ),
    (
        "art.apply weights2",
        lambda: art.apply({"a": {"kernel": jnp.ones((4, 3), jnp.int32), "bias": jnp.zeros(3)}}, X),
        "a/kernel: needs float32[4,3]; got",
    ),
    ("art.apply missing", lambda: art.apply({"a": {}}, X), "apply: needs variables of the file's structure, as"),
    ("art.apply 3", lambda: art.apply(3, X), "apply: needs variables of the file's structure, as"),
    ("art.apply none", lambda: art.apply(W), "0: missing; needs float32[b,4]"),
    ("art.apply str", lambda: art.apply(W, "x"), "0: needs float32[b,4]; got"),
    ("native", lambda: art.native()(WIDE), "0: needs float32[b,4]; got"),
    ("model shape", lambda: model(WIDE), "the inputs are not like the model's example: 0: needs float32[any, 4]; got"),
    ("model none", lambda: model(), "the inputs are not like the model's example: 0: missing."),
    ("model str", lambda: model("x"), "the inputs are not like the model's example: 0: needs an array; got"),
    ("model native", lambda: model.native()(WIDE), "Module.apply does not take these variables with the inputs"),
    (
        "loaded model shape",
        lambda: lepton.load_model(FOLDER / "m.lepton")(WIDE),
        "the inputs are not like the model's example: 0: needs float32[any, 4]; got",
    ),
    ("loaded model apply", lambda: lepton.load_model(FOLDER / "m.lepton").apply(W, WIDE), "0: needs float32[b,4]; got"),
    ("save dir", lambda: lepton.save(FOLDER, apply, W, X), "bytes): Is a directory. A file of that name is as it was"),
    (
        "save nowhere",
        lambda: lepton.save(FOLDER / "no" / "where.lepton", apply, W, X),
        "bytes): No such file or directory. A file of that name",
    ),
    (
        "save no input",
        lambda: lepton.save(FOLDER / "x.lepton", apply, W),
        "apply cannot be exported with `jax.export`: TypeError:",
    ),
    (
        "save wrong input",
        lambda: lepton.save(FOLDER / "x.lepton", apply, W, WIDE),
        "apply cannot be exported with `jax.export`: TypeError:",
    ),
    (
        "save wrong input linen",
        lambda: lepton.save(FOLDER / "x.lepton", net.apply, V, WIDE),
        "apply cannot be exported with `jax.export`:",
    ),
    (
        "save str input",
        lambda: lepton.save(FOLDER / "x.lepton", apply, W, "x"),
        "save: example_inputs must be a tuple, each a tree of arrays; got",
    ),
    (
        "save recipe",
        lambda: lepton.save(FOLDER / "x.lepton", apply, W, X, recipe={"a": object()}),
        "recipe and metrics must be JSON: Object of type object is",
    ),
    (
        "save recipe 3",
        lambda: lepton.save(FOLDER / "x.lepton", apply, W, X, recipe=3),
        "save: recipe must be a mapping or None; got",
    ),
    (
        "checkpoints file",
        lambda: training.Checkpoints(FOLDER / "file"),
        "Checkpoints: directory must be a folder; /file is a file.",
    ),
    (
        "checkpoints keep",
        lambda: training.Checkpoints(FOLDER / "c", max_to_keep=0),
        "Checkpoints: max_to_keep must be a whole number from 1 up; got",
    ),
    (
        "checkpoints keep '2'",
        lambda: training.Checkpoints(FOLDER / "c", max_to_keep="2"),
        "Checkpoints: max_to_keep must be a whole number; got",
    ),
    (
        "checkpoints seconds",
        lambda: training.Checkpoints(FOLDER / "c", seconds="2"),
        "Checkpoints: seconds must be a number; got",
    ),
    ("cast None", lambda: lepton.cast(None), "cast: compute_dtype must be a dtype or a type or a text;"),
    ("cast int32", lambda: lepton.cast(jnp.int32), "cast: compute_dtype must be floating, e.g. 'bfloat16'; got"),
    ("prune 1.5", lambda: lepton.prune(1.5), "sparsity must be in [0, 1), the fraction of weights removed; got"),
    ("prune None", lambda: lepton.prune(None), "prune: sparsity must be a number or an array or a SparsitySchedule"),
    ("prune nan", lambda: lepton.prune(float("nan")), "sparsity must be in [0, 1), the fraction of weights removed; got"),
    ("fake_quant 99", lambda: lepton.fake_quant(bits=99), "Uniform: bits must be a whole number from 2 to 8; got"),
    ("fake_quant '4'", lambda: lepton.fake_quant(bits="4"), "Uniform: bits must be a whole number from 2 to 8; got"),
    ("low_rank 0", lambda: lepton.low_rank(0), "low_rank: rank must be a whole number from 1 up; got"),
    ("low_rank 'x'", lambda: lepton.low_rank("x"), "low_rank: rank must be a whole number from 1 up; got 'x'."),
    ("low_rank -1", lambda: lepton.low_rank(-1), "low_rank: rank must be a whole number from 1 up; got"),
    ("low_rank 1.5", lambda: lepton.low_rank(1.5), "low_rank: rank must be a whole number from 1 up; got"),
    ("lora rank 0", lambda: lowrank.lora(0, KEY), "lora: rank must be a whole number from 1 up; got"),
    ("lora rank text", lambda: lowrank.lora("4", KEY), "lora: rank must be a whole number; got"),
    ("pack other", lambda: lepton.pack(lepton.prune(0.5), W, {}), "pack: params or state are not this transform's: 'dict'"),
    ("freeze other", lambda: lepton.freeze(3, {}), "freeze: transform must be a Transform; got"),
    ("fit steps 0", lambda: training.FitSettings(steps=0), "steps: must be at least 1; got"),
    ("fit steps -1", lambda: training.FitSettings(steps=-1), "steps: must be at least 1; got"),
    ("fit steps 'x'", lambda: training.FitSettings(steps="3"), "FitSettings: steps must be a whole number; got"),
    ("fit log_every 0", lambda: training.FitSettings(steps=3, log_every=0), "log_every: must be at least 1; got"),
    ("fit scan 0", lambda: training.FitSettings(steps=3, scan=0), "scan: must be at least 1; got"),
    (
        "batches 0",
        lambda: next(iter(data.batches(data.load_digits().train, 0, seed=0))),
        "batch_size must be in 1 to 1257, the number of examples;",
    ),
    (
        "batches -1",
        lambda: next(iter(data.batches(data.load_digits().train, -1, seed=0))),
        "batch_size must be in 1 to 1257, the number of examples;",
    ),
    (
        "batches big",
        lambda: next(iter(data.batches(data.load_digits().train, 10**6, seed=0))),
        "batch_size must be in 1 to 1257, the number of examples;",
    ),
    (
        "batches '64'",
        lambda: next(iter(data.batches(data.load_digits().train, "64", seed=0))),
        "batches: batch_size must be a whole number; got",
    ),
    (
        "digits validation",
        lambda: data.load_digits(validation=10**6),
        "the held-out part must have 0 to 1436 of 1437 examples; got",
    ),
    (
        "digits validation -1",
        lambda: data.load_digits(validation=-1),
        "the held-out part must have 0 to 1436 of 1437 examples; got",
    ),
    (
        "tfds that is not there",
        lambda: data.load_tfds("nosuchset", validation=3, data_dir=str(FOLDER)),
        "TFDS knows no set called 'nosuchset'.",
    ),
    ("open none", lambda: compressed.open_dataset(FOLDER / "none"), "cannot read /none: No such file or directory"),
    (
        "open file",
        lambda: compressed.open_dataset(FOLDER / "file"),
        "not a data set of lepton_jax: begins with b'x' at offset 0,",
    ),
    (
        "write ragged",
        lambda: compressed.write_dataset(FOLDER / "w", {"a": np.ones(3), "b": np.ones(4)}),
        "a: has 3 examples; all arrays must have as many",
    ),
    ("write none", lambda: compressed.write_dataset(FOLDER / "w", {}), "arrays: give at least one"),
    (
        "write block 0",
        lambda: compressed.write_dataset(FOLDER / "w", {"a": np.ones(3)}, block=0),
        "write_dataset: block must be a whole number from 1 up; got",
    ),
    (
        "write object",
        lambda: compressed.write_dataset(FOLDER / "w", {"a": np.array([object()])}),
        "a: dtype object is not one of plain numbers; code text as",
    ),
    ("load_npz none", lambda: interchange.load_npz(FOLDER / "none.npz"), "[Errno 2] No such file or directory: '/none.npz'"),
    (
        "load_npz file",
        lambda: interchange.load_npz(FOLDER / "file"),
        "/file is no whole npz file of plain arrays: File is not a",
    ),
    (
        "load_safetensors file",
        lambda: interchange.load_safetensors(FOLDER / "file"),
        "/file is no whole safetensors file: a header of 120 bytes",
    ),
    (
        "load_orbax file",
        lambda: interchange.load_orbax(FOLDER / "file"),
        "/file is no folder; an orbax checkpoint is one. Give the",
    ),
    (
        "load_orbax none",
        lambda: interchange.load_orbax(FOLDER / "none"),
        "/none is no folder; an orbax checkpoint is one. Give the",
    ),
    (
        "load_variables",
        lambda: interchange.load_variables(FOLDER / "file.pt"),
        "variables are read from .lepton, .safetensors, .npz or an",
    ),
    (
        "save_npz str",
        lambda: interchange.save_npz(FOLDER / "x.npz", {"a": "x"}),
        "a: must be an array or a number; got",
    ),
    (
        "save_npz nowhere",
        lambda: interchange.save_npz(FOLDER / "no" / "x.npz", {"a": np.ones(2)}),
        "cannot write /no/x.npz (569 bytes): No such file or",
    ),
    (
        "save_variables",
        lambda: interchange.save_variables(FOLDER / "x.pt", {"a": np.ones(2)}),
        "variables are written to .safetensors or .npz; choose one",
    ),
    ("Uniform bits", lambda: formats.Uniform(0), "Uniform: bits must be a whole number from 2 to 8; got"),
    ("Uniform bits x", lambda: formats.Uniform("8"), "Uniform: bits must be a whole number from 2 to 8; got"),
    ("Uniform group", lambda: formats.Uniform(4, group_size=0), "Uniform: group_size must be a whole number from 1 up; got"),
    (
        "quantize int",
        lambda: q.quantize(jnp.ones((2, 2), jnp.int32), formats.Uniform(4)),
        "quantize: takes an array of floats; got",
    ),
    (
        "quantize axis",
        lambda: q.quantize(jnp.ones((2, 2)), formats.Uniform(4, channel_axis=5)),
        "Uniform: channel_axis=5 is out of range for an array of",
    ),
    ("Codebook", lambda: q.Codebook(bits=0), "Codebook: bits must be a whole number from 1 to 7; got"),
    (
        "chain list",
        lambda: lepton.chain([lepton.prune(0.5)]),
        "chain: takes transforms, as in chain(prune(0.5), fake_quant(bits=4)); got",
    ),
    ("prune_model none", lambda: lepton.prune_model(model), "prune_model: give either threshold=0.1 or sparsity=0.9; got"),
    ("prune_model net", lambda: lepton.prune_model(net, sparsity=0.5), "prune_model: model must be a Model; got"),
    (
        "prune_model threshold",
        lambda: lepton.prune_model(model, threshold=-1.0),
        "prune_model: threshold must be 0 or more, a magnitude; got",
    ),
    (
        "prune_model option",
        lambda: lepton.prune_model(model, sparsity=0.5, scpoe="global"),
        "prune: got an unexpected keyword argument 'scpoe'; it takes",
    ),
    (
        "quantize_model",
        lambda: lepton.quantize_model(model, precision=0),
        "Uniform: bits must be a whole number from 2 to 8; got",
    ),
    ("compress_model", lambda: lepton.compress_model(model, 0), "factorize_model: rank must be a whole number from 1, or a"),
    ("Model net", lambda: lepton.Model(net, V), "Model: apply must be a pure function apply(variables, *inputs); got"),
    ("Model 3", lambda: lepton.Model(3, V), "Model: apply must be a pure function apply(variables, *inputs); got"),
    ("Model example", lambda: lepton.Model(apply, W, X), "Model: example must be a tuple of inputs, (x,); got"),
    (
        "save no example",
        lambda: lepton.Model(apply, W).save(FOLDER / "x.lepton"),
        "save: needs example inputs, whose shapes and dtypes the",
    ),
    ("erk", lambda: pruning.erk({"a": (4, 3)}, 1.5), "sparsity must be in [0, 1), the fraction of weights removed; got"),
    ("n_of_m", lambda: pruning.NofM(n=3, m=2), "NofM: n must be a whole number from 1 to 2; got"),
    ("n_of_m0", lambda: pruning.NofM(n=0, m=0), "NofM: m must be a whole number from 1 up; got"),
    ("Blocks", lambda: pruning.Blocks(shape=(0, 0)), "Blocks: each size of shape must be a whole number from 1 up; got"),
    ("keep_count", lambda: pruning.keep_count(10, 1.5), "keep_count: sparsity must be in [0, 1), the fraction of"),
    ("top", lambda: pruning.top(jnp.ones(3), 2.0), "sparsity must be in [0, 1), the fraction of weights removed; got"),
    ("rigl", lambda: st.rigl(0.5, KEY, end=10, interval=0), "rigl: interval must be a whole number from 1 up; got"),
    ("set", lambda: st.set_(1.5, KEY, end=10), "set_: sparsity must be in [0, 1), the fraction of weights removed; got"),
    ("schedules", lambda: schedules.cosine(0.5, 10, 5), "cosine: end must come after begin; got"),
    (
        "schedules end",
        lambda: schedules.polynomial(1.5, 0, 5),
        "polynomial: target must be in [0, 1), the fraction of weights removed; got",
    ),
    (
        "ranges percentile",
        lambda: formats.ranges.Percentile(q=101),
        "Percentile: q must be above 50 and up to 100, in percent; got",
    ),
    ("Budget", lambda: lowrank.Budget(fraction=0), "fraction: must be in (0, 1], of the cost of the dense weights; got"),
    ("Budget2", lambda: lowrank.Budget(fraction="half"), "Budget: fraction must be a number or None; got"),
    ("Energy", lambda: lowrank.Energy(energy=1.5), "Energy: energy must be in (0, 1], the share of squared"),
    ("Distill weight", lambda: d.Distill(terms=(), label_weight=-1.0), "label_weight: must be 0 or more; got"),
    (
        "soft_targets",
        lambda: d.soft_targets(jnp.ones((2, 3)), jnp.ones((2, 4)), temperature=1.0),
        "soft_targets: student and teacher must have the same shape; got",
    ),
    (
        "soft_targets T",
        lambda: d.soft_targets(jnp.ones((2, 3)), jnp.ones((2, 3)), temperature=0.0),
        "soft_targets: temperature must be positive and finite; got",
    ),
    (
        "cross_entropy",
        lambda: training.cross_entropy(jnp.ones((2, 3)), jnp.ones((3,), jnp.int32)),
        "cross_entropy: needs logits [..., C] and labels [...]; got",
    ),
    (
        "dkd",
        lambda: d.dkd(jnp.ones((2, 3)), jnp.ones((2, 3)), jnp.ones(3, jnp.int32)),
        "dkd: needs logits [..., C] of 2 classes or more and labels [...]; got",
    ),
    ("hints", lambda: d.hints(jnp.ones((2, 3)), jnp.ones((2, 4))), "hints: student and teacher must have the same shape; got"),
    ("data_mesh", lambda: training.data_mesh([]), "data_mesh: devices must be one or more, e.g. jax.devices()[:1]; got"),
    ("data_mesh 99", lambda: training.data_mesh(["cpu"]), "data_mesh: devices must be a sequence, each a Device or None; got"),
    ("read_metrics", lambda: training.read_metrics(FOLDER / "none"), "[Errno 2] No such file or directory: '/none'"),
    (
        "read_metrics2",
        lambda: training.read_metrics(FOLDER / "file"),
        "/file is damaged: line 1 is no row of metrics (Expecting",
    ),
    ("DynamicScale", lambda: precision.DynamicScale(initial=-1.0), "0 < floor <= initial <= ceiling is required; got"),
    ("StaticScale", lambda: precision.StaticScale(scale=0.0), "StaticScale: scale must be positive and finite; got"),
    (
        "Rule",
        lambda: q.Rule(argument="wight", quantizer=q.Dynamic(q.Uniform(8))),
        "Rule: argument must be one of activation, weight,",
    ),
    ("delayed", lambda: q.delayed(lepton.fake_quant(bits=4), -1), "delayed: begin must be a whole number from 0 up; got"),
    (
        "pack_bits",
        lambda: lepton.leaves.pack_bits(jnp.ones(3, jnp.uint8), 0),
        "pack_bits: bits must be a whole number from 1 to 16; got",
    ),
    (
        "unpack_bits",
        lambda: lepton.leaves.unpack_bits(jnp.ones(3, jnp.uint32), 99, 3),
        "unpack_bits: bits must be a whole number from 1 to 16; got",
    ),
    ("merge", lambda: lowrank.merge(lepton.prune(0.5), W, {}), "merge: params or state are not this transform's: 'dict'"),
    ("paths.select", lambda: paths.select(W, "nothing"), "select='nothing' matches no floating leaf. The floating"),
    ("paths.select 3", lambda: paths.select(W, 3), "select must be a glob over paths such as '*/kernel',"),
    ("warp", lambda: data.Warp(count=0), "count: must be 1 or more; got"),
    ("ensemble", lambda: d.ensemble([]), "ensemble: there is no teacher to average; give one or more."),
    ("gptq", lambda: q.Gptq(damping=-1.0), "Gptq: damping must be 0 or more, times the mean of the"),
    (
        "first_and_last",
        lambda: q.first_and_last(net.apply, V, WIDE),
        "Module.apply does not take these variables with the inputs",
    ),
    (
        "sensitivity",
        lambda: pruning.sensitivity(lambda p: 0.0, W, sparsities=()),
        "sensitivity: sparsities must ascend within (0, 1); got",
    ),
    ("equalize", lambda: q.equalize(net.apply, V, WIDE), "Module.apply does not take these variables with the inputs"),
    (
        "quantize_layers",
        lambda: q.quantize_layers(net.apply, V, [WIDE], q.Uniform(4), q.Nearest()),
        "Module.apply does not take these variables with the inputs",
    ),
    ("by_part", lambda: lepton.core.transform.by_part({}), "by_part: give at least one transform, by the name of its"),
    ("keep_faster", lambda: lowrank.keep_faster(3, net.apply, V, X), "keep_faster: report must be a RankReport; got"),
    (
        "layer_times",
        lambda: lowrank.layer_times(net.apply, V, {}, WIDE),
        "Module.apply does not take these variables with the inputs",
    ),
    (
        "uniform",
        lambda: pruning.uniform({"a": (4, 3)}, -0.1),
        "sparsity must be in [0, 1), the fraction of weights removed; got",
    ),
    (
        "block mask",
        lambda: pruning.block(jnp.ones((4, 4)), 0.5, (0, 1)),
        "a block's size must be a whole number from 1 up; got",
    ),
    ("channel mask", lambda: pruning.channel(jnp.ones((4, 4)), 0.5, 7), "axis 7 is none of the 2 axes of shape (4, 4)."),
    ("top_of_all", lambda: pruning.top_of_all({}, 0.5), "top_of_all: scores must be a sequence, each an array; got"),
    ("fisher", lambda: pruning.criteria.Fisher(decay=2.0), "Fisher: decay must be in [0, 1], the weight of what was"),
    ("scope", lambda: lepton.prune(0.5, scope="all"), "scope must be 'layer' or 'global'; got"),
    ("gradient", lambda: lepton.prune(0.5, gradient="on"), "gradient must be 'masked' or 'straight_through'; got"),
    ("interval", lambda: lepton.prune(0.5, interval=0), "interval must be at least 1 step; got"),
    (
        "prune select",
        lambda: lepton.prune(0.5, select="nothing").init(W),
        "select='nothing' matches no floating leaf. The floating",
    ),
    (
        "prune not a tree",
        lambda: lepton.prune(0.5).init({"a": {"kernel": "x"}}),
        "select='matrices' matches no floating leaf. The floating",
    ),
    (
        "fake_quant select",
        lambda: lepton.fake_quant(bits=4, select="nothing").init(W),
        "select='nothing' matches no floating leaf. The floating",
    ),
    (
        "fake_quant axis",
        lambda: lepton.fake_quant(bits=4, channel_axis=9).init(W),
        "a/kernel: channel_axis=9 is out of range for an array of",
    ),
    (
        "low_rank select",
        lambda: lepton.low_rank(2, select="nothing").init(W),
        "select='nothing' matches no floating leaf. The floating",
    ),
    ("low_rank rank", lambda: lepton.low_rank(99).init(W), "a/kernel: shape (4, 3); the rank must be 1 to 3: choose"),
    (
        "by_part none",
        lambda: lepton.core.transform.by_part({"b": lepton.prune(0.5)}).init(W),
        "by_part: there is no part b. The parts are: a.",
    ),
    (
        "distill_model",
        lambda: lepton.distill_model(model, model, 3, steps=1),
        "data: needs arrays of one length, with examples; got",
    ),
    ("load_cifar", lambda: data.load_cifar10_subset(FOLDER / "none"), "/none has no labels_51000.npy, cifar10_batch_50.png,"),
    ("load_fsdd", lambda: data.load_fsdd(FOLDER / "none"), "there is no file /none. Get the recordings of the Free"),
    (
        "load_sst2",
        lambda: data.load_sst2(FOLDER / "none", length=3, tokens=9),
        "/none has no train.tsv, dev.tsv, test.tsv. Get the binary",
    ),
    (
        "from_arrays",
        lambda: data.from_arrays(
            (np.ones((3, 2)), np.ones(4, np.int32)), (np.ones((3, 2)), np.ones(3, np.int32)), num_classes=2, validation=1
        ),
        "images: shape (3, 2). A missing channel axis is added by",
    ),
    ("check_labels", lambda: data.check_labels(np.array([3]), 2), "labels: labels must be in [0, 2); got"),
    (
        "stratified",
        lambda: data.stratified(np.array([0, 1]), 5, seed=0),
        "the held-out part must have 0 to 1 of 2 examples; got",
    ),
    ("patch_pca", lambda: compressed.PatchPCA(patch=0, energy=0.9), "PatchPCA: patch must be a whole number from 1 to 64; got"),
    (
        "patch_pca energy",
        lambda: compressed.PatchPCA(patch=4, energy=2.0),
        "PatchPCA: energy must be in (0, 1), the fraction of the variance kept; got",
    ),
    ("lossless", lambda: compressed.Lossless(favour="beauty"), "Lossless: favour must be 'size' or 'speed'; got"),
    ("index text", lambda: compressed.open_dataset(FOLDER / "s")["x"], "'str' object cannot be interpreted as an integer"),
    ("mxfp8", lambda: formats.mxfp8("float9"), "MX: element must be one of float4_e2m1fn, float8_e4m3fn, float8_e5m2; got"),
    ("MX", lambda: formats.MX(element="float9"), "MX: element must be one of float4_e2m1fn, float8_e4m3fn, float8_e5m2; got"),
    ("Float8", lambda: formats.Float8(dtype="float9"), "Float8: dtype must be one of float8_e4m3fn, float8_e5m2;"),
    ("orbax into", lambda: interchange.load_orbax(FOLDER), " holds no orbax checkpoint (no _METADATA in it or in a"),
    (
        "restore",
        lambda: training.Checkpoints(FOLDER / "empty").restore(W),
        "/empty holds no checkpoint; start without resuming.",
    ),
    (
        "restore step",
        lambda: training.Checkpoints(FOLDER / "empty").restore(W, step=3),
        "/empty holds no checkpoint of step 3, but of [].",
    ),
    ("from_linen none", lambda: lepton.Model.from_linen(3, V), "Model.from_linen: module must be a flax.linen.Module; got"),
    ("Svd", lambda: lowrank.Fixed(rank=0), "Fixed: rank must be a whole number from 1 up; got"),
    ("Fraction", lambda: lowrank.Fraction(fraction=2.0), "Fraction: fraction must be in (0, 1], of the largest rank; got"),
    ("nuclear", lambda: lowrank.nuclear_norm(W, select="nothing"), "select='nothing' matches no floating leaf. The floating"),
    ("AdaRound", lambda: q.AdaRound(steps=0), "AdaRound: steps must be a whole number from 1 up; got"),
    ("Static", lambda: q.Static(3), "Static: format must be a number format, e.g. Uniform(bits=8); got"),
    (
        "channels exclude",
        lambda: channels.plan(net.apply, V, X, fraction=0.5, exclude="nothing*"),
        "select='nothing*' matches no floating leaf. The floating",
    ),
    ("linen_apply", lambda: training.linen_apply(3), "linen_apply: module must be a flax.linen.Module; got"),
    (
        "ResNetCifar depth",
        lambda: lepton.models.ResNetCifar(depth=7).init(KEY, jnp.ones((1, 8, 8, 3))),
        "depth must be 6 n + 2 with n blocks a stage (8, 14, 20, 32, 56, ...); got",
    ),
    ("ensemble_logits", lambda: d.ensemble_logits([]), "ensemble: there is no teacher to average; give one or more."),
    (
        "token_kl",
        lambda: d.token_kl(jnp.ones((2, 3)), jnp.ones((2, 4)), jnp.ones(2, bool)),
        "token_kl: student and teacher must have the same shape; got",
    ),
    (
        "teacher_free",
        lambda: d.teacher_free(jnp.ones((2, 3)), jnp.ones(3, jnp.int32)),
        "teacher_free: needs logits [..., C] of 2 classes or more",
    ),
    (
        "rkd",
        lambda: d.rkd_distance(jnp.ones((2, 3)), jnp.ones((3, 3))),
        "rkd_distance: student and teacher must be [B, ...] with the same B; got",
    ),
    ("FitSettings", lambda: training.FitSettings(steps=3, checkpoint_every=0), "checkpoint_every: must be at least 1; got"),
]
