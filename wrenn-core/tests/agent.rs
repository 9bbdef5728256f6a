//! The agent in a real guest: what it costs, and what only a guest has, such as a drive of its own and hooks.
#![expect(clippy::unwrap_used, reason = "tests")]

mod common;

use std::time::Duration;

use common::{run, sandbox};
use wrenn_core::Sandbox;

/// Defines `call(route, body, kind)`, which calls the agent from within the guest.
const CALL: &str = r"
import base64, json, struct, sys, urllib.request
def call(route, body=b'', kind='application/json'):
    request = urllib.request.Request('http://127.0.0.1:49983' + route, body, method='POST')
    for name, value in (('x-access-token', sys.argv[1]), ('content-type', kind), ('connect-protocol-version', '1')):
        request.add_header(name, value)
    return urllib.request.urlopen(request, timeout=30).read()
";

/// Runs a program of lines after [`CALL`].
async fn python(sandbox: &Sandbox, lines: &str) -> String {
    let token = sandbox.agent_token().unwrap_or_default();
    let program = format!("{CALL}{lines}");
    let output = sandbox.command("python3").args(["-c", &program, &token]).timeout(Duration::from_secs(60)).output();
    let output = output.await.unwrap();
    assert!(output.status.success(), "{}", output.stderr_utf8());
    output.stdout_utf8().trim_end().to_owned()
}

#[tokio::test]
async fn the_agent_is_below_six_mebibytes_and_with_a_hundred_processes_takes_less_than_eight() {
    vm_test_or_return!();
    let (_host, sandbox) = sandbox().await;
    let size = sandbox.command("stat").args(["-Lc", "%s", "/proc/1/exe"]).user("root").output().await.unwrap();
    let size = size.stdout_utf8().trim().parse::<u64>().unwrap();
    let mut children = Vec::new();
    for _ in 0..100 {
        children.push(sandbox.command("sleep").arg("600").spawn().await.unwrap());
    }
    let resident = run(&sandbox, "awk '/VmRSS/ { print $2 }' /proc/1/status").await.parse::<u64>().unwrap();
    println!("measured: {resident} KiB resident with 100 processes, a program of {size} bytes");
    assert!(resident < 8 << 10, "{resident} KiB");
    assert!(size < 6 << 20, "{size} bytes");
    for child in &children {
        child.kill().await.unwrap();
    }
}

#[tokio::test]
async fn a_terminal_in_the_guest_is_its_users() {
    vm_test_or_return!();
    let (_host, sandbox) = sandbox().await;
    let lines = r#"
start = {'process': {'cmd': '/bin/sh', 'args': ['-c', 'tty; stty size; id -un; echo $TERM; cat /proc/self/cgroup; echo x >$(tty)']},
         'pty': {'size': {'cols': 90, 'rows': 30}}}
message = json.dumps(start).encode()
body = call('/process.Process/Start', struct.pack('>BI', 0, len(message)) + message, 'application/connect+json')
while body:
    flags, length = struct.unpack('>BI', body[:5])
    event = json.loads(body[5:5 + length]).get('event', {})
    sys.stdout.write(base64.b64decode(event.get('data', {}).get('pty', '')).decode())
    body = body[5 + length:]
"#;
    let text = python(&sandbox, lines).await.replace('\r', "");
    let user = run(&sandbox, "id -un").await;
    let lines: Vec<&str> = text.lines().collect();
    assert!(lines[0].starts_with("/dev/pts/"), "{text}");
    assert_eq!(lines[1..4], ["30 90", user.as_str(), "xterm-256color"], "{text}");
    assert!(lines[4].starts_with("0::/sandbox/ptys/p") && lines[5] == "x", "{text}");
}

#[tokio::test]
async fn a_process_enters_its_group_without_waiting_for_a_grace_period() {
    vm_test_or_return!();
    let (_host, sandbox) = sandbox().await;
    let program = r"
import os, time
took = []
for number in range(20):
    group = f'/sys/fs/cgroup/test{number % 2}'
    os.makedirs(group, exist_ok=True)
    began = time.perf_counter()
    with open(f'{group}/cgroup.procs', 'w') as members: members.write('0')
    took.append((time.perf_counter() - began) * 1e3)
print(min(took))";
    let output = sandbox.command("python3").args(["-c", program]).user("root").output().await.unwrap();
    let took: f64 = output.stdout_utf8().trim().parse().unwrap();
    println!("measured: {took:.2} ms to enter a group");
    // The kernel of the guest has 250 ticks a second, and a grace period takes two to three of them.
    assert!(took < 6.0, "{took} ms");
    sandbox.kill().await.unwrap();
}

#[tokio::test]
async fn the_drive_is_frozen_by_itself_and_a_writer_waits() {
    vm_test_or_return!();
    let (_host, sandbox) = sandbox().await;
    let lines = r"
import subprocess, time
call('/fsfreeze')
writer = subprocess.Popen(['sh', '-c', 'echo x >/home/user/frozen 2>/dev/null || echo x >/tmp/frozen'])
time.sleep(1)
print(writer.poll())
call('/fsthaw')
print(writer.wait(20))
";
    assert_eq!(python(&sandbox, lines).await, "None\n0");
}

#[tokio::test]
async fn hooks_run_around_a_pause_and_before_any_process() {
    vm_test_or_return!();
    let (_host, sandbox) = sandbox().await;
    let line = "mkdir -p /etc/wrenn/hooks/before-freeze.d /etc/wrenn/hooks/before-thaw.d && cd /etc/wrenn/hooks && \
                printf '#!/bin/sh\\necho $WRENN_EVENT $(id -un) >>/var/tmp/hooks\\n' >before-freeze.d/log && \
                chmod 755 before-freeze.d/log && cp before-freeze.d/log before-thaw.d/log";
    let set_up = sandbox.command("sh").args(["-c", line]).user("root").output().await.unwrap();
    assert!(set_up.status.success(), "{}", set_up.stderr_utf8());
    let sandbox = sandbox.pause().await.unwrap().resume().await.unwrap();
    assert_eq!(run(&sandbox, "cat /var/tmp/hooks").await, "frozen root\nresumed root");
}

#[tokio::test]
async fn a_listener_on_loopback_is_published_on_the_guests_address() {
    vm_test_or_return!();
    let (_host, sandbox) = sandbox().await;
    let lines = r"
import socket, threading, time
server = socket.create_server(('127.0.0.1', 8123))
def serve():
    while True:
        stream, _ = server.accept()
        said = b''
        while piece := stream.recv(4096): said += piece
        stream.sendall(said.upper()); stream.close()
threading.Thread(target=serve, daemon=True).start()
for _ in range(100):
    try: stream = socket.create_connection(('169.254.0.21', 8123)); break
    except OSError: time.sleep(0.1)
stream.sendall(b'hello'); stream.shutdown(socket.SHUT_WR)
print(stream.recv(100).decode())
";
    assert_eq!(python(&sandbox, lines).await, "HELLO");
}

/// `server(name)` makes an authority and a server of its own; `trusts(port)` asks two kinds of clients, curl's OpenSSL and
/// Python's, whether they speak to it.
const TLS: &str = r#"
import http.server, os, ssl, subprocess, threading, urllib.error
os.chdir('/tmp')
def openssl(line): subprocess.run(['openssl', *line.split()], check=True, capture_output=True)
def server(name):
    new = '-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2'
    openssl(f'req -x509 {new} -subj /CN={name} -keyout {name}.key -out {name}.pem')
    openssl(f'req -x509 {new} -subj /CN=localhost -addext subjectAltName=DNS:localhost -addext basicConstraints=critical,CA:FALSE '
            f'-CA {name}.pem -CAkey {name}.key -keyout {name}-server.key -out {name}-server.pem')
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(f'{name}-server.pem', f'{name}-server.key')
    listener = http.server.ThreadingHTTPServer(('127.0.0.1', 0), http.server.SimpleHTTPRequestHandler)
    listener.socket = context.wrap_socket(listener.socket, server_side=True)
    threading.Thread(target=listener.serve_forever, daemon=True).start()
    return listener.server_port
def trusts(port):
    url = f'https://localhost:{port}/'
    curl = subprocess.run(['curl', '-sS', '-o', '/dev/null', url], capture_output=True, text=True)
    assert curl.returncode in (0, 60), curl.stderr
    try: python = urllib.request.urlopen(url, timeout=30).status == 200
    except urllib.error.URLError as error:
        assert 'CERTIFICATE_VERIFY_FAILED' in str(error), error
        python = False
    return [curl.returncode == 0, python]
def init(name):
    call('/init', json.dumps({'caBundle': open(f'{name}.pem').read()}).encode())
    return os.stat('/etc/ssl/certs/ca-certificates.crt')
"#;

#[tokio::test]
async fn tls_clients_trust_the_hosts_authority_alone_however_often_it_is_told_or_changed() {
    vm_test_or_return!();
    let (_host, sandbox) = sandbox().await;
    let lines = r"
one, two = server('one'), server('two')
print(trusts(one), trusts(two))
before = os.stat('/etc/ssl/certs/ca-certificates.crt').st_size
told = init('one')
print(trusts(one), trusts(two))
print(init('one').st_ino == told.st_ino, init('two').st_size - before < 2000)
print(trusts(one), trusts(two))
# What update-ca-certificates does in a minute of an emulated processor.
made_anew = 'cat /usr/share/ca-certificates/mozilla/*.crt /usr/local/share/ca-certificates/*.crt >/etc/ssl/certs/ca-certificates.crt'
subprocess.run(['sudo', 'sh', '-c', made_anew], check=True)
print(trusts(one), trusts(two))
init('one')
print(trusts(one), trusts(two))
try: call('/init', b'{\x22caBundle\x22: \x22no certificate\x22}')
except urllib.error.HTTPError as error: print(error.code, json.load(error)['message'])
";
    let expected = "[False, False] [False, False]\n[True, True] [False, False]\nTrue True\n\
                    [False, False] [True, True]\n[False, False] [True, True]\n[True, True] [False, False]\n\
                    400 take over caBundle: it is not one or more certificates in PEM";
    assert_eq!(python(&sandbox, &format!("{TLS}{lines}")).await, expected);
    sandbox.kill().await.unwrap();
}
