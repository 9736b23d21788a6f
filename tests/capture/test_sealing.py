import base64
import os
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


def key(alphabet=base64.b64encode):
    return alphabet(os.urandom(32)).decode()


@pytest.mark.parametrize("alphabet", [base64.b64encode, base64.urlsafe_b64encode])
def test_a_key_of_the_environment_seals_and_no_file_is_made(tmp_path, monkeypatch, alphabet):
    monkeypatch.setenv("INFERLAKE_SECRET_KEY", key(alphabet))
    settings = Settings(data_dir=tmp_path)
    assert sealing.decrypt(settings, sealing.encrypt(settings, "x")) == "x"
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(errors.InternalError, match="INFERLAKE_SECRET_KEY does not belong"):
        sealing.decrypt(
            Settings(data_dir=tmp_path, secret_key=key()), sealing.encrypt(settings, "x")
        )


@pytest.mark.parametrize("wrong", ["", "geheim", "A" * 43, base64.b64encode(b"x" * 31).decode()])
def test_a_wrong_key_is_told_and_not_shown(tmp_path, wrong):
    settings = Settings(data_dir=tmp_path, secret_key=wrong)
    with pytest.raises(errors.InvalidParameter, match="INFERLAKE_SECRET_KEY must be 32") as told:
        sealing.check(settings)
    assert not wrong or wrong not in told.value.message


def test_the_key_before_opens_and_what_it_sealed_is_sealed_anew(tmp_path):
    first, second = key(), key()
    before = Settings(data_dir=tmp_path, secret_key=first)
    sealed = sealing.encrypt(before, "x")
    both = Settings(data_dir=tmp_path, secret_key=second, secret_key_before=first)
    assert sealing.decrypt(both, sealed) == "x"
    anew = sealing.renewed(both, sealed)
    assert sealing.renewed(both, anew) is None
    assert sealing.decrypt(Settings(data_dir=tmp_path, secret_key=second), anew) == "x"


def test_a_key_of_the_environment_takes_over_from_the_file(tmp_path):
    sealed = sealing.encrypt(Settings(data_dir=tmp_path), "x")
    settings = Settings(data_dir=tmp_path, secret_key=key())
    anew = sealing.renewed(settings, sealed)
    (tmp_path / sealing.KEY_FILE).unlink()
    assert sealing.decrypt(settings, anew) == "x"
