"""--no-disk is --nvme-limit 0."""

import json

import pytest

from tokenvm.cli_options import merged_memory
from tokenvm.errors import ConfigError


def test_no_disk_switches_the_tier_off(tokenvm):
    code, out, _ = tokenvm("config", "--no-disk", "--json")
    assert code == 0
    assert json.loads(out)["nvme_limit"] == {"value": "0", "source": "command line --nvme-limit"}


def test_it_is_said_once(tokenvm):
    assert merged_memory(no_disk=True).config.nvme_limit == 0
    assert merged_memory(no_disk=False, nvme_limit="1GB").config.nvme_limit == 10**9
    with pytest.raises(ConfigError, match="leave one of them out"):
        merged_memory(no_disk=True, nvme_limit="1GB")
