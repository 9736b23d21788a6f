import stat

import pytest

from capture import errors, sealing
from capture.settings import Settings


def test_a_sealed_secret_opens_again_and_does_not_show(tmp_path):
    settings = Settings(data_dir=tmp_path / "data")
    sealed = sealing.encrypt(settings, "whsec_geheim")
    assert "geheim" not in sealed
    assert sealing.decrypt(settings, sealed) == "whsec_geheim"


def test_the_key_file_is_for_its_owner_alone(tmp_path):
    settings = Settings(data_dir=tmp_path)
    sealing.encrypt(settings, "x")
    assert stat.S_IMODE((tmp_path / sealing.KEY_FILE).stat().st_mode) == 0o600
    assert [path.name for path in tmp_path.iterdir()] == [sealing.KEY_FILE]


def test_a_foreign_key_opens_nothing_and_says_so(tmp_path):
    sealed = sealing.encrypt(Settings(data_dir=tmp_path / "a"), "x")
    with pytest.raises(errors.InternalError, match="key file"):
        sealing.decrypt(Settings(data_dir=tmp_path / "b"), sealed)
