//! What people install packages with, in a real guest, from servers of the test's own.
#![expect(clippy::print_stdout, clippy::unwrap_used, reason = "tests")]

mod common;
#[path = "../../wrenn-net/tests/web/mod.rs"]
mod web;
#[path = "../../wrenn-net/tests/world/mod.rs"]
mod world;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use wrenn_core::{Host, NetworkPolicy, Sandbox};

use world::in_a_world;

/// One package of each kind, made in the guest, which has the tools for it.
const MAKE: &str = r#"
set -e
mkdir -p /tmp/site/pip.example/simple/wrenn-hello /tmp/site/deb.example /tmp/site/npm.example /tmp/site/git.example
cd /tmp
python3 - <<'PYTHON'
import base64, hashlib, io, json, tarfile, zipfile
info = 'wrenn_hello-1.0.dist-info/'
wheel = '/tmp/site/pip.example/simple/wrenn-hello/wrenn_hello-1.0-py3-none-any.whl'
with zipfile.ZipFile(wheel, 'w') as file:
    file.writestr('wrenn_hello.py', 'said = "hello from pip"\n')
    file.writestr(info + 'METADATA', 'Metadata-Version: 2.1\nName: wrenn-hello\nVersion: 1.0\n')
    file.writestr(info + 'WHEEL', 'Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n')
    file.writestr(info + 'RECORD', 'wrenn_hello.py,,\n' + ''.join(f'{info}{name},,\n' for name in ['METADATA', 'WHEEL', 'RECORD']))
digest = hashlib.sha256(open(wheel, 'rb').read()).hexdigest()
link = f'<a href="wrenn_hello-1.0-py3-none-any.whl#sha256={digest}">wrenn_hello-1.0-py3-none-any.whl</a>'
open('/tmp/site/pip.example/simple/wrenn-hello/index.html', 'w').write(f'<!DOCTYPE html><html><body>{link}</body></html>')
package = {'name': 'wrenn-hello', 'version': '1.0.0', 'main': 'index.js'}
with tarfile.open('/tmp/site/npm.example/wrenn-hello-1.0.0.tgz', 'w:gz') as file:
    for name, text in [('package.json', json.dumps(package)), ('index.js', 'module.exports = "hello from npm"\n')]:
        member = tarfile.TarInfo('package/' + name)
        member.size = len(text)
        file.addfile(member, io.BytesIO(text.encode()))
tarball = open('/tmp/site/npm.example/wrenn-hello-1.0.0.tgz', 'rb').read()
integrity = 'sha512-' + base64.b64encode(hashlib.sha512(tarball).digest()).decode()
dist = {'tarball': 'https://npm.example/wrenn-hello-1.0.0.tgz', 'integrity': integrity}
versions = {'1.0.0': package | {'dist': dist}}
listing = {'name': 'wrenn-hello', 'dist-tags': {'latest': '1.0.0'}, 'versions': versions}
open('/tmp/site/npm.example/wrenn-hello', 'w').write(json.dumps(listing))
PYTHON
mkdir -p hello/DEBIAN hello/usr/bin
printf 'Package: wrenn-hello\nVersion: 1.0\nArchitecture: all\nMaintainer: nobody <nobody@example.com>\nDescription: a test\n' > hello/DEBIAN/control
printf '#!/bin/sh\necho hello from apt\n' > hello/usr/bin/wrenn-hello
chmod 755 hello/usr/bin/wrenn-hello
cd /tmp/site/deb.example
dpkg-deb --root-owner-group --build /tmp/hello wrenn-hello.deb > /dev/null
{ cat /tmp/hello/DEBIAN/control; echo Filename: ./wrenn-hello.deb; echo Size: $(stat -c %s wrenn-hello.deb)
  echo SHA256: $(sha256sum < wrenn-hello.deb | cut -d' ' -f1); echo; } > Packages
{ echo Date: $(date -Ru); echo SHA256:; echo " $(sha256sum < Packages | cut -d' ' -f1) $(stat -c %s Packages) Packages"; } > Release
git init -q /tmp/repository && cd /tmp/repository && echo hello from git > said
git add said && git -c user.name=a -c user.email=a@b.example commit -q -m "Say hello"
git clone -q --bare /tmp/repository /tmp/site/git.example/hello.git && cd /tmp/site/git.example/hello.git && git update-server-info
tar -C /tmp/site -cf /tmp/site.tar .
"#;

/// Runs a line of a shell, which has to succeed, as root, and prints how long it took.
async fn as_root(sandbox: &Sandbox, what: &str, line: &str) -> String {
    let began = Instant::now();
    let output = sandbox.command("bash").args(["-c", line]).user("root").timeout(LINE_MAX).output().await.unwrap();
    let (said, complained) = (output.stdout_utf8(), output.stderr_utf8());
    assert!(output.status.success(), "{what}: {:?}\n{said}\n{complained}", output.status);
    println!("measured: {what} took {:.1?}", began.elapsed());
    said.trim_end().to_owned()
}

/// pip, as a file that Python can run.
fn pip() -> Option<PathBuf> {
    let ask =
        "import ensurepip, pathlib; print(next(pathlib.Path(ensurepip.__file__).parent.glob('_bundled/pip-*.whl')))";
    let output = Command::new("python3").args(["-c", ask]).output().ok()?;
    let bundled = output.status.success().then(|| PathBuf::from(String::from_utf8_lossy(&output.stdout).trim()));
    let packaged = || {
        let wheels = Path::new("/usr/share/python-wheels").read_dir().ok()?;
        let mut wheels = wheels.filter_map(|entry| Some(entry.ok()?.path()));
        wheels.find(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("pip-")))
    };
    bundled.or_else(packaged)
}

/// Node.js of the host's, which runs where its C library does, and npm as an archive.
fn node() -> Option<(Vec<u8>, Vec<u8>)> {
    let answer = |program: &str, arguments: &[&str]| {
        let output = Command::new(program).args(arguments).output().ok()?;
        output.status.success().then_some(output.stdout)
    };
    let text = |bytes: Vec<u8>| Some(String::from_utf8(bytes).ok()?.trim().to_owned());
    let node = std::fs::read(text(answer("node", &["-p", "process.execPath"])?)?).ok()?;
    let modules = text(answer("npm", &["root", "--global"])?)?;
    Some((node, answer("tar", &["-C", &modules, "-ch", "npm"])?))
}

#[test]
fn package_managers_install_what_the_policy_names() {
    let test = "package_managers_install_what_the_policy_names";
    if !common::can_run(test) {
        return;
    }
    in_a_world(test, async |world| {
        let names = ["deb.example", "git.example", "pip.example", "npm.example"];
        let (servers, site) = (web::Authority::new("servers"), tempfile::tempdir().unwrap());
        servers.serve_files(world.listen("93.184.216.34:443"), &names, site.path().to_owned());
        let addresses: [&[[u8; 4]]; 1] = [&[[93, 184, 216, 34]]];
        world.dns(&names.map(|name| (name, addresses[0])));
        let host = Host::builder().nameservers(["8.8.8.8".parse().unwrap()]).open().await.unwrap();
        let policy = NetworkPolicy::closed().allow(names.map(|name| format!("{name}:443"))).unwrap();
        let sandbox = Sandbox::builder(&host, "base").network(policy).create().await.unwrap();
        as_root(&sandbox, "making the packages", MAKE).await;
        let archive = site.path().join("site.tar");
        std::fs::write(&archive, sandbox.read_file("/tmp/site.tar").await.unwrap()).unwrap();
        let unpacked = Command::new("tar").arg("-C").arg(site.path()).arg("-xf").arg(&archive).status().unwrap();
        assert!(unpacked.success());
        sandbox.write_file("/tmp/servers.pem", servers.pem().to_owned()).await.unwrap();
        as_root(&sandbox, "trust", "cat /tmp/servers.pem >> /etc/ssl/certs/ca-certificates.crt").await;

        let apt = "rm -rf /etc/apt/sources.list.d/*; echo 'deb [trusted=yes] https://deb.example ./' > /etc/apt/sources.list; \
            apt-get -q update && apt-get -qy install wrenn-hello >&2; wrenn-hello";
        assert!(as_root(&sandbox, "apt-get", apt).await.ends_with("hello from apt"));
        let git = "git clone -q https://git.example/hello.git /tmp/cloned && cat /tmp/cloned/said";
        assert_eq!(as_root(&sandbox, "git", git).await, "hello from git");
        match pip() {
            Some(pip) => {
                sandbox.write_file("/tmp/pip.whl", std::fs::read(pip).unwrap()).await.unwrap();
                let pip = "python3 /tmp/pip.whl/pip -q --cert /etc/ssl/certs/ca-certificates.crt install --target /tmp/packages \
                    --index-url https://pip.example/simple wrenn-hello >&2 && \
                    PYTHONPATH=/tmp/packages python3 -c 'import wrenn_hello; print(wrenn_hello.said)'";
                assert_eq!(as_root(&sandbox, "pip", pip).await, "hello from pip");
            }
            None => common::skip(test, &"pip: this host has no Python with a bundled pip, nor python3-pip-whl"),
        }
        match node() {
            Some((node, npm)) => {
                sandbox.write_file("/tmp/node", node).await.unwrap();
                sandbox.write_file("/tmp/npm.tar", npm).await.unwrap();
                let npm = "chmod +x /tmp/node && tar -C /tmp -xf /tmp/npm.tar && mkdir /tmp/app && cd /tmp/app && \
                    export NODE_EXTRA_CA_CERTS=/tmp/servers.pem PATH=/tmp:$PATH && \
                    node /tmp/npm/bin/npm-cli.js install --no-audit --no-fund --no-update-notifier \
                    --registry https://npm.example/ wrenn-hello >&2 && node -p 'require(\"wrenn-hello\")'";
                assert_eq!(as_root(&sandbox, "npm", npm).await, "hello from npm");
            }
            None => common::skip(test, &"npm: this host has no Node.js"),
        }
        // What the policy does not name, no package manager reaches.
        let other = "! git clone -q https://other.example/hello.git /tmp/other";
        as_root(&sandbox, "a name that is not allowed", other).await;
        sandbox.kill().await.unwrap();
    });
}

/// An emulated processor needs some ten seconds for pip.
const LINE_MAX: Duration = Duration::from_secs(240);
