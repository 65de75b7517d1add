import os
import shutil
import ssl
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
import yaml

from tests.services.webhook.conftest import SECRET, end, eventually
from trainyard.process import free_port


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl makes the certificate")
def test_with_a_certificate_only_https_is_spoken(tmp_path: Path) -> None:
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256",
               "-nodes", "-keyout", str(key), "-out", str(certificate), "-days", "1",
               "-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1"]  # fmt: skip
    subprocess.run(command, check=True, capture_output=True)
    port = free_port()
    hook = {
        "provider": "github",
        "secrets": ["env:HOOK"],
        "api": "http://127.0.0.1:9",
        "api_token": "env:HOOK",
        "repositories": [{"name": "a/b", "url": "/nowhere"}],
    }
    config = {"port": port, "tls_certificate": str(certificate), "tls_key": str(key)}
    (tmp_path / "w.yaml").write_text(yaml.safe_dump(config | {"hooks": {"hub": hook}}))
    service = subprocess.Popen(
        [sys.executable, "-m", "trainyard", "webhook", "--config", str(tmp_path / "w.yaml"),
         "--home", str(tmp_path / "home")],
        env=os.environ | {"HOOK": SECRET}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:

        def answered() -> bool:
            try:
                url = f"https://127.0.0.1:{port}/health"
                context = ssl.create_default_context(cafile=certificate)
                return httpx.get(url, verify=context, timeout=5).is_success
            except httpx.TransportError:
                return False

        assert eventually(answered)
        with pytest.raises(httpx.TransportError):
            httpx.get(f"http://127.0.0.1:{port}/health", timeout=5)
    finally:
        end(service)
