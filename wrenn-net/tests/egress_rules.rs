//! What rules put into a guest's requests, and what they leave alone.
#![expect(clippy::unwrap_used, reason = "tests")]

mod web;
mod world;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::Request;
use http_body_util::BodyExt;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use wrenn_net::{
    Authority, Egress, Interceptor, NetworkPolicy, Refusal, Rule, Secret, SecretFuture, SecretSource, Slot,
};

use web::{Client, channel, serve_plain, tls};
use world::guest::Guest;
use world::{World, in_a_world};

const GOOD: &str = "93.184.216.34";
const OTHER: &str = "93.184.216.35";
const GOOD_ADDRESS: [u8; 4] = [93, 184, 216, 34];
const OTHER_ADDRESS: [u8; 4] = [93, 184, 216, 35];
const BOTH: [&str; 2] = ["h2", "http/1.1"];

/// A guest whose way out follows rules, and what it trusts.
struct Ruled {
    guest: Guest,
    egress: Egress,
    trusts: String,
}

impl Ruled {
    fn new(world: &World, servers: &web::Authority, policy: NetworkPolicy) -> Self {
        let secrets = BTreeMap::from([("KEY".to_owned(), Secret::new("k/1"))]);
        Self::with(world, servers, policy, secrets)
    }

    fn with(
        world: &World,
        servers: &web::Authority,
        policy: NetworkPolicy,
        secrets: impl SecretSource + 'static,
    ) -> Self {
        let authority = Authority::generate().unwrap();
        let trusts = authority.certificate().to_owned();
        let interceptor = Arc::new(Interceptor::new(authority).trust(servers.pem()).unwrap());
        let (slot, tap, gate) = Slot::create().unwrap();
        let egress = world.way_out(policy).intercept(interceptor, secrets).open(gate).unwrap();
        Self { guest: Guest::plug(slot, tap), egress, trusts }
    }

    /// HTTP over TLS to an address, as the guest speaks it.
    async fn https(&self, to: &str, name: &str, protocols: &[&str]) -> std::io::Result<Client> {
        let stream = self.guest.connect(to).await?;
        Ok(Client::over_tls(tls(stream, name, &self.trusts, protocols).await?).await)
    }
}

fn rule(host: &str) -> Rule {
    Rule::of(host).unwrap().set_header("x-key", "Bearer ${secret.KEY}").unwrap()
}

fn open(rules: impl IntoIterator<Item = Rule>) -> NetworkPolicy {
    rules.into_iter().fold(NetworkPolicy::default(), |policy, rule| policy.rule(rule).unwrap())
}

/// An internet with a server of TLS for these names, at the first address.
fn internet(world: &World, protocols: &[&str]) -> web::Authority {
    let servers = web::Authority::new("servers");
    servers.serve(world.listen(&format!("{GOOD}:443")), &["api.example", "other.example"], protocols);
    world.dns(&[("api.example", &[GOOD_ADDRESS]), ("other.example", &[GOOD_ADDRESS])]);
    servers
}

#[test]
fn a_key_reaches_its_server_by_whichever_protocol_that_speaks() {
    in_a_world("a_key_reaches_its_server_by_whichever_protocol_that_speaks", async |world| {
        let servers = internet(&world, &BOTH);
        servers.serve(world.listen(&format!("{GOOD}:8443")), &["api.example"], &["http/1.1"]);
        servers.serve(world.listen(&format!("{GOOD}:8444")), &["api.example"], &[]);
        let policies = [
            open([rule("api.example:443-8444")]),
            NetworkPolicy::closed().allow(["api.example"]).unwrap().rule(rule("*.example:443-8444")).unwrap(),
        ];
        for policy in policies {
            let ruled = Ruled::new(&world, &servers, policy);
            for (port, offered, spoken) in [
                (443, &BOTH[..], "h2"),
                (443, &BOTH[1..], "http/1.1"),
                (443, &[], "http/1.1"),
                (8443, &BOTH, "http/1.1"),
                (8444, &BOTH, "http/1.1"),
            ] {
                let mut client = ruled.https(&format!("{GOOD}:{port}"), "api.example", offered).await.unwrap();
                let uri = format!("https://api.example:{port}/a?b");
                // Added, and in place of what the guest sends; and over one connection.
                for sent in [&[][..], &[("x-key", "mine"), ("x-key", "too"), ("x-more", "1")]] {
                    let (status, said) = client.get(&uri, sent).await;
                    assert_eq!(status, 200, "{said}");
                    assert!(said.starts_with(&format!("{GOOD} {spoken} GET /a?b\n")), "{said}");
                    assert_eq!(said.matches("x-key: Bearer k/1\n").count(), 1, "{said}");
                    assert_eq!((said.contains("mine"), said.contains("x-more: 1")), (false, sent.len() > 1), "{said}");
                }
            }
            let counters = ruled.egress.counters();
            assert_eq!((counters.connections, counters.refusals), (5, 0));
            assert!(counters.bytes_out > 1000 && counters.bytes_in > 1000, "{counters:?}");
        }
    });
}

#[test]
fn a_placeholder_becomes_the_key_in_headers_and_in_the_query() {
    in_a_world("a_placeholder_becomes_the_key_in_headers_and_in_the_query", async |world| {
        let servers = internet(&world, &BOTH);
        let rule = Rule::of("api.example").unwrap().replace("sk-placeholder", "${secret.KEY}").unwrap();
        let ruled = Ruled::new(&world, &servers, open([rule]));
        for protocols in [&BOTH[..1], &BOTH[1..]] {
            let mut client = ruled.https(&format!("{GOOD}:443"), "api.example", protocols).await.unwrap();
            let uri = "https://api.example/sk-placeholder?key=sk-placeholder&a=b";
            let (_, said) = client.get(uri, &[("authorization", "Bearer sk-placeholder"), ("x-a", "b")]).await;
            assert!(said.contains("GET /sk-placeholder?key=k%2F1&a=b\n"), "{said}");
            assert!(said.contains("authorization: Bearer k/1\n") && said.contains("x-a: b\n"), "{said}");
        }
    });
}

#[test]
fn what_no_rule_is_for_is_left_alone() {
    in_a_world("what_no_rule_is_for_is_left_alone", async |world| {
        let servers = internet(&world, &BOTH);
        world.greet(&format!("{GOOD}:80"));
        let of_posts = rule("api.example").methods(["POST"]).unwrap().path("/v1").unwrap();
        let ruled = Ruled::new(&world, &servers, open([of_posts, rule("*.other.example")]));
        // Other TLS: the guest sees the server's own certificate.
        for name in ["other.example", "unheard-of.example"] {
            let stream = ruled.guest.connect(&format!("{GOOD}:443")).await.unwrap();
            let trusted = tls(stream, name, servers.pem(), &BOTH).await;
            match name {
                "other.example" => {
                    let (_, said) = Client::over_tls(trusted.unwrap()).await.get("https://other.example/", &[]).await;
                    assert!(said.contains(" h2 ") && !said.contains("k/1"), "{said}");
                }
                _ => assert!(trusted.unwrap_err().to_string().contains("not valid for name")),
            }
        }
        // What begins by itself, at a port that rules are for.
        let mut stream = ruled.guest.connect(&format!("{GOOD}:80")).await.unwrap();
        let mut said = String::new();
        // Sooner than a guest is waited for that says nothing.
        tokio::time::timeout(Duration::from_secs(20), stream.read_to_string(&mut said)).await.unwrap().unwrap();
        assert_eq!(said, format!("{GOOD}:80"));
        // Other requests to the server of a rule.
        let mut client = ruled.https(&format!("{GOOD}:443"), "api.example", &BOTH).await.unwrap();
        for (method, path, has) in
            [("POST", "/v1/a", true), ("GET", "/v1/a", false), ("POST", "/v2", false), ("POST", "/v1/../v2", false)]
        {
            let request = Request::builder().method(method).uri(format!("https://api.example{path}"));
            let (status, said) = client.ask(request, &[]).await;
            assert_eq!((status, said.contains("x-key: Bearer k/1")), (200, has), "{method} {path}: {said}");
        }
    });
}

#[test]
fn a_key_goes_to_no_other_server() {
    in_a_world("a_key_goes_to_no_other_server", async |world| {
        let servers = internet(&world, &BOTH);
        // As certified as the one that is meant, such as another machine of the same people.
        servers.serve(world.listen(&format!("{OTHER}:443")), &["api.example"], &BOTH);
        serve_plain(world.listen(&format!("{GOOD}:80")));
        serve_plain(world.listen(&format!("{OTHER}:80")));
        let ruled = Ruled::new(&world, &servers, open([rule("api.example")]));
        for address in [GOOD, OTHER] {
            let mut client = ruled.https(&format!("{address}:443"), "api.example", &BOTH).await.unwrap();
            let (_, said) = client.get("https://api.example/", &[]).await;
            assert!(said.starts_with(GOOD) && said.contains("k/1"), "{said}");
            let mut client = Client::over(ruled.guest.connect(&format!("{address}:80")).await.unwrap()).await;
            let (_, said) = client.get("http://api.example/", &[]).await;
            assert!(said.starts_with(GOOD) && said.contains("k/1"), "{said}");
        }
        // Another Host in the connection.
        for protocols in [&BOTH[..1], &BOTH[1..]] {
            let mut client = ruled.https(&format!("{GOOD}:443"), "api.example", protocols).await.unwrap();
            let (status, said) = client.get("https://other.example/", &[]).await;
            assert_eq!(status, 421, "{said}");
            let (status, said) = client.get("https://api.example/", &[("host", "other.example")]).await;
            assert_eq!(status, 421, "{said}");
        }
        let mut client = Client::over(ruled.guest.connect(&format!("{GOOD}:80")).await.unwrap()).await;
        assert_eq!(client.get("http://api.example/", &[]).await.0, 200);
        assert_eq!(client.get("http://other.example/", &[]).await.0, 421, "the second request");
        // A name without a rule goes where the guest wants.
        let mut client = Client::over(ruled.guest.connect(&format!("{OTHER}:80")).await.unwrap()).await;
        let (_, said) = client.get("http://other.example/", &[]).await;
        assert!(said.starts_with(OTHER) && !said.contains("k/1"), "{said}");
    });
}

#[test]
fn what_cannot_be_done_is_told_without_the_key() {
    in_a_world("what_cannot_be_done_is_told_without_the_key", async |world| {
        let servers = internet(&world, &BOTH);
        let missing = rule("api.example").set_header("x-none", "${secret.NONE}").unwrap();
        let ruled = Ruled::new(&world, &servers, open([missing]));
        for protocols in [&BOTH[..1], &BOTH[1..]] {
            let mut client = ruled.https(&format!("{GOOD}:443"), "api.example", protocols).await.unwrap();
            let (status, said) = client.get("https://api.example/", &[]).await;
            assert!(status == 502 && said.contains("`NONE`") && !said.contains("k/1"), "{status} {said}");
        }
    });
}

/// Knows a key, and never answers for any other.
struct Hanging;

impl SecretSource for Hanging {
    fn secret<'a>(&'a self, name: &'a str) -> SecretFuture<'a> {
        Box::pin(async move {
            if name != "KEY" {
                std::future::pending::<()>().await;
            }
            Some(Secret::new("k/1"))
        })
    }
}

#[test]
fn secrets_that_do_not_come_are_waited_for_once_and_told() {
    in_a_world("secrets_that_do_not_come_are_waited_for_once_and_told", async |world| {
        let servers = internet(&world, &BOTH);
        let slow = ["ONE", "TWO", "THREE"].iter().fold(rule("api.example").methods(["POST"]).unwrap(), |rule, name| {
            rule.set_header(&format!("x-{name}"), &format!("${{secret.{name}}}")).unwrap()
        });
        let ruled = Ruled::with(&world, &servers, open([slow, rule("api.example")]), Hanging);
        let mut client = ruled.https(&format!("{GOOD}:443"), "api.example", &BOTH).await.unwrap();
        let (asked, post) = (Instant::now(), Request::post("https://api.example/"));
        let (status, said) = client.ask(post, &[]).await;
        assert!(status == 504 && said.contains("did not come in time") && !said.contains("k/1"), "{status} {said}");
        let waited = asked.elapsed();
        assert!((Duration::from_secs(9)..Duration::from_secs(20)).contains(&waited), "three at once: {waited:?}");
        assert_eq!(client.get("https://api.example/", &[]).await.0, 200, "the connection serves on");
    });
}

#[test]
fn a_server_that_is_not_certified_gets_nothing() {
    in_a_world("a_server_that_is_not_certified_gets_nothing", async |world| {
        let servers = web::Authority::new("servers");
        web::Authority::new("nobody's").serve(world.listen(&format!("{OTHER}:443")), &["api.example"], &BOTH);
        world.dns(&[("api.example", &[OTHER_ADDRESS])]);
        let ruled = Ruled::new(&world, &servers, open([rule("api.example")]));
        for protocols in [&BOTH[..1], &BOTH[1..]] {
            let mut client = ruled.https(&format!("{OTHER}:443"), "api.example", protocols).await.unwrap();
            let (status, said) = client.get("https://api.example/", &[]).await;
            assert!(status == 502 && said.contains("UnknownIssuer"), "{status} {said}");
        }
    });
}

#[test]
fn bodies_go_both_ways_as_they_come() {
    in_a_world("bodies_go_both_ways_as_they_come", async |world| {
        let servers = internet(&world, &BOTH);
        let ruled = Ruled::new(&world, &servers, open([rule("api.example")]));
        for protocols in [&BOTH[..1], &BOTH[1..]] {
            let mut client = ruled.https(&format!("{GOOD}:443"), "api.example", protocols).await.unwrap();
            let (sender, body) = channel();
            sender.send("first".into()).await.unwrap();
            let request = Request::post("https://api.example/echo").body(body).unwrap();
            let mut answer = client.send(request).await.unwrap().into_body();
            let mut next = async || answer.frame().await.unwrap().unwrap().into_data().unwrap();
            assert_eq!(next().await, "first");
            sender.send("second".into()).await.unwrap();
            assert_eq!(next().await, "second");
            // More than any buffer on the way has.
            let piece = Bytes::from(vec![7; 100_000]);
            let send = async {
                for _ in 0..80 {
                    sender.send(piece.clone()).await.unwrap();
                }
                drop(sender);
            };
            let (_, rest) = tokio::join!(send, answer.collect());
            assert_eq!(rest.unwrap().to_bytes().len(), 8_000_000);
        }
    });
}

#[test]
fn another_protocol_within_a_connection_is_carried() {
    in_a_world("another_protocol_within_a_connection_is_carried", async |world| {
        let servers = internet(&world, &BOTH);
        let ruled = Ruled::new(&world, &servers, open([rule("api.example")]));
        let mut client = ruled.https(&format!("{GOOD}:443"), "api.example", &BOTH[1..]).await.unwrap();
        let request = Request::get("https://api.example/").header("connection", "upgrade").header("upgrade", "shout");
        let response = client.send(request.body(web::nothing()).unwrap()).await.unwrap();
        assert_eq!((response.status().as_u16(), &response.headers()["x-key"]), (101, &"Bearer k/1".parse().unwrap()));
        let mut stream = TokioIo::new(hyper::upgrade::on(response).await.unwrap());
        for word in ["hello", "there"] {
            stream.write_all(word.as_bytes()).await.unwrap();
            let mut said = [0; 5];
            stream.read_exact(&mut said).await.unwrap();
            assert_eq!(said, word.to_ascii_uppercase().as_bytes());
        }
        stream.shutdown().await.unwrap();
        let mut rest = Vec::new();
        assert_eq!(stream.read_to_end(&mut rest).await.unwrap(), 0, "each end is passed on");
    });
}

#[test]
fn the_policy_comes_first_and_a_change_of_it_acts_at_once() {
    in_a_world("the_policy_comes_first_and_a_change_of_it_acts_at_once", async |world| {
        let servers = internet(&world, &BOTH);
        // A rule alone lets nothing through.
        let refused = NetworkPolicy::closed().allow(["other.example"]).unwrap().rule(rule("api.example")).unwrap();
        let ruled = Ruled::new(&world, &servers, refused);
        assert!(ruled.https(&format!("{GOOD}:443"), "api.example", &BOTH).await.is_err());
        assert!(matches!(&world.refusals()[..], [refused] if refused.refusal == Refusal::Name));
        for protocols in [&BOTH[..1], &BOTH[1..]] {
            ruled.egress.set_policy(open([rule("api.example")]));
            let mut client = ruled.https(&format!("{GOOD}:443"), "api.example", protocols).await.unwrap();
            assert!(client.get("https://api.example/", &[]).await.1.contains("k/1"));
            ruled.egress.set_policy(NetworkPolicy::default());
            let (status, said) = client.get("https://api.example/", &[]).await;
            assert!(status == 200 && !said.contains("k/1"), "{said}");
            ruled.egress.set_policy(NetworkPolicy::closed());
            let request = Request::get("https://api.example/").body(web::nothing()).unwrap();
            let sent = tokio::time::timeout(Duration::from_secs(2), client.send(request)).await;
            assert!(sent.unwrap().is_err());
        }
        // What a name was resolved to is decided as what the guest had in mind.
        ruled.egress.set_policy(open([rule("api.example")]).deny([GOOD]).unwrap());
        servers.serve(world.listen(&format!("{OTHER}:443")), &["api.example"], &BOTH);
        assert!(ruled.https(&format!("{OTHER}:443"), "api.example", &BOTH).await.is_err());
        ruled.egress.set_policy(open([rule("api.example")]));
        let mut client = ruled.https(&format!("{OTHER}:443"), "api.example", &BOTH[1..]).await.unwrap();
        assert!(client.get("https://api.example/", &[]).await.1.starts_with(GOOD));
        ruled.egress.set_policy(open([rule("api.example")]).deny([GOOD]).unwrap());
        let request = Request::get("https://api.example/").body(web::nothing()).unwrap();
        let sent = tokio::time::timeout(Duration::from_secs(2), client.send(request)).await;
        assert!(sent.unwrap().is_err());
    });
}

#[test]
fn many_requests_at_once_are_answered_each_by_its_own() {
    in_a_world("many_requests_at_once_are_answered_each_by_its_own", async |world| {
        let servers = internet(&world, &BOTH);
        let ruled = Ruled::new(&world, &servers, open([rule("api.example")]));
        let client = ruled.https(&format!("{GOOD}:443"), "api.example", &BOTH).await.unwrap();
        let Client::Http2(sender) = client else { panic!("it speaks HTTP/1.1") };
        let mut asked = tokio::task::JoinSet::new();
        for number in 0..300 {
            let mut client = Client::Http2(sender.clone());
            asked.spawn(async move {
                let (status, said) = client.get(&format!("https://api.example/{number}?"), &[]).await;
                assert!(status == 200 && said.contains(&format!("GET /{number}?\n")) && said.contains("k/1"), "{said}");
            });
        }
        assert_eq!(asked.join_all().await.len(), 300);
    });
}

#[test]
fn a_connection_ends_in_order_when_its_server_ends_it() {
    in_a_world("a_connection_ends_in_order_when_its_server_ends_it", async |world| {
        let listener = world.listen(&format!("{GOOD}:80"));
        world.dns(&[("api.example", &[GOOD_ADDRESS])]);
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let mut head = [0; 4096];
                // The connection that was made before its name was known is another.
                if stream.read(&mut head).await.is_ok_and(|len| len > 0) {
                    stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await.unwrap();
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        });
        let ruled = Ruled::new(&world, &web::Authority::new("servers"), open([rule("api.example")]));
        let mut stream = ruled.guest.connect(&format!("{GOOD}:80")).await.unwrap();
        stream.write_all(b"GET / HTTP/1.1\r\nHost: api.example\r\n\r\n").await.unwrap();
        let mut said = String::new();
        tokio::time::timeout(Duration::from_secs(5), stream.read_to_string(&mut said)).await.unwrap().unwrap();
        assert!(said.starts_with("HTTP/1.1 200 OK\r\n") && said.ends_with("\r\n\r\nok"), "{said}");
    });
}

#[test]
fn a_guest_that_is_slow_to_speak_is_not_taken_past_the_rules() {
    in_a_world("a_guest_that_is_slow_to_speak_is_not_taken_past_the_rules", async |world| {
        let servers = internet(&world, &BOTH);
        let closed = NetworkPolicy::closed().allow(["api.example"]).unwrap().rule(rule("api.example")).unwrap();
        for policy in [open([rule("api.example")]), closed] {
            let ruled = Ruled::new(&world, &servers, policy);
            let stream = ruled.guest.connect(&format!("{GOOD}:443")).await.unwrap();
            // Longer than a guest is waited for where there are no rules.
            tokio::time::sleep(Duration::from_millis(1500)).await;
            let mut client = Client::over_tls(tls(stream, "api.example", &ruled.trusts, &BOTH).await.unwrap()).await;
            assert!(client.get("https://api.example/", &[]).await.1.contains("k/1"));
        }
    });
}
