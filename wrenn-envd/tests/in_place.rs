//! A file that its user may write is written, whatever the directory that it is in allows.

mod support;

use std::{
    fs::{self, Permissions},
    os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink},
    path::Path,
};

use hyper::StatusCode;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use support::Agent;

const OCTETS: (&str, &str) = ("content-type", "application/octet-stream");

async fn write(agent: &Agent, user: &str, path: &Path, contents: &str) -> (StatusCode, String) {
    let route = format!("/files?path={}&username={user}", path.display());
    let answer = agent.call("POST", &route, &[OCTETS], contents.to_owned()).await;
    (answer.status(), String::from_utf8_lossy(answer.body()).into_owned())
}

fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, Permissions::from_mode(mode)).expect("its owner may");
}

fn names(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).expect("a directory");
    entries.map(|entry| entry.expect("an entry").file_name().into_string().expect("UTF-8")).collect()
}

#[tokio::test]
async fn a_file_in_a_directory_that_is_closed_to_its_user_is_written() {
    let test = "a_file_in_a_directory_that_is_closed_to_its_user_is_written";
    if !nix::unistd::geteuid().is_root() {
        return println!("skipped: {test}: no root");
    }
    let agent = Agent::start();
    let directory = tempfile::tempdir().unwrap();
    set_mode(directory.path(), 0o755);
    // A directory of root's, and one in which a name is its owner's alone.
    for (name, mode) in [("closed", 0o755), ("sticky", 0o1777)] {
        let place = directory.path().join(name);
        let file = place.join("file");
        fs::create_dir(&place).unwrap();
        set_mode(&place, mode);
        fs::write(&file, "a longer text from before").unwrap();
        set_mode(&file, 0o666);
        let before = fs::metadata(&file).unwrap();
        let written = write(&agent, "nobody", &file, "new").await;
        assert_eq!(written.0, StatusCode::OK, "{name}: {}", written.1);
        let after = fs::metadata(&file).unwrap();
        assert_eq!(fs::read_to_string(&file).unwrap(), "new", "{name}");
        assert_eq!((after.ino(), after.uid(), after.mode()), (before.ino(), 0, before.mode()), "{name}");
        assert_eq!(names(&place), ["file"], "{name}: nothing else is left");
        // A new name still takes the directory's leave.
        if name == "closed" {
            assert_eq!(write(&agent, "nobody", &place.join("new"), "x").await.0, StatusCode::FORBIDDEN);
        }
        set_mode(&file, 0o644);
        assert_eq!(write(&agent, "nobody", &file, "x").await.0, StatusCode::FORBIDDEN, "{name}");
        assert_eq!(fs::read_to_string(&file).unwrap(), "new", "{name}");
    }
}

struct Mounted<'a>(&'a Path);

impl Drop for Mounted<'_> {
    fn drop(&mut self) {
        let _ = umount2(self.0, MntFlags::MNT_DETACH);
    }
}

#[tokio::test]
async fn a_file_that_is_mounted_over_another_is_written() {
    let directory = tempfile::tempdir().unwrap();
    let (file, other) = (directory.path().join("file"), directory.path().join("other"));
    fs::write(&file, "below").unwrap();
    fs::write(&other, "other").unwrap();
    if let Err(error) = mount(Some(&other), &file, None::<&str>, MsFlags::MS_BIND, None::<&str>) {
        return println!("skipped: a_file_that_is_mounted_over_another_is_written: {error}");
    }
    {
        let _mounted = Mounted(&file);
        let agent = Agent::start();
        let written = write(&agent, "root", &file, "new").await;
        assert_eq!(written.0, StatusCode::OK, "{}", written.1);
        assert_eq!(fs::read_to_string(&other).unwrap(), "new");
    }
    assert_eq!(fs::read_to_string(&file).unwrap(), "below");
}

/// One disk, two mounts of it: the kernel renames nothing between them.
#[tokio::test]
async fn an_upload_to_a_directory_that_is_mounted_twice_arrives() {
    let directory = tempfile::tempdir().unwrap();
    let (real, mounted) = (directory.path().join("real"), directory.path().join("mounted"));
    fs::create_dir(&real).unwrap();
    fs::create_dir(&mounted).unwrap();
    if let Err(error) = mount(Some(&real), &mounted, None::<&str>, MsFlags::MS_BIND, None::<&str>) {
        return println!("skipped: an_upload_to_a_directory_that_is_mounted_twice_arrives: {error}");
    }
    let _mounted = Mounted(&mounted);
    symlink(mounted.join("target"), directory.path().join("link")).unwrap();
    let agent = Agent::start();
    // Where the path comes last, the file waits beside its own name, on the other mount.
    let head = "--xyz\r\ncontent-disposition: form-data; name=";
    let name = directory.path().join("near").display().to_string();
    let path = directory.path().join("link").display().to_string();
    let body = format!("{head}\"file\"; filename=\"{name}\"\r\n\r\nnew\r\n{head}\"path\"\r\n\r\n{path}\r\n--xyz--\r\n");
    let kind = ("content-type", "multipart/form-data; boundary=xyz");
    let answer = agent.call("POST", "/files", &[kind], body).await;
    assert_eq!(answer.status(), StatusCode::OK, "{:?}", answer.body());
    assert_eq!(fs::read_to_string(real.join("target")).unwrap(), "new");
    assert_eq!(names(&real), ["target"]);
}

#[tokio::test]
async fn a_path_that_names_a_directory_is_refused() {
    let agent = Agent::start();
    let directory = tempfile::tempdir().unwrap();
    for end in ["new/", "new/.", "new//", "new/./"] {
        let path = format!("{}/{end}", directory.path().display());
        let written = write(&agent, "root", Path::new(&path), "x").await;
        assert_eq!(written.0, StatusCode::BAD_REQUEST, "{end}: {}", written.1);
        assert!(written.1.contains("directory"), "{}", written.1);
        let body = serde_json::json!({"source_paths": ["/etc/passwd"], "destination": path}).to_string();
        let answer = agent.call("POST", "/files/compose", &[("content-type", "application/json")], body).await;
        assert_eq!(answer.status(), StatusCode::BAD_REQUEST, "{end}: {:?}", answer.body());
    }
    assert_eq!(names(directory.path()), [""; 0]);
    assert!(Path::new("/etc/passwd").exists());
}

/// Who may write to the directory cannot take the names of uploads that are still to come.
#[tokio::test]
async fn the_name_of_an_upload_on_its_way_cannot_be_foreseen() {
    let agent = Agent::start();
    let directory = tempfile::tempdir().unwrap();
    for number in 0..64 {
        let name = format!(".wrenn-upload-new-{}-{number}", agent.pid());
        fs::write(directory.path().join(name), "taken").unwrap();
    }
    for number in 0..8 {
        let written = write(&agent, "root", &directory.path().join(number.to_string()), "x").await;
        assert_eq!(written.0, StatusCode::OK, "{}", written.1);
    }
}

#[tokio::test]
async fn a_signature_whose_time_is_over_is_refused_in_e2bs_words() {
    let agent = Agent::start();
    let json = ("content-type", "application/json");
    agent.call("POST", "/init", &[json], r#"{"accessToken":"token"}"#).await;
    let answer = agent.call("GET", "/files?path=/x&signature=v1_x&signature_expiration=1", &[], "").await;
    assert_eq!(answer.status(), StatusCode::UNAUTHORIZED);
    let body: serde_json::Value = serde_json::from_slice(answer.body()).unwrap();
    assert_eq!(body["message"], "signature is already expired");
}
