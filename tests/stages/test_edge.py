"""The edge and the cloud: what crosses, where to cut, files, and the two halves over a slowed link."""

import json
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lepton_jax import stages
from lepton_jax.command_line.main import main
from lepton_jax.core.errors import ArtifactError
from lepton_jax.models import LeNet5
from lepton_jax.stages import PeerError, edge
from lepton_jax.stages.edge import Link, Profile, Wire
from lepton_jax.stages.edge.wire import Coder


def relu_maps(seed, count=16, size=12, channels=8):
    """Smooth maps after a relu, channels of several scales, one dead and one not finite in a place."""
    rng = np.random.default_rng(seed)
    x = np.maximum(np.cumsum(rng.normal(size=(count, size, size, channels)), 2) * np.exp(rng.normal(size=channels)), 0)
    x[..., 0] = 0
    x[0, 0, 0, 1] = np.nan
    return x.astype(np.float32)


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 8])
def test_codes_come_back_and_cost_what_their_entropy_is(bits):
    x = relu_maps(0, 256)
    coder, fresh = edge.fit(x[:224], Wire(bits=bits)), x[224:]
    data = coder.encode(fresh)
    back = coder.decode(data)
    codes = coder.codes(fresh)
    np.testing.assert_array_equal(back, coder.values(codes))
    assert back.dtype == fresh.dtype
    assert back.shape == fresh.shape
    assert codes.max() < 2**bits
    assert (back[..., 0] == 0).all()
    # Inside of the levels a value is at most half a step off.
    top = coder.low + coder.step * (2**bits - 1)
    inside = np.isfinite(fresh) & (fresh <= top)
    assert (np.abs(np.where(inside, back - fresh, 0)) <= 0.5001 * coder.step).all()
    assert len(data) <= 1.1 * edge.entropy_bytes(codes) + 60
    again = Coder.of_description(json.loads(json.dumps(coder.described())))
    assert again.encode(fresh) == data


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_a_single_vector_costs_its_entropy_too(bits):
    x = np.maximum(np.random.default_rng(bits).normal(size=(300, 1024)), 0).astype(np.float32)
    coder, fresh = edge.fit(x[:200], Wire(bits=bits)), x[200:]
    codes = coder.codes(fresh)
    assert coder.group == 1
    np.testing.assert_array_equal(coder.decode(coder.encode(fresh[:1])), coder.values(codes[:1]))
    np.testing.assert_array_equal(coder.decode(coder.encode(fresh)), coder.values(codes))
    floor = edge.entropy_bytes(codes)
    assert len(coder.encode(fresh)) <= 1.1 * floor
    alone = np.mean([len(coder.encode(fresh[n : n + 1])) for n in range(20)])
    assert alone <= 1.25 * floor / len(fresh)


def test_entropy_is_that_of_each_channel():
    codes = np.array([[0, 3], [1, 3], [0, 3], [1, 2]], np.uint8)
    one = -(0.75 * math.log2(0.75) + 0.25 * math.log2(0.25)) * 4
    assert edge.entropy_bytes(codes) == pytest.approx((4 + one) / 8)


@pytest.mark.parametrize("value", [np.arange(12, dtype=np.int32).reshape(4, 3), np.ones((4,), np.float32)])
def test_what_is_no_map_goes_as_it_is(value):
    coder = edge.fit(value, Wire(bits=3))
    np.testing.assert_array_equal(coder.decode(coder.encode(value)), value)


@pytest.mark.parametrize("seed", range(2))
def test_no_bytes_do_harm(seed):
    coder, rng = edge.fit(relu_maps(0), Wire(bits=3)), np.random.default_rng(seed)
    data = bytearray(coder.encode(relu_maps(1, 2)))
    for _ in range(60):
        changed = data.copy()
        for place in rng.integers(0, 30, 2):
            changed[place] = rng.integers(256)
        try:
            coder.decode(bytes(changed[: rng.integers(len(data) + 1)]))
        except ArtifactError:
            continue
    described = coder.described()
    for change in ({"low": 3}, {"bits": 5}, {"table": described["low"]}, {"dtype": "object"}, {"low": "!!"}):
        with pytest.raises(ArtifactError):
            Coder.of_description({**described, **change})
    with pytest.raises(ArtifactError):
        Coder.of_description({})


def lenet():
    net = LeNet5()
    x = jnp.asarray(np.random.default_rng(0).random((16, 28, 28, 1)), jnp.float32)
    return net.apply, net.init(jax.random.key(0), x), x


def test_the_choice_is_the_best_of_all_by_hand():
    apply, v, x = lenet()
    plan = stages.plan(apply, v, x, count=4)
    rows = ((900.0, 0.002, 0.001), (500.0, 0.001, 0.001), (80.0, 0.001, 0.001))
    one = Profile(seconds=(0.01, 0.02, 0.03, 0.04), wires={3: rows}, images={"raw": 12544.0, "JPEG 90": 6000.0})
    other = one.times(0.1)
    for mbit, rtt in ((0.01, 0), (0.5, 5), (3, 20), (1000, 0), (1000, 400)):
        found = edge.choose(plan, edge=one, cloud=other, link=Link(mbit=mbit, rtt_ms=rtt), wire=Wire(bits=3))
        by_hand = {"nothing: all at the edge": 0.1}
        for name, size in one.images.items():
            by_hand[f"the input, {name}"] = rtt / 1e3 + 8 * size / mbit / 1e6 + 0.01
        for place, (size, code, decode) in enumerate(rows, 1):
            shares = sum(one.seconds[:place]) + code + rtt / 1e3 + 8 * size / mbit / 1e6 + 0.1 * decode
            by_hand[f"before stage {place}"] = shares + 0.1 * sum(one.seconds[place:])
        assert {option.name: option.seconds for option in found.options} == pytest.approx(by_hand)
        assert found.best.name == min(by_hand, key=by_hand.__getitem__)
    assert re.search(r"^\* +nothing", str(edge.choose(plan, edge=one, cloud=one, link=Link(0.001))), re.M)
    unmeasured = edge.choose(plan, edge=Profile(seconds=(1.0,) * 4), cloud=other, link=Link(1), wire=Wire(bits=4))
    sizes = [option.bytes for option in unmeasured.options if option.name.startswith("before")]
    assert sizes == [sum(math.prod(shape) for shape, _ in facts.carried) / 2 for facts in plan.stages_of[1:]]


def test_a_profile_is_measured_and_drawn(tmp_path):
    apply, v, x = lenet()
    plan = stages.plan(apply, v, x, count=3)
    found = edge.profile(plan, apply, v, x, wires=[Wire(bits=2)], rounds=1)
    assert len(found.seconds) == 3
    assert min(found.seconds) > 0
    assert found.images["raw"] == 16 * 784
    for (size, coding, decoding), facts in zip(found.wires[2], plan.stages_of[1:], strict=True):
        assert 0 < size < facts.bytes_in / 12
        assert min(coding, decoding) > 0
    edge.draw(plan, tmp_path / "latency.png", edge=found, cloud=found.times(0.1), rtt_ms=5, wire=Wire(bits=2))
    assert (tmp_path / "latency.png").stat().st_size > 5000


def seconds_of(client, x, link):
    client.link = link
    client(x)
    return client.seconds


def test_two_files_make_the_model_over_a_slowed_link(tmp_path, capsys):
    apply, v, x = lenet()
    cut = edge.cut_at(stages.plan(apply, v, x, count=3), 1, apply, v, x, wire=Wire(bits=8))
    files = [tmp_path / "edge.lepton", tmp_path / "cloud.lepton"]
    edge.save(cut, *files)
    few, whole = x[:3], jax.jit(apply)(v, x[:3])
    scale = float(jnp.abs(whole).max())
    assert float(jnp.abs(cut(few) - whole).max()) < 0.05 * scale
    with edge.served(files[1], timeout=20) as server:
        with edge.Client(files[0], server.address, link=Link(mbit=1, rtt_ms=50), timeout=20) as client:
            [out] = client(few)
            np.testing.assert_allclose(out, cut(few), rtol=1e-4, atol=1e-5)
            assert client.bytes == sum(map(len, cut.send(few)))
            assert client.seconds >= 0.05 + 8 * client.bytes / 1e6
            fast = min(seconds_of(client, few, None) for _ in range(3))
        with edge.Client(files[0], server.address, slower=50, timeout=20) as client:
            np.testing.assert_array_equal(client(few)[0], out)
            assert min(seconds_of(client, few, None) for _ in range(3)) > 5 * fast
        np.save(tmp_path / "x.npy", np.asarray(few))
        words = ["edge", "run", str(files[0]), "--input", str(tmp_path / "x.npy"), "--port", str(server.address[1])]
        assert main([*words, "--output", str(tmp_path / "y.npy"), "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["bytes"] == client.bytes
        np.testing.assert_array_equal(np.load(tmp_path / "y.npy"), out)
        assert main([*words[:2], str(files[1]), *words[3:]]) == 1
        assert "serve this one" in capsys.readouterr().err
        assert main([*words, "--mbit", "0"]) == 2
        assert "mbit must be above 0" in capsys.readouterr().err
        other = edge.cut_at(stages.plan(apply, v, x, count=3), 2, apply, v, x, wire=Wire(bits=4))
        edge.save(other, tmp_path / "edge2.lepton", tmp_path / "cloud2.lepton")
        with (
            edge.Client(tmp_path / "edge2.lepton", server.address, timeout=20) as stranger,
            pytest.raises(PeerError, match="a frame of another model"),
        ):
            stranger(few)
    with pytest.raises(PeerError, match="nobody serves"):
        edge.Client(files[0], server.address, timeout=2)
    with pytest.raises(ArtifactError, match="run this one"):
        edge.served(files[0])


def test_wrong_settings_are_named():
    apply, v, x = lenet()
    plan = stages.plan(apply, v, x, count=2)
    cases = [
        (lambda: edge.Client("a.lepton", ("127.0.0.1", 1), slower=0.5), "slower must be 1 or more"),
        (lambda: Link(mbit=0), "mbit must be above 0"),
        (lambda: Link(mbit=math.nan), "mbit must be above 0"),
        (lambda: Link(mbit=1, rtt_ms=-1), "rtt_ms must be 0 or more"),
        (lambda: Wire(bits=1), "bits must be a whole number from 2 to 8"),
        (lambda: Wire(clip=0.2), "clip must be"),
        (lambda: Profile(seconds=(-1.0,)), "seconds must be 0 or more"),
        (lambda: edge.cut_at(plan, 2, apply, v, x), "place must be a whole number from 1 to 1"),
        (lambda: edge.choose(plan, edge=Profile(seconds=(1.0,)), cloud=Profile(seconds=(1.0,)), link=Link(1)), "has 2 stages"),
        (lambda: edge.fit(relu_maps(0), Wire()).encode(np.zeros((1, 2))), "examples must have shape"),
    ]
    for call, said in cases:
        with pytest.raises(ValueError, match=said):
            call()
