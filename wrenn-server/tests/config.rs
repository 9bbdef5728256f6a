//! The configuration file, as an operator writes it.
#![expect(clippy::unwrap_used, reason = "tests")]

mod common;

use std::path::Path;
use std::process::{Command, Output};

use common::{can_run, data_dir};

/// The program with a file of this text, and with no settings of whoever runs the tests.
fn with_file(dir: &Path, text: &str, args: &[&str]) -> Command {
    let file = dir.join("server.toml");
    std::fs::write(&file, text).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_wrenn-server"));
    command.arg("--config").arg(file).args(args);
    for setting in ["WRENN_DATA_DIR", "DATABASE_URL", "WRENN_LISTEN", "WRENN_DOMAIN", "WRENN_TLS_CERT", "WRENN_TLS_KEY"]
    {
        command.env_remove(setting);
    }
    command
}

fn refused(output: &Output) -> String {
    assert!(!output.status.success(), "{output:?}");
    String::from_utf8(output.stderr.clone()).unwrap()
}

#[test]
fn a_flag_beats_the_environment_which_beats_the_file() {
    let dir = tempfile::tempdir().unwrap();
    let place = |name: &str| dir.path().join(name);
    let text = format!("# where all is\ndata_dir = {:?}\n", place("of-file"));
    let records = |name: &str| place(name).join("server/records.sqlite").exists();
    let list = || with_file(dir.path(), &text, &["keys", "list"]);
    assert!(list().output().unwrap().status.success() && records("of-file"));
    assert!(list().env("WRENN_DATA_DIR", place("of-environment")).output().unwrap().status.success());
    assert!(records("of-environment") && !records("of-flag"));
    let mut flagged = list();
    flagged.env("WRENN_DATA_DIR", place("of-neither")).arg("--data-dir").arg(place("of-flag"));
    assert!(flagged.output().unwrap().status.success() && records("of-flag") && !records("of-neither"));
    // The file may be named by the environment, too.
    let mut named = Command::new(env!("CARGO_BIN_EXE_wrenn-server"));
    named.env_remove("WRENN_DATA_DIR").env("WRENN_CONFIG", place("server.toml")).args(["keys", "list"]);
    std::fs::write(place("server.toml"), format!("data_dir = {:?}\n", place("of-named"))).unwrap();
    assert!(named.output().unwrap().status.success() && records("of-named"));
}

#[test]
fn what_is_no_setting_is_refused_with_those_that_there_are() {
    let dir = tempfile::tempdir().unwrap();
    let said = |text: &str| refused(&with_file(dir.path(), text, &["keys", "list"]).output().unwrap());
    let unknown = said("data_dirr = \"/tmp\"\n");
    for part in ["server.toml", "data_dirr is no setting", "data_dir, ", "tls_cert", "queue_seconds"] {
        assert!(unknown.contains(part), "{part}: {unknown}");
    }
    assert!(said("config = \"/tmp\"\n").contains("config is no setting"));
    assert!(said("listen = [1]\n").contains("listen is no text, number, true or false"));
    assert!(said("listen = \n").contains("server.toml cannot be used"));
    let missing = ["--config", "/nowhere/server.toml", "keys", "list"];
    let missing = Command::new(env!("CARGO_BIN_EXE_wrenn-server")).args(missing).output().unwrap();
    assert!(refused(&missing).contains("/nowhere/server.toml cannot be read: name another file with --config"));
}

#[test]
fn the_settings_of_serve_are_read_as_those_of_its_flags() {
    if !can_run("the_settings_of_serve_are_read_as_those_of_its_flags") {
        return;
    }
    let dir = data_dir();
    let data_dir = format!("data_dir = {:?}\n", dir.path());
    let said = |text: &str, args: &[&str]| {
        let text = format!("{data_dir}{text}");
        refused(&with_file(dir.path(), &text, &[&["serve"], args].concat()).output().unwrap())
    };
    assert!(said("listen = \"here\"\n", &[]).contains("invalid value 'here' for '--listen"));
    assert!(said("queue_seconds = -1\n", &[]).contains("--queue-seconds"));
    let open = "listen = \"0.0.0.0:0\"\nno_auth = true\nmemory_times = 1.5\nqueue_seconds = 3\n";
    assert!(said(open, &[]).contains("0.0.0.0 is no address of this machine alone"));
    assert!(said(open, &["--listen", "0.0.0.1:0"]).contains("0.0.0.1 is no address of this machine alone"));
    assert!(said("tls_cert = \"a\"\n", &[]).contains("give both --tls-cert and --tls-key"));
    assert!(said("tls_own = true\ntls_cert = \"a\"\n", &["--tls-key", "b"]).contains("leave out --tls-own"));
}
