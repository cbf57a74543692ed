"""OpenVINO files with free axes, compiled for the shapes they meet."""

import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import openvino
import pytest
from openvino import opset13 as ops

from vitrail.deploy.export.backends import BACKENDS
from vitrail.deploy.export.backends.openvino import OpenVinoFile

SIDES = [5, 6, 7, 8, 9, 10]


@pytest.fixture
def file(tmp_path):
    """(B, C, H, W) -> the sum over C, H and W, plus 1; its axes are free."""
    images = ops.parameter([-1, 3, -1, -1], np.float32, name="images")
    summed = ops.reduce_sum(images, ops.constant([1, 2, 3]), keep_dims=False)
    path = tmp_path / "sum.xml"
    openvino.save_model(openvino.Model([ops.add(summed, ops.constant(np.float32(1)))], [images]), path)
    return path


@pytest.fixture
def compiled(monkeypatch):
    """The shape of every graph that is compiled, as text."""
    shapes, real = [], OpenVinoFile._compiled

    def recorded(self, graph):
        shapes.append(str(graph.inputs[0].get_partial_shape()))
        return real(self, graph)

    monkeypatch.setattr(OpenVinoFile, "_compiled", recorded)
    return shapes


def check(network, side, batch=2):
    images = np.random.default_rng(side).random((batch, 3, side, side + 1), dtype=np.float32)
    (found,) = network(images)
    np.testing.assert_allclose(found, images.sum((1, 2, 3)) + 1, rtol=1e-5)


def test_the_first_shapes_are_compiled_and_further_ones_run_in_the_free_graph(file, compiled):
    network = OpenVinoFile(file)
    for side in [*SIDES, *SIDES]:
        check(network, side)
    free = "[?,3,?,?]"
    assert compiled == ["[2,3,5,6]", "[2,3,6,7]", "[2,3,7,8]", free]
    assert len(network.fixed) == OpenVinoFile.SHAPES


def test_a_shape_that_keeps_coming_replaces_the_least_recently_used_one(file, compiled, monkeypatch):
    monkeypatch.setattr(OpenVinoFile, "IN_A_ROW", 4)
    network = OpenVinoFile(file)
    for side in [5, 6, 7, 5, 9, 10, 9, 10, 9, 9, 9]:
        check(network, side)
    assert "[2,3,9,10]" not in compiled
    check(network, 9)
    assert compiled[-1] == "[2,3,9,10]"
    assert [shape[2] for shape in network.fixed] == [7, 5, 9]


def test_a_free_graph_stays_as_it_is_written(file, compiled):
    network = BACKENDS["openvino"].open(file, as_written=True)
    for side in SIDES:
        check(network, side)
    assert compiled == ["[?,3,?,?]"]


def test_a_shape_that_does_not_fit_is_refused_by_the_runtime_and_the_next_one_runs(file):
    network = OpenVinoFile(file)
    with pytest.raises(RuntimeError):  # channels are fixed in the file
        network(np.zeros((1, 4, 5, 5), np.float32))
    check(network, 5)


def test_a_server_calls_one_network_from_several_threads(file):
    network = OpenVinoFile(file)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda side: check(network, side), SIDES * 5))


SIGNALLED = """
import gc, os, signal, sys
from vitrail.deploy.export.backends.openvino import OpenVinoFile
signal.signal(signal.SIGUSR1, lambda *_: print("handled"))
first, second = OpenVinoFile(sys.argv[1], free=True), OpenVinoFile(sys.argv[1], free=True)
del first
gc.collect()
del second
gc.collect()
os.kill(os.getpid(), signal.SIGUSR1)
"""


@pytest.mark.skipif(not hasattr(signal, "SIGUSR1"), reason="signals of POSIX")
def test_signals_are_handled_after_files_are_closed(file):
    """Each of OpenVINO's cores leaves the stack of the one before for signals, though that one may be gone."""
    done = subprocess.run([sys.executable, "-c", SIGNALLED, str(file)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "handled\n")
