//! OCI images that tests make, and a real registry that has them. The server's tests use this file too.
#![allow(dead_code, clippy::unwrap_used, reason = "tests; each file uses a part")]

use std::fs::{self, File};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use serde_json::json;
use sha2::{Digest as _, Sha256};
use tar::{EntryType, Header};
use tempfile::TempDir;

/// A data directory of a test's own, which shares the machine's kernels.
pub(crate) fn data_dir() -> TempDir {
    let dir = tempfile::Builder::new().prefix("wrenn-test-").tempdir().unwrap();
    std::os::unix::fs::symlink(wrenn_core::default_data_dir().join("kernels"), dir.path().join("kernels")).unwrap();
    dir
}

/// A layer in the making.
pub(crate) struct Layer(tar::Builder<Vec<u8>>);

impl Layer {
    pub(crate) fn new() -> Self {
        Self(tar::Builder::new(Vec::new()))
    }

    pub(crate) fn header(kind: EntryType, mode: u32) -> Header {
        let mut header = Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(1_700_000_000);
        header.set_size(0);
        header
    }

    pub(crate) fn directory(self, path: &str, mode: u32) -> Self {
        self.entry(path, Self::header(EntryType::Directory, mode))
    }

    pub(crate) fn file(mut self, path: &str, mode: u32, content: &[u8]) -> Self {
        let mut header = Self::header(EntryType::Regular, mode);
        header.set_size(content.len() as u64);
        self.0.append_data(&mut header, path, content).unwrap();
        self
    }

    pub(crate) fn link(mut self, path: &str, to: &str, kind: EntryType) -> Self {
        self.0.append_link(&mut Self::header(kind, 0o777), path, to).unwrap();
        self
    }

    pub(crate) fn entry(mut self, path: &str, mut header: Header) -> Self {
        self.0.append_data(&mut header, path, &[][..]).unwrap();
        self
    }

    pub(crate) fn with(mut self, records: &[(&str, &[u8])]) -> Self {
        self.0.append_pax_extensions(records.iter().copied()).unwrap();
        self
    }

    pub(crate) fn done(self) -> Vec<u8> {
        self.0.into_inner().unwrap()
    }
}

/// A layout of the OCI image specification with one image.
pub(crate) struct Layout {
    pub(crate) dir: TempDir,
    layers: Vec<(String, usize, String)>,
}

impl Layout {
    pub(crate) fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("blobs/sha256")).unwrap();
        fs::write(dir.path().join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
        Self { dir, layers: Vec::new() }
    }

    pub(crate) fn blob(&self, bytes: &[u8]) -> String {
        let hex = hex(bytes);
        fs::write(self.dir.path().join("blobs/sha256").join(&hex), bytes).unwrap();
        format!("sha256:{hex}")
    }

    pub(crate) fn layer(mut self, tar: &[u8]) -> Self {
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gzip.write_all(tar).unwrap();
        let bytes = gzip.finish().unwrap();
        let digest = self.blob(&bytes);
        self.layers.push((digest, bytes.len(), format!("sha256:{}", hex(tar))));
        self
    }

    /// Writes the rest, and gives the reference.
    pub(crate) fn config(&self, config: &serde_json::Value) -> String {
        let diff_ids: Vec<&str> = self.layers.iter().map(|(.., diff_id)| &**diff_id).collect();
        let config = json!({
            "architecture": "amd64", "os": "linux", "config": config,
            "rootfs": {"type": "layers", "diff_ids": diff_ids},
        });
        let config = config.to_string();
        let layers: Vec<_> = self
            .layers
            .iter()
            .map(|(digest, size, _)| {
                json!({
                    "mediaType": "application/vnd.oci.image.layer.v1.tar+gzip", "digest": digest, "size": size,
                })
            })
            .collect();
        let manifest = json!({
            "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": {
                "mediaType": "application/vnd.oci.image.config.v1+json", "digest": self.blob(config.as_bytes()),
                "size": config.len(),
            },
            "layers": layers,
        });
        let manifest = manifest.to_string();
        let index = json!({"schemaVersion": 2, "manifests": [{
            "mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": self.blob(manifest.as_bytes()),
            "size": manifest.len(), "platform": {"architecture": "amd64", "os": "linux"},
        }]});
        fs::write(self.dir.path().join("index.json"), index.to_string()).unwrap();
        format!("oci:{}", self.dir.path().display())
    }
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A static binary that is many programs: what small images have.
pub(crate) fn busybox() -> Option<Vec<u8>> {
    let path = std::env::var_os("WRENN_TEST_BUSYBOX").map(PathBuf::from);
    let places = path.into_iter().chain(["/bin/busybox".into(), tool("bin/busybox")]);
    places.filter_map(|path| fs::read(path).ok()).next()
}

/// Where `cargo xtask setup` puts programs for the tests that it does not install.
pub(crate) fn tool(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/test-tools").join(path)
}

pub(crate) fn busybox_root(busybox: &[u8]) -> Layer {
    let root = Layer::new().directory("bin/", 0o755).file("bin/busybox", 0o755, busybox);
    let root = ["sh", "cat", "echo", "id", "ls", "pwd", "env", "sleep", "mkdir", "tar", "sha256sum"]
        .iter()
        .fold(root, |root, name| root.link(&format!("bin/{name}"), "busybox", EntryType::Symlink));
    root.directory("etc/", 0o755)
        .file("etc/passwd", 0o644, b"root:x:0:0:root:/root:/bin/sh\napp:x:101:102::/srv:/bin/sh\n")
        .file("etc/group", 0o644, b"root:x:0:\napp:x:102:\nmore:x:103:app\n")
        .directory("srv/", 0o755)
}

/// A real registry, of Debian's `docker-registry`.
pub(crate) struct Registry {
    process: std::process::Child,
    pub(crate) address: String,
    has_tls: bool,
    dir: TempDir,
}

impl Registry {
    pub(crate) fn start(password: Option<&str>) -> Option<Self> {
        Self::start_at("127.0.0.1", password, None)
    }

    /// With the files of a certificate and its key, it speaks TLS.
    pub(crate) fn start_at(ip: &str, password: Option<&str>, certificate: Option<(&Path, &Path)>) -> Option<Self> {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let found = wrenn_core::find_in_path(&path, "docker-registry");
        let program = found.or_else(|| Some(tool("usr/bin/docker-registry")).filter(|path| path.is_file()))?;
        let dir = tempfile::tempdir().unwrap();
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let auth = match password {
            Some(hash) => {
                let file = dir.path().join("htpasswd");
                fs::write(&file, format!("ada:{hash}\n")).unwrap();
                format!("auth: {{htpasswd: {{realm: here, path: {}}}}}\n", file.display())
            }
            None => String::new(),
        };
        let tls = certificate.map_or_else(String::new, |(certificate, key)| {
            format!(", tls: {{certificate: {}, key: {}}}", certificate.display(), key.display())
        });
        let config = dir.path().join("config.yml");
        let text = format!(
            "version: 0.1\nlog: {{level: error}}\nstorage: {{filesystem: {{rootdirectory: {}}}}}\nhttp: {{addr: \
             '{ip}:{port}'{tls}}}\n{auth}",
            dir.path().join("data").display()
        );
        fs::write(&config, text).unwrap();
        let log = File::create(dir.path().join("log")).unwrap();
        let process =
            Command::new(program).arg("serve").arg(&config).stdout(Stdio::null()).stderr(log).spawn().unwrap();
        let address = format!("{ip}:{port}");
        for _ in 0..200 {
            if std::net::TcpStream::connect(&address).is_ok() {
                break;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        Some(Self { process, address, has_tls: certificate.is_some(), dir })
    }

    /// Sends a layout's blobs and its manifest there, by curl.
    pub(crate) fn push(&self, layout: &Layout, name: &str, login: Option<&str>) {
        let base = format!("{}://{}/v2/{name}", if self.has_tls { "https" } else { "http" }, self.address);
        let curl = |args: &[&str]| {
            let login = login.map(|login| ["-u", login]).into_iter().flatten();
            let output = Command::new("curl")
                .args(["-sS", "-k", "--http1.1", "-i", "--fail-with-body"])
                .args(login)
                .args(args)
                .output()
                .unwrap();
            assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stdout));
            String::from_utf8_lossy(&output.stdout).into_owned()
        };
        let index: serde_json::Value =
            serde_json::from_slice(&fs::read(layout.dir.path().join("index.json")).unwrap()).unwrap();
        let manifest = index["manifests"][0]["digest"].as_str().unwrap().trim_start_matches("sha256:").to_owned();
        for blob in fs::read_dir(layout.dir.path().join("blobs/sha256")).unwrap() {
            let path = blob.unwrap().path();
            let digest = path.file_name().unwrap().to_string_lossy().into_owned();
            if digest == manifest {
                continue;
            }
            let begun = curl(&["-X", "POST", &format!("{base}/blobs/uploads/")]);
            let location = begun.lines().find_map(|line| line.strip_prefix("Location: ")).unwrap().trim().to_owned();
            let joint = if location.contains('?') { '&' } else { '?' };
            let url = format!("{location}{joint}digest=sha256:{digest}");
            curl(&["-X", "PUT", "-H", "Content-Type: application/octet-stream", "-T", path.to_str().unwrap(), &url]);
        }
        let path = layout.dir.path().join("blobs/sha256").join(&manifest);
        let kind = "Content-Type: application/vnd.oci.image.manifest.v1+json";
        curl(&["-X", "PUT", "-H", kind, "-T", path.to_str().unwrap(), &format!("{base}/manifests/1")]);
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        self.process.kill().ok();
        self.process.wait().ok();
        if std::thread::panicking() {
            let log = fs::read_to_string(self.dir.path().join("log")).unwrap_or_default();
            writeln!(std::io::stderr(), "the registry said: {log}").ok();
        }
    }
}

/// `sesame`, by bcrypt, which is what the registry takes.
pub(crate) const SESAME: &str = "$2b$05$VWAcNgZa7Cs6p4TmdYY4HunJ/qkTpuLyhzCuGSb0/1UWdt0VPRdvS";
