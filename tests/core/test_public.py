"""The names that ``import wspnb`` gives."""

import subprocess
import sys

import wspnb
from wspnb import losses, methods


def test_public_names_are_those_of_their_files():
    for name in wspnb.__all__:
        assert getattr(wspnb, name) is not None, name
    assert wspnb.pair_kernel is methods.pair_kernel
    assert wspnb.contrastive_loss is losses.contrastive_loss
    assert wspnb.__version__[0].isdigit()
    assert not hasattr(wspnb, "no_such_name") and "TinyNet" in dir(wspnb)
    from wspnb import statistics  # its name before it had a room

    assert statistics.__name__ == "wspnb.results.statistics"


def test_what_needs_no_torch_loads_none():
    """It takes seconds and memory: the package alone, every worker that makes slices, what fetches
    and what counts."""
    code = "import sys, wspnb, wspnb.data.slices, wspnb.data.dicom, wspnb.sources.lihc"
    code += ", wspnb.sources.cirrmri, wspnb.sources.adrenal, wspnb.results.statistics"
    code += "; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
