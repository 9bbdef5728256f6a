//! What a host keeps, with a fake VMM: names, records and generations, whatever else goes on beside them.

use std::time::{Duration, Instant};

use super::lifecycle_tests::fake_host;
use crate::sandbox::handle::Sandbox;
use crate::vmm::fake::Op;

#[tokio::test]
async fn a_fork_is_stored_whatever_keeps_its_sandbox_from_going_on() {
    let (_dir, host, script) = fake_host().await;
    let sandbox = Sandbox::create(&host, "fake").await.unwrap();
    let generations = || host.0.site.store.list().unwrap().len();
    let before = generations();
    script.hang(Op::Resume);
    let forking = tokio::spawn(async move { sandbox.fork(1).await });
    let began = Instant::now();
    while generations() == before {
        assert!(began.elapsed() < Duration::from_secs(20), "nothing is stored before the sandbox goes on");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    forking.abort();
}
