"""`inferlake up` with a certificate: HTTPS for clients, pages and our own processes."""

import os
import ssl
import subprocess
import sys
import urllib.error
import urllib.request
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from capture import tls
from capture.settings import Settings
from monitors import server as monitors_server


def own_environment():
    """Ours without what an inferlake outside this test may have set."""
    return {name: value for name, value in os.environ.items() if "INFERLAKE_" not in name}


def make(folder, days=30):
    """A self-signed certificate of `models.test`, and its key; gives both paths."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "models.test")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=60))
        .not_valid_after(now + timedelta(days=days))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("models.test")]), critical=False)
        .sign(key, hashes.SHA256())
    )
    folder.mkdir()
    paths = folder / "certificate.pem", folder / "key.pem"
    paths[0].write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    paths[1].write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    return paths


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    return make(tmp_path_factory.mktemp("tls") / "good")


@pytest.fixture(scope="module")
def secure(tmp_path_factory, up_on, pair):
    options = "--tls-certificate", str(pair[0]), "--tls-key", str(pair[1])
    up = up_on(tmp_path_factory.mktemp("https") / "data", *options).start()
    up.url = up.url.replace("http:", "https:")
    try:
        assert up.ready_line() == f"ready {up.url}", up.errors.read_text()
        yield up
    finally:
        assert up.end() == 0


def command(up, *arguments, **environment):
    """One of our commands against the server."""
    return subprocess.run(
        [sys.executable, "-m", "serving.cli", *arguments, "--data-dir", str(up.data_dir)],
        env=own_environment() | {"INFERLAKE_URL": up.url, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_client_that_trusts_the_certificate_is_answered(secure, pair):
    with urllib.request.urlopen(
        f"{secure.url}/health", context=tls.trust(pair[0]), timeout=30
    ) as reply:
        assert reply.status == 200


def test_who_does_not_trust_it_is_told_what_to_do(secure):
    with pytest.raises(urllib.error.URLError, match="CERTIFICATE_VERIFY_FAILED"):
        urllib.request.urlopen(f"{secure.url}/health", timeout=30)
    for words in (("endpoints", "list"), ("alerts", "list")):
        told = command(secure, *words)
        assert told.returncode == 1
        assert "is not trusted" in told.stderr
        assert "INFERLAKE_TLS_CERTIFICATE" in told.stderr


def test_another_certificate_of_the_same_name_is_not_trusted(secure, tmp_path):
    other, _ = make(tmp_path / "other")
    with pytest.raises(urllib.error.URLError) as refused:
        urllib.request.urlopen(f"{secure.url}/health", context=tls.trust(other), timeout=30)
    assert isinstance(refused.value.reason, ssl.SSLCertVerificationError)


def test_commands_and_the_doctor_work_with_the_setting(secure, pair):
    trusted = {"INFERLAKE_TLS_CERTIFICATE": str(pair[0])}
    for words in (("endpoints", "list"), ("alerts", "list")):
        told = command(secure, *words, **trusted)
        assert told.returncode == 0, told.stderr
    told = command(secure, "doctor", **trusted)
    assert told.returncode == 0, told.stdout
    assert f"{secure.url}/health answers 200" in told.stdout
    assert "certificate: valid until" in told.stdout


def test_the_monitors_reach_it_by_its_address(secure, pair):
    settings = Settings(
        url=secure.url,
        tls_certificate=pair[0],
        admin_token=(secure.data_dir / "admin-token").read_text().strip(),
    )
    server = monitors_server.Server(settings)
    with server.http, pytest.raises(monitors_server.Refused, match="does not exist"):
        server.traffic("nobody")


def test_a_query_goes_its_short_way_through_https(secure, pair):
    token = (secure.data_dir / "admin-token").read_text().strip()
    request = urllib.request.Request(
        f"{secure.url}/serving-endpoints/nobody/invocations",
        data=b"{}",
        headers={"Authorization": f"Bearer {token}", "Content-Type": "application/json"},
    )
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(request, context=tls.trust(pair[0]), timeout=30)
    assert refused.value.code == 404
    assert b"RESOURCE_DOES_NOT_EXIST" in refused.value.read()


def test_the_pages_speak_https_and_sign_in_over_it(secure, pair):
    said = secure.errors.read_text()
    link = next(word for word in said.split() if "/?code=" in word)
    assert link.startswith("https://127.0.0.1:")
    with urllib.request.urlopen(link, context=tls.trust(pair[0]), timeout=30) as reply:
        assert b"<title>" in reply.read()


def test_plain_http_is_not_answered(secure):
    with pytest.raises((urllib.error.URLError, ConnectionError)):
        urllib.request.urlopen(secure.url.replace("https:", "http:") + "/health", timeout=30)


def refused(up_on, folder, *options):
    """What `up` says instead of starting."""
    up = up_on(folder / "data", *map(str, options)).start()
    assert up.ready_line() == ""
    assert up.process.wait(60) == 1
    up.process.stdout.close()
    return up.errors.read_text()


def test_what_cannot_be_used_is_named(up_on, tmp_path, pair):
    certificate, key = pair
    _, other_key = make(tmp_path / "other")
    old, old_key = make(tmp_path / "old", days=-1)
    both = "--tls-certificate", certificate, "--tls-key"
    assert "without --tls-key" in refused(up_on, tmp_path, "--tls-certificate", certificate)
    assert "without --tls-certificate" in refused(up_on, tmp_path, "--tls-key", key)
    assert "no unencrypted private key" in refused(up_on, tmp_path, *both, other_key)
    assert "cannot be read" in refused(up_on, tmp_path, *both, tmp_path / "none.pem")
    expired = "--tls-certificate", old, "--tls-key", old_key
    assert "expired on" in refused(up_on, tmp_path, *expired)
    swapped = "--tls-certificate", key, "--tls-key", certificate
    assert "no certificate in PEM form" in refused(up_on, tmp_path, *swapped)
