import os
import urllib.error
import urllib.request

import pytest
from conftest import since
from e2b.exceptions import InvalidArgumentException, SandboxException

URL = os.environ["E2B_SANDBOX_URL"]


def fetch(host, path="/", headers=None, data=None, method=None):
    """What a request to a sandbox's host answers, as its status and its text."""
    request = urllib.request.Request(URL + path, data=data, method=method, headers={"Host": host, **(headers or {})})
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def serve(sandbox):
    sandbox.commands.run("mkdir -p /tmp/www; echo hello > /tmp/www/a")
    sandbox.commands.run("cd /tmp/www && python3 -m http.server 8000", background=True)


def test_a_port_is_reached_by_its_host(create, eventually):
    sandbox = create()
    serve(sandbox)
    host = sandbox.get_host(8000)
    assert host == f"8000-{sandbox.sandbox_id}.{os.environ['E2B_DOMAIN']}"
    eventually(lambda: fetch(host, "/a") == (200, "hello\n"))
    status, text = fetch(sandbox.get_host(8001))
    assert status == 502 and "port is not open" in text
    status, text = fetch(f"8000-sb0000000000000000.{os.environ['E2B_DOMAIN']}")
    assert status == 502 and "was not found" in text
    # The agent's other routes are the server's alone.
    assert fetch(sandbox.get_host(49983), "/init", data=b"{}")[0] == 404
    assert fetch(sandbox.get_host(49983), "/files?path=/etc/passwd")[0] == 401


def test_a_port_may_want_a_token(create, eventually):
    sandbox = create(network={"allow_public_traffic": False})
    serve(sandbox)
    host, token = sandbox.get_host(8000), sandbox.traffic_access_token
    assert token
    eventually(lambda: fetch(host, "/a", {"e2b-traffic-access-token": token}) == (200, "hello\n"))
    status, text = fetch(host, "/a")
    assert status == 403 and "is missing" in text
    status, text = fetch(host, "/a", {"e2b-traffic-access-token": token[:-1] + ("0" if token[-1] != "0" else "1")})
    assert status == 403 and "is invalid" in text
    assert create().traffic_access_token is None


def test_a_request_wakes_a_server(create, eventually):
    sandbox = create(lifecycle={"on_timeout": "pause", "auto_resume": True})
    serve(sandbox)
    host = sandbox.get_host(8000)
    eventually(lambda: fetch(host, "/a") == (200, "hello\n"))
    assert sandbox.pause()
    assert fetch(host, "/a") == (200, "hello\n")


def test_files_have_signed_addresses(create):
    sandbox = create()
    sandbox.files.write("/home/user/a b", "signed")
    address = sandbox.download_url("/home/user/a b")
    assert address.startswith(URL)
    assert urllib.request.urlopen(address, timeout=60).read() == b"signed"
    timed = sandbox.download_url("/home/user/a b", use_signature_expiration=100)
    assert urllib.request.urlopen(timed, timeout=60).read() == b"signed"
    for bad in [
        sandbox.download_url("/home/user/a b", use_signature_expiration=-100),
        address.replace("a%20b", "c"),
        address.split("&signature")[0],
    ]:
        with pytest.raises(urllib.error.HTTPError):
            urllib.request.urlopen(bad, timeout=60)
    body = b'--B\r\nContent-Disposition: form-data; name="file"; filename="x"\r\n\r\nuploaded\r\n--B--\r\n'
    request = urllib.request.Request(
        sandbox.upload_url("/home/user/up"), data=body, headers={"Content-Type": "multipart/form-data; boundary=B"}
    )
    assert urllib.request.urlopen(request, timeout=60).status == 200
    assert sandbox.files.read("/home/user/up") == "uploaded"


def test_a_network_is_what_was_asked_for(create):
    sandbox = create(allow_internet_access=False)
    info = sandbox.get_info()
    assert info.allow_internet_access is False
    rules = {"allow_out": ["pypi.org", "1.1.1.1"], "deny_out": ["0.0.0.0/0"]}
    sandbox.update_network(rules)
    network = sandbox.get_info().network
    assert network["allow_out"] == rules["allow_out"] and network["deny_out"] == rules["deny_out"]
    sandbox.update_network({})
    assert "allow_out" not in sandbox.get_info().network
    sandbox = create(network={"deny_out": ["8.8.8.8/32"]})
    assert sandbox.get_info().network["deny_out"] == ["8.8.8.8/32"]


@since(2, 63)
def test_dns_servers_are_what_was_asked_for(create):
    sandbox = create(network={"dns_servers": ["1.1.1.1", "9.9.9.9"]})
    assert sandbox.get_info().network["dns_servers"] == ["1.1.1.1", "9.9.9.9"]
    sandbox.update_network({"dns_servers": ["8.8.8.8"]})
    assert sandbox.get_info().network["dns_servers"] == ["8.8.8.8"]
    sandbox.update_network({})
    assert "dns_servers" not in sandbox.get_info().network
    with pytest.raises((SandboxException, InvalidArgumentException), match="10.0.0.53"):
        sandbox.update_network({"dns_servers": ["10.0.0.53"]})


@since(2, 63)
def test_an_egress_proxy_is_told_without_its_password(create):
    proxy = {"address": "proxy.example.com:1080", "username": "ada", "password": "hunter2"}
    sandbox = create(network={"egress_proxy": {**proxy, "tls": {"server_name": "other.example.com"}}})
    told = {"address": "proxy.example.com:1080", "username": "ada"}
    assert sandbox.get_info().network["egress_proxy"] == {**told, "tls": {"server_name": "other.example.com"}}
    sandbox.update_network({"egress_proxy": proxy})
    assert sandbox.get_info().network["egress_proxy"] == told
    for address in ["10.0.0.7:1080", "127.0.0.1:1080"]:
        with pytest.raises((SandboxException, InvalidArgumentException), match="proxy"):
            sandbox.update_network({"egress_proxy": {"address": address}})
    assert sandbox.get_info().network["egress_proxy"] == told
    sandbox.update_network({})
    assert "egress_proxy" not in sandbox.get_info().network


def test_what_a_network_cannot_be_is_refused(create):
    with pytest.raises((SandboxException, InvalidArgumentException), match="ALL_TRAFFIC"):
        create(network={"allow_out": ["pypi.org"]})
    with pytest.raises((SandboxException, InvalidArgumentException), match="invalid denied CIDR"):
        create(network={"deny_out": ["evil.example"]})
    sandbox = create()
    with pytest.raises((SandboxException, InvalidArgumentException), match="ALL_TRAFFIC"):
        sandbox.update_network({"allow_out": ["pypi.org"]})
