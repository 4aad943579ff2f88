"""Modules and names that moved: the old ones are imported still, and say where they went."""

import importlib
import subprocess
import sys
import warnings
from types import ModuleType

import pytest

from lepton_jax import _moved, graph, native

OLD_NAMES = {
    "command_line.inspect_file": "Inspect",
    "errors": "Problems check_fraction check_whole collect is_traced",
    "graph.flow": "operand_origins origins together",
    "hessian": "InverseCholesky Moments inverse_cholesky second_moments",
    "lowrank.adapted": "Directed Held",
    "lowrank.guard": "RankChoice RankReport choose_ranks keep_faster Guarded",
    "lowrank.ranks.options": "Option hull solve steepest exact uniform",
    "models.torch_import": "load_resnet20 load_torch_resnet torch_names",
    "packed": "CodebookArray LowRank Sparse is_coded is_packed pack_bits register_packed unpack unpack_bits unpack_coded",
    "packed_blocks": "BlockSparse",
    "packed_sum": "Adapted",
    "packed_tensors": "CP Separable TensorTrain TensorTrainMatrix Tucker",
    "paths": "flatten floating is_floating matches matrices path_str replace select",
    "precision.decisions": "Decision Decisions",
    "pruning.channels.cut": "levels limit spare",
    "pruning.channels.iterate": "prune_iteratively",
    "pruning.channels.planning": "plan",
    "pruning.channels.plans": "Plan",
    "pruning.channels.shrinker": "Layout Shrinker cut take",
    "pruning.channels.text": "describe from_json to_json",
    "pruning.channels.verification": "Verification verify",
    "pruning.iterative": "iterative_masks",
    "pruning.masking": "apply_mask laid_out_as masked masked_straight_through",
    "pruning.sparse_training.masked": "check_masks masks_of nonzero_masks sparsity_of take_slopes",
    "quantization.calibration": "Calibration Entropy MinMax MovingAverage Mse Percentile Range",
    "quantization.collection": "with_sites part check_sites wrong",
    "quantization.entropy": "entropy_bits level_bits",
    "quantization.formats": "Binary Float8 Format MX NormalFloat4 Ternary Uniform expand mxfp4 mxfp8 scale_shape",
    "quantization.numerics": "QArray dequantize fake from_integers quantize to_integers",
    "quantization.simulate": "exact casts_of_integers integers",
    "quantization.twice_mean": "TwiceMeanState TwiceMean",
    "schedules": "SparsitySchedule as_schedule constant cosine one_shot periodic polynomial",
    "straight_through": "straight_through",
    "transform": "State Transform chain freeze hold identity pack",
    "typing": "Array Path PyTree Schedule Select Step",
}
"""What users imported from the old modules."""


def imported_anew(name, monkeypatch):
    """The module of an old name, as its first import gives it, and the warnings of that."""
    monkeypatch.delitem(sys.modules, name, raising=False)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        module = importlib.import_module(name)
    monkeypatch.delitem(sys.modules, name)
    return module, [str(one.message) for one in seen if one.category is DeprecationWarning]


def test_every_moved_module_is_known_here():
    assert OLD_NAMES.keys() == _moved._MOVED.keys()


@pytest.mark.parametrize("old", OLD_NAMES)
def test_an_old_module_warns_and_holds_the_same_objects(old, monkeypatch):
    new = f"lepton_jax.{_moved._MOVED[old]}"
    module, said = imported_anew(f"lepton_jax.{old}", monkeypatch)
    assert said == [f"lepton_jax.{old} is now {new}."]
    there = importlib.import_module(new)
    assert all(getattr(module, name) is getattr(there, name) for name in OLD_NAMES[old].split())
    # A package has the old module itself among its names, once that is imported.
    public = {name: v for name, v in vars(there).items() if not name.startswith("__") and not isinstance(v, ModuleType)}
    assert all(getattr(module, name) is value for name, value in public.items())


def test_the_new_module_keeps_its_own_name(monkeypatch):
    module, _ = imported_anew("lepton_jax.transform", monkeypatch)
    assert module.__name__ == "lepton_jax.transform"
    assert importlib.import_module("lepton_jax.core.transform").__name__ == "lepton_jax.core.transform"
    assert importlib.import_module("lepton_jax.core.transform").__spec__.name == "lepton_jax.core.transform"


def test_the_warning_is_shown_to_who_imports_the_old_name():
    """Python shows warnings of what is old only where they come from the user's own lines."""
    code = "from lepton_jax import transform, core; assert transform.Transform is core.transform.Transform"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "lepton_jax.transform is now lepton_jax.core.transform." in done.stderr


def test_a_name_that_never_was_is_refused():
    with pytest.raises(ModuleNotFoundError, match=r"lepton_jax\.no_such_module"):
        importlib.import_module("lepton_jax.no_such_module")


def test_to_forward_twice_is_to_forward_once():
    before = list(sys.meta_path)
    _moved.forward()
    assert sys.meta_path == before


@pytest.mark.parametrize("name", ["Ready", "Unpacked", "UnpackedWarning", "packed", "ready", "unpacked"])
def test_running_packed_leaves_is_offered_by_the_graph_too(name):
    assert getattr(graph, name) is getattr(native, name)


def test_other_names_of_the_graph_are_refused():
    with pytest.raises(AttributeError, match="has no attribute 'no_such_name'"):
        graph.no_such_name  # noqa: B018
