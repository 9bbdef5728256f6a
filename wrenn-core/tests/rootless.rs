//! All of it for a user without any right of root's: what it takes is `/dev/net/tun`, user namespaces and QEMU.
#![cfg(target_arch = "x86_64")]
#![expect(clippy::unwrap_used, reason = "tests")]

mod common;
#[path = "../../wrenn-net/tests/world/mod.rs"]
mod world;

use std::path::Path;
use std::time::Duration;

use common::lacking::{Lacking, Then};
use common::{get, run};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use wrenn_core::{Host, PublishOptions, Sandbox};

use world::in_a_world;

/// One that no other test has.
const USER: u32 = 1_234_567;

/// Not a test by itself: it is run by the user whom the tests make.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn program_of_a_user() {
    let Some(data_dir) = std::env::var_os("WRENN_TEST_DATA_DIR") else { return };
    println!("came to: {}", whole_life(Path::new(&data_dir)).await.join(" "));
}

async fn whole_life(data_dir: &Path) -> Vec<String> {
    let nameservers = ["8.8.8.8".parse().unwrap()];
    let host = Host::builder().data_dir(data_dir).nameservers(nameservers).open().await.unwrap();
    let sandbox = Sandbox::create(&host, "base").await.unwrap();
    let mut said = vec![format!("{:?}", sandbox.restore_report().await.unwrap().paging)];
    for vmm in common::own_vmms() {
        assert_has_no_rights(vmm);
    }
    said.push(get(&sandbox, "http://example.com/").await.unwrap());
    said.push(format!("{:?}", get(&sandbox, "http://10.9.0.7/").await));
    run(&sandbox, "echo kept > kept").await;
    for fork in sandbox.fork(2).await.unwrap() {
        let fork = fork.unwrap();
        said.push(run(&fork, "cat kept").await);
        fork.kill().await.unwrap();
    }
    sandbox.snapshot("of-a-user").await.unwrap();
    let serve = "import http.server as h; h.test(h.SimpleHTTPRequestHandler, port=8000)";
    let _server = sandbox.command("python3").args(["-c", serve]).spawn().await.unwrap();
    let published = sandbox.publish(8000, PublishOptions::default()).await.unwrap();
    said.push(head_of(published.address).await);
    let sandbox = sandbox.pause().await.unwrap().resume().await.unwrap();
    said.push(run(&sandbox, "cat kept").await);
    said.push(head_of(published.address).await);
    sandbox.kill().await.unwrap();
    let copy = Sandbox::create(&host, "of-a-user").await.unwrap();
    said.push(run(&copy, "cat kept").await);
    copy.kill().await.unwrap();
    assert_eq!(common::own_vmms(), [0; 0]);
    said
}

/// The first word of what a web server says, which may not listen yet.
async fn head_of(address: std::net::SocketAddr) -> String {
    for _ in 0..100 {
        let mut stream = TcpStream::connect(address).await.unwrap();
        let asked = stream.write_all(b"HEAD / HTTP/1.0\r\n\r\n").await;
        let mut head = [0; 8];
        if asked.is_ok() && stream.read_exact(&mut head).await.is_ok() {
            return String::from_utf8_lossy(&head).into_owned();
        }
        tokio::time::sleep(common::patient(Duration::from_millis(200))).await;
    }
    "nothing".to_owned()
}

/// A process that the kernel lets do nothing that its user may not, and that is not in the program's network.
fn assert_has_no_rights(pid: u32) {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).unwrap().trim().to_owned();
    assert_eq!(line("CapEff:"), "0000000000000000", "{status}");
    assert_eq!((line("CapPrm:"), line("NoNewPrivs:").as_str()), ("0000000000000000".to_owned(), "1"), "{status}");
    assert_eq!(line("Uid:").split_whitespace().next().unwrap(), USER.to_string());
    let network = |process: &str| std::fs::read_link(format!("/proc/{process}/ns/net")).unwrap();
    assert_ne!(network(&pid.to_string()), network("self"));
}

/// A data directory with the shared one's images, which other users reach by a mount alone.
fn with_images(dir: &Path) -> Lacking {
    std::fs::create_dir(dir.join("images")).unwrap();
    let images = wrenn_core::default_data_dir().join("images");
    Lacking::nothing().run_by(USER).with_device_for_all("/dev/net/tun").after(format!(
        "mount --bind {} {}",
        images.display(),
        dir.join("images").display()
    ))
}

fn whole_life_of_a_user(test: &str, lacking: impl FnOnce(Lacking) -> Lacking + Send, paging: &str) {
    if !common::can_run(test) {
        return;
    }
    in_a_world(test, async |world| {
        world.web("93.184.216.34:80");
        world.web("10.9.0.7:80");
        world.dns(&[("example.com", &[[93, 184, 216, 34]])]);
        let dir = tempfile::Builder::new().prefix("wrenn-test-").tempdir().unwrap();
        let lacking = lacking(with_images(dir.path()));
        // Its thread is in the world's network, and so is the program.
        let said = tokio::task::block_in_place(|| lacking.run("program_of_a_user", dir.path(), Then::Nothing));
        let expected = "93.184.216.34:80 Err(7) kept kept HTTP/1.0 kept HTTP/1.0 kept";
        assert_eq!(said, format!("{paging} {expected}"));
    });
}

#[test]
fn a_user_with_userfaultfd_has_all_of_it() {
    let device = |lacking: Lacking| lacking.with_device_for_all("/dev/userfaultfd");
    whole_life_of_a_user("a_user_with_userfaultfd_has_all_of_it", device, "Lazy");
}

#[test]
fn a_user_without_userfaultfd_has_all_of_it_and_memory_is_copied_first() {
    let test = "a_user_without_userfaultfd_has_all_of_it_and_memory_is_copied_first";
    whole_life_of_a_user(test, |lacking| lacking, "Eager");
}
