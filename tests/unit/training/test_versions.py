from importlib.util import find_spec

import pytest

from trainyard.errors import InputError
from trainyard.training.versions import check_unsloth, misfits

ASKED = [
    "trl!=0.19.0,<=1.15.0,>=0.18.2",
    "torch<2.15.0,>=2.4.0",
    "certifi>=2026.10.19",
    'triton-windows; sys_platform == "win32"',
    'trl<0.1; extra == "old"',
]


def installed(**versions):
    return lambda name: versions[name]


def test_versions_in_range_are_accepted_and_other_libraries_not_looked_at():
    assert misfits(ASKED, installed(trl="1.15.0", torch="2.13.0+cpu")) == {}


def test_a_library_out_of_range_is_named_with_its_range():
    found = misfits(ASKED, installed(trl="1.16.0", torch="2.13.0"))
    assert found == {"trl": ("1.16.0", "!=0.19.0,<=1.15.0,>=0.18.2")}


def test_halves_of_different_days_are_refused_with_the_line_to_type():
    with pytest.raises(
        InputError, match=r"--no-deps unsloth==2026\.10\.9 unsloth_zoo==2026\.10\.9"
    ):
        check_unsloth(installed(unsloth="2026.10.9", unsloth_zoo="2026.10.7"))


@pytest.mark.skipif(find_spec("unsloth") is None, reason="Unsloth is not installed")
def test_the_environment_of_this_project_fits():
    check_unsloth()
