//! What real guests reach. The host, the internet and its servers are in network namespaces of the test's own.
#![expect(clippy::unwrap_used, reason = "tests")]

mod common;
#[path = "../../wrenn-net/tests/proxies/mod.rs"]
mod proxies;
#[path = "../../wrenn-net/tests/web/mod.rs"]
mod web;
#[path = "../../wrenn-net/tests/world/mod.rs"]
mod world;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use common::{get, run};
use tokio::io::AsyncReadExt;
use wrenn_core::{
    Destination, Error, Host, NetworkPolicy, Refusal, Rule, Sandbox, SandboxId, Secret, SecretFuture, SecretSource,
    UpstreamProxy,
};
use wrenn_snapshot::{LocalStore, PAGE_BYTES, PageIndex};

use proxies::{Proxy, Speaks};
use world::{INTERNET_V6, in_a_world};

async fn host() -> Host {
    Host::builder().nameservers(["8.8.8.8".parse().unwrap()]).open().await.unwrap()
}

/// From curl(1).
const NAME_NOT_RESOLVED: i32 = 6;
const NOT_CONNECTED: i32 = 7;
const NOT_CERTIFIED: i32 = 60;
const RESET: i32 = 56;

#[test]
fn a_guest_reaches_the_internet_by_its_names_and_nothing_else() {
    let test = "a_guest_reaches_the_internet_by_its_names_and_nothing_else";
    if !common::can_run(test) {
        return;
    }
    in_a_world(test, async |world| {
        for at in ["93.184.216.34:80", "10.9.0.7:80", "[2606:2800::34]:80"] {
            world.web(at);
        }
        let names = world.dns(&[("example.com", &[[93, 184, 216, 34]]), ("inside.example", &[[10, 9, 0, 7]])]);
        let both = vec![[93, 184, 216, 34].into(), INTERNET_V6[0].into()];
        names.lock().unwrap().insert("both.example".to_owned(), both);
        let host = host().await;
        let mut refusals = host.refusals();
        let sandbox = Sandbox::create(&host, "base").await.unwrap();
        assert_eq!(get(&sandbox, "http://example.com/").await.as_deref(), Ok("93.184.216.34:80"));
        assert_eq!(get(&sandbox, "http://93.184.216.34/").await.as_deref(), Ok("93.184.216.34:80"));
        // By IPv6 where that is wanted, and by IPv4 where either would do.
        for (url, at) in [
            ("-6 http://both.example/", "[2606:2800::34]:80"),
            ("-g http://[2606:2800::34]/", "[2606:2800::34]:80"),
            ("http://both.example/", "93.184.216.34:80"),
        ] {
            assert_eq!(get(&sandbox, url).await.as_deref(), Ok(at), "{url}");
        }
        for (url, code) in [
            ("-g http://[fd00:9::7]/", NOT_CONNECTED),
            ("http://10.9.0.7/", NOT_CONNECTED),
            ("http://192.0.2.1/", NOT_CONNECTED),
            ("http://inside.example/", NAME_NOT_RESOLVED),
            ("http://not-there.example/", NAME_NOT_RESOLVED),
        ] {
            let began = Instant::now();
            assert_eq!(get(&sandbox, url).await, Err(code), "{url}");
            assert!(began.elapsed() < Duration::from_secs(10), "{url} took {:?}", began.elapsed());
        }
        let first = refusals.next().await.unwrap().unwrap();
        assert_eq!((&first.sandbox, first.refused.refusal), (sandbox.id(), Refusal::Private));
        assert!(matches!(first.refused.destination, Destination::Address { .. }));
        // As root of the guest, by every other way that it has: a route of its own, a spoofed source, a raw socket.
        let script = "import socket,struct\n\
            s=socket.socket(socket.AF_INET,socket.SOCK_RAW,socket.IPPROTO_RAW)\n\
            ip=struct.pack('!BBHHHBBH4s4s',0x45,0,40,1,0,64,6,0,bytes([1,2,3,4]),bytes([10,9,0,7]))\n\
            tcp=struct.pack('!HHIIBBHHH',999,80,1,0,0x50,2,1000,0,0)\n\
            s.sendto(ip+tcp,('10.9.0.7',0))\n";
        sandbox.write_file("/tmp/raw.py", script).await.unwrap();
        let root = sandbox.command("python3").arg("/tmp/raw.py").user("root").output().await.unwrap();
        assert!(root.status.success(), "{}", root.stderr_utf8());
        let metrics = sandbox.metrics().await.unwrap().network;
        assert!(metrics.connections >= 2 && metrics.refusals >= 3 && metrics.bytes_in > 0, "{metrics:?}");
        sandbox.kill().await.unwrap();
    });
}

#[test]
fn a_policy_acts_at_once_and_is_kept_by_pauses_and_forks() {
    let test = "a_policy_acts_at_once_and_is_kept_by_pauses_and_forks";
    if !common::can_run(test) {
        return;
    }
    in_a_world(test, async |world| {
        for at in ["93.184.216.34:80", "93.184.216.35:80"] {
            world.web(at);
        }
        world.dns(&[("good.example", &[[93, 184, 216, 34]]), ("evil.example", &[[93, 184, 216, 35]])]);
        let silent = world.listen("93.184.216.34:7");
        let host = host().await;
        let sandbox = Sandbox::create(&host, "base").await.unwrap();
        assert_eq!(get(&sandbox, "http://evil.example/").await.as_deref(), Ok("93.184.216.35:80"));
        // A connection that is open ends with the policy that let it through, and the guest is told.
        let mut open =
            sandbox.command("bash").arg("-c").arg("exec 3<>/dev/tcp/93.184.216.34/7; cat <&3").spawn().await.unwrap();
        let (mut accepted, _) = silent.accept().await.unwrap();
        let began = Instant::now();
        let named = NetworkPolicy::closed().allow(["good.example:80"]).unwrap();
        sandbox.set_network(named.clone()).await.unwrap();
        assert!(accepted.read_u8().await.is_err());
        println!("measured: a change of the policy closes a connection after {:?}", began.elapsed());
        // Some milliseconds where nobody else has the processors.
        assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
        assert!(!open.wait().await.unwrap().success());
        let is_closed = async |sandbox: &Sandbox| {
            assert_eq!(get(sandbox, "http://good.example/").await.as_deref(), Ok("93.184.216.34:80"));
            assert_eq!(get(sandbox, "http://evil.example/").await, Err(NAME_NOT_RESOLVED));
            // A spoofed file of hosts, a spoofed Host, and a raw address.
            for spoofed in ["--resolve evil.example:80:93.184.216.34 http://evil.example/", "http://93.184.216.35/"] {
                assert_eq!(get(sandbox, spoofed).await, Err(RESET), "{spoofed}");
            }
            let spoofed = "-H 'Host: good.example' http://93.184.216.35/";
            assert_eq!(get(sandbox, spoofed).await.as_deref(), Ok("93.184.216.34:80"), "it goes where it says");
        };
        is_closed(&sandbox).await;
        let child = sandbox.fork(1).await.unwrap().remove(0).unwrap();
        is_closed(&child).await;
        child.kill().await.unwrap();
        let paused = sandbox.pause().await.unwrap();
        let resumed = paused.resume().await.unwrap();
        assert_eq!(resumed.network().await.unwrap(), named);
        is_closed(&resumed).await;
        resumed.kill().await.unwrap();
        let ended = resumed.set_network(NetworkPolicy::default()).await.unwrap_err();
        assert!(matches!(ended, Error::InvalidState { .. }), "{ended}");
    });
}

#[test]
fn the_dns_servers_of_a_policy_are_kept_by_pauses_and_forks_and_not_by_snapshots() {
    let test = "the_dns_servers_of_a_policy_are_kept_by_pauses_and_forks_and_not_by_snapshots";
    if !common::can_run(test) {
        return;
    }
    in_a_world(test, async |world| {
        for at in ["93.184.216.34:80", "93.184.216.35:80"] {
            world.web(at);
        }
        world.dns(&[("good.example", &[[93, 184, 216, 34]])]);
        world.dns_at("93.184.216.35:53", &[("good.example", &[[93, 184, 216, 35]])]);
        let dir = common::own_data_dir();
        let host = common::own_host(&dir).nameservers(["8.8.8.8".parse().unwrap()]).open().await.unwrap();
        let unasked = NetworkPolicy::default().with_dns_servers(["10.9.0.7".parse().unwrap()]);
        let error = Sandbox::builder(&host, "base").network(unasked).create().await.unwrap_err();
        assert!(matches!(&error, Error::InvalidInput { message, .. } if message.contains("10.9.0.7")), "{error:?}");
        let policy = NetworkPolicy::default().with_dns_servers(["93.184.216.35".parse().unwrap()]);
        let sandbox = Sandbox::builder(&host, "base").network(policy.clone()).create().await.unwrap();
        let led_to = async |sandbox: &Sandbox| get(sandbox, "http://good.example/").await;
        assert_eq!(led_to(&sandbox).await.as_deref(), Ok("93.184.216.35:80"));
        let child = sandbox.fork(1).await.unwrap().remove(0).unwrap();
        assert_eq!(led_to(&child).await.as_deref(), Ok("93.184.216.35:80"));
        child.kill().await.unwrap();
        sandbox.snapshot("asks").await.unwrap();
        let of_it = Sandbox::create(&host, "asks").await.unwrap();
        assert_eq!(led_to(&of_it).await.as_deref(), Ok("93.184.216.34:80"));
        of_it.kill().await.unwrap();
        let resumed = sandbox.pause().await.unwrap().resume().await.unwrap();
        assert_eq!(resumed.network().await.unwrap(), policy);
        assert_eq!(led_to(&resumed).await.as_deref(), Ok("93.184.216.35:80"));
        resumed.set_network(policy.with_dns_servers([])).await.unwrap();
        assert_eq!(led_to(&resumed).await, Err(NAME_NOT_RESOLVED));
        resumed.set_network(NetworkPolicy::default()).await.unwrap();
        assert_eq!(led_to(&resumed).await.as_deref(), Ok("93.184.216.34:80"));
        resumed.kill().await.unwrap();
    });
}

#[test]
fn a_pause_ends_connections_at_both_of_their_ends_and_a_resume_makes_new_ones() {
    let test = "a_pause_ends_connections_at_both_of_their_ends_and_a_resume_makes_new_ones";
    if !common::can_run(test) {
        return;
    }
    in_a_world(test, async |world| {
        world.web("93.184.216.34:80");
        let silent = world.listen("93.184.216.34:7");
        let host = host().await;
        let sandbox = Sandbox::create(&host, "base").await.unwrap();
        let line = "exec 3<>/dev/tcp/93.184.216.34/7; (cat <&3; echo ended) > /home/user/said 2>&1 & echo $!";
        run(&sandbox, line).await;
        let (mut accepted, _) = silent.accept().await.unwrap();
        let paused = sandbox.pause().await.unwrap();
        let ended = tokio::time::timeout(Duration::from_secs(5), accepted.read_u8()).await.unwrap();
        assert!(ended.is_err(), "the server sees it end");
        let resumed = paused.resume().await.unwrap();
        let said = "timeout 20 sh -c 'until grep -q ended /home/user/said; do sleep 0.1; done'; cat /home/user/said";
        let said = run(&resumed, said).await;
        assert!(said.contains("reset") && said.ends_with("ended"), "the guest's program sees it end: {said}");
        assert_eq!(get(&resumed, "http://93.184.216.34/").await.as_deref(), Ok("93.184.216.34:80"));
        resumed.kill().await.unwrap();
    });
}

#[test]
fn a_policy_without_effect_is_refused_before_anything_starts() {
    let test = "a_policy_without_effect_is_refused_before_anything_starts";
    if !common::can_run(test) {
        return;
    }
    in_a_world(test, async |_world| {
        let host = host().await;
        let policy = NetworkPolicy::default().allow(["example.com"]).unwrap();
        let error = Sandbox::builder(&host, "base").network(policy).create().await.unwrap_err();
        assert!(matches!(&error, Error::InvalidInput { message, .. } if message.contains("example.com")), "{error:?}");
        let error: Error = NetworkPolicy::default().allow(["10.0.0.0/33"]).unwrap_err().into();
        assert!(error.to_string().contains("10.0.0.0/33"), "{error}");
    });
}

/// Knows one key, and who has asked for it.
#[derive(Clone)]
struct Vault {
    key: String,
    asked: Arc<Mutex<Vec<SandboxId>>>,
}

impl SecretSource for Vault {
    fn secret<'a>(&'a self, sandbox: &'a SandboxId, name: &'a str) -> SecretFuture<'a> {
        self.asked.lock().unwrap().push(sandbox.clone());
        Box::pin(async move { (name == "API_KEY").then(|| Secret::new(self.key.clone())) })
    }
}

/// Whether any of these texts is in what a data directory keeps: in a file, or in what a generation has of a guest.
fn kept(data_dir: &Path, texts: [&str; 2]) -> [bool; 2] {
    let mut found = [false; 2];
    let mut search = |bytes: &[u8]| {
        for (text, found) in texts.iter().zip(&mut found) {
            let text = text.as_bytes();
            // The first byte alone is quick to look for.
            let mut places = bytes.iter().enumerate().filter(|(_, byte)| **byte == text[0]);
            *found = *found || places.any(|(at, _)| bytes[at..].starts_with(text));
        }
    };
    for file in common::files(data_dir) {
        search(&std::fs::read(file).unwrap());
    }
    let store = LocalStore::open(data_dir.join("generations")).unwrap();
    for id in store.list().unwrap() {
        let generation = store.load(id).unwrap();
        for blob in generation.blobs() {
            search(&generation.blob(blob).unwrap());
        }
        for space in generation.spaces() {
            let reader = generation.reader(space).unwrap();
            let mut pages = vec![0; 256 * PAGE_BYTES];
            for extent in reader.index().extents() {
                let (mut page, end) = (extent.start.0, extent.start.0 + extent.count);
                while page < end {
                    let count = (end - page).min(256);
                    let pages = &mut pages[..count as usize * PAGE_BYTES];
                    reader.read_at(PageIndex(page), pages).unwrap();
                    search(pages);
                    page += count;
                }
            }
        }
    }
    found
}

#[test]
fn a_guest_uses_a_key_that_is_nowhere_in_it_nor_in_what_is_kept_of_it() {
    let test = "a_guest_uses_a_key_that_is_nowhere_in_it_nor_in_what_is_kept_of_it";
    if !common::can_run(test) {
        return;
    }
    in_a_world(test, async |world| {
        let servers = web::Authority::new("servers");
        servers.serve(world.listen("93.184.216.34:443"), &["api.example"], &["h2", "http/1.1"]);
        world.dns(&[("api.example", &[[93, 184, 216, 34]])]);
        let vault = Vault { key: format!("sk-{:032x}", rand::random::<u128>()), asked: Arc::default() };
        let dir = common::own_data_dir();
        let options = common::own_host(&dir).nameservers(["8.8.8.8".parse().unwrap()]).trust(servers.pem());
        let host = options.secrets(vault.clone()).open().await.unwrap();
        let allowed = NetworkPolicy::closed().allow(["api.example:443"]).unwrap();
        let sandbox = Sandbox::builder(&host, "base").network(allowed.clone()).create().await.unwrap();
        let url = "https://api.example/sum";
        assert_eq!(get(&sandbox, url).await, Err(NOT_CERTIFIED), "the server's own certificate");
        let rule = Rule::of("api.example:443").unwrap();
        let rule = rule.set_header("authorization", "Bearer ${secret.API_KEY}").unwrap();
        let policy = allowed.rule(rule).unwrap();
        sandbox.set_network(policy.clone()).await.unwrap();
        let expected = web::sum(&format!("Bearer {}", vault.key)).to_string();
        let uses_the_key = async |sandbox: &Sandbox| {
            for options in ["", "--http1.1", "-H 'Authorization: Bearer mine'"] {
                assert_eq!(
                    get(sandbox, &format!("--max-time 60 {options} {url}")).await.as_deref(),
                    Ok(&*expected),
                    "{options}"
                );
            }
            let line = format!("import urllib.request as r; print(r.urlopen('{url}', timeout=60).read().decode())");
            assert_eq!(run(sandbox, &format!("python3 -c \"{line}\"")).await, expected);
            let told = "/etc/ssl/certs/ca-certificates.crt /usr/local/share/ca-certificates/wrenn.crt";
            assert_eq!(run(sandbox, "echo $REQUESTS_CA_BUNDLE $NODE_EXTRA_CA_CERTS").await, told);
            assert_eq!(vault.asked.lock().unwrap().last(), Some(sandbox.id()));
        };
        uses_the_key(&sandbox).await;
        // Those that are created with rules trust the authority from the beginning.
        let other = Sandbox::builder(&host, "base").network(policy).create().await.unwrap();
        uses_the_key(&other).await;
        other.kill().await.unwrap();
        let child = sandbox.fork(1).await.unwrap().remove(0).unwrap();
        uses_the_key(&child).await;
        child.kill().await.unwrap();
        let mark = format!("mark-{:032x}", rand::random::<u128>());
        // In the environment of a process that stays, as a key would be.
        let mut stays = sandbox.command("sleep").arg("1000").env("MARK", &mark).spawn().await.unwrap();
        assert!(!run(&sandbox, "env; sudo cat /proc/*/environ | tr '\\0' '\\n'").await.contains(&vault.key));
        let paused = sandbox.pause().await.unwrap();
        stays.wait().await.unwrap_err();
        assert_eq!(kept(dir.path(), [&mark, &vault.key]), [true, false]);
        let resumed = paused.resume().await.unwrap();
        uses_the_key(&resumed).await;
        resumed.kill().await.unwrap();
    });
}

#[test]
fn a_proxy_is_kept_by_pauses_and_forks_and_its_password_is_in_nothing_that_is_kept() {
    let test = "a_proxy_is_kept_by_pauses_and_forks_and_its_password_is_in_nothing_that_is_kept";
    if !common::can_run(test) {
        return;
    }
    in_a_world(test, async |world| {
        const PASSWORD: &str = "93c1a7f04be2d865";
        world.web("93.184.216.34:80");
        let proxy = Proxy::new(&world, Speaks::Socks5).wants("ada:93c1a7f04be2d865");
        let asked = proxy.serve(world.listen("93.184.216.35:1080"));
        let dir = common::own_data_dir();
        let secrets = BTreeMap::from([("PROXY_PASSWORD".to_owned(), Secret::new(PASSWORD))]);
        let host = common::own_host(&dir).secrets(secrets).open().await.unwrap();
        let proxy = UpstreamProxy::of("socks5://ada:${secret.PROXY_PASSWORD}@93.184.216.35:1080").unwrap();
        let policy = NetworkPolicy::default().through(proxy);
        let sandbox = Sandbox::builder(&host, "base").network(policy.clone()).create().await.unwrap();
        let leaves_by_it = async |sandbox: &Sandbox| {
            let before = asked.lock().unwrap().len();
            assert_eq!(get(sandbox, "http://93.184.216.34/").await.as_deref(), Ok("93.184.216.34:80"));
            asked.lock().unwrap().len() - before
        };
        assert_eq!(leaves_by_it(&sandbox).await, 1);
        let child = sandbox.fork(1).await.unwrap().remove(0).unwrap();
        assert_eq!(leaves_by_it(&child).await, 1);
        child.kill().await.unwrap();
        let paused = sandbox.pause().await.unwrap();
        assert_eq!(kept(dir.path(), ["secret.PROXY_PASSWORD", PASSWORD]), [true, false]);
        let resumed = paused.resume().await.unwrap();
        assert_eq!(resumed.network().await.unwrap(), policy);
        assert_eq!(leaves_by_it(&resumed).await, 1);
        resumed.set_network(NetworkPolicy::default()).await.unwrap();
        assert_eq!(leaves_by_it(&resumed).await, 0);
        resumed.kill().await.unwrap();
    });
}
