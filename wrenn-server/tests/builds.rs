//! Templates that are built, with real guests, and what goes wrong there.
#![expect(clippy::unwrap_used, reason = "tests")]

mod common;
#[path = "../../wrenn-core/tests/common/registry.rs"]
mod registry;

use std::io::Write as _;
use std::net::TcpStream;
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use common::{Client, Server, can_run, data_dir, new_key, output, run, sandbox};

/// A build that was begun.
struct Begun<'a> {
    client: &'a Client,
    name: String,
    id: String,
}

impl Begun<'_> {
    fn now(&self) -> Value {
        let (status, now) = self.client.get(&format!("/templates/{}/builds/{}/status", self.name, self.id));
        assert_eq!(status, 200, "{now}");
        now
    }

    /// Waits until it is over.
    fn ended(&self) -> Value {
        self.until(|now| !["waiting", "building"].contains(&now["status"].as_str().unwrap()))
    }

    fn until(&self, is_it: impl Fn(&Value) -> bool) -> Value {
        let end = Instant::now() + Duration::from_secs(120);
        loop {
            let now = self.now();
            if is_it(&now) {
                return now;
            }
            assert!(Instant::now() < end, "{now}");
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    fn status(&self) -> String {
        let now = self.ended();
        let why = now["reason"]["message"].as_str().map_or_else(String::new, |why| format!(": {why}"));
        format!("{}{why}", now["status"].as_str().unwrap())
    }
}

fn requested<'a>(client: &'a Client, name: &str) -> Begun<'a> {
    let (status, answer) = client.post("/v3/templates", &json!({"name": name}));
    assert_eq!(status, 202, "{answer}");
    let name = answer["templateID"].as_str().unwrap().to_owned();
    Begun { client, name, id: answer["buildID"].as_str().unwrap().to_owned() }
}

fn start(build: &Begun<'_>, recipe: &Value) -> (u16, Value) {
    build.client.post(&format!("/v2/templates/{}/builds/{}", build.name, build.id), recipe)
}

/// A build from `base` whose steps run these lines.
fn begun<'a>(client: &'a Client, name: &str, lines: &[&str]) -> Begun<'a> {
    let build = requested(client, name);
    let steps: Vec<Value> = lines.iter().map(|line| json!({"type": "RUN", "args": [line]})).collect();
    assert_eq!(start(&build, &json!({"fromTemplate": "base", "steps": steps})).0, 202);
    build
}

fn put(client: &Client, url: &str, len: Option<usize>, body: &[u8]) -> u16 {
    client.raw(&put_head(url, len).into_bytes().into_iter().chain(body.iter().copied()).collect::<Vec<_>>()).0
}

fn put_head(url: &str, len: Option<usize>) -> String {
    let path = url.splitn(4, '/').nth(3).unwrap();
    let len = len.map_or_else(String::new, |len| format!("Content-Length: {len}\r\n"));
    format!("PUT /{path} HTTP/1.1\r\nHost: test\r\nConnection: close\r\n{len}\r\n")
}

fn tar(name: &str, content: &str) -> Vec<u8> {
    let mut header = tar::Header::new_gnu();
    header.as_gnu_mut().unwrap().name[..name.len()].copy_from_slice(name.as_bytes());
    header.set_size(content.len() as u64);
    header.set_mode(0o644);
    header.set_cksum();
    let mut out = tar::Builder::new(Vec::new());
    out.append(&header, content.as_bytes()).unwrap();
    out.into_inner().unwrap()
}

fn server_files(dir: &Path) -> Vec<String> {
    let mut all = Vec::new();
    let mut left = vec![dir.join("server/build-files")];
    while let Some(directory) = left.pop() {
        for entry in std::fs::read_dir(directory).into_iter().flatten() {
            let path = entry.unwrap().path();
            all.push(path.file_name().unwrap().to_str().unwrap().to_owned());
            if path.is_dir() {
                left.push(path);
            }
        }
    }
    all
}

#[test]
fn files_are_taken_by_a_good_link_alone_and_lead_nowhere() {
    if !can_run("files_are_taken_by_a_good_link_alone_and_lead_nowhere") {
        return;
    }
    let dir = data_dir();
    let server = Server::start(dir.path(), &[]);
    let client = server.client(&new_key(dir.path(), "ada"));
    let eve = server.client(&new_key(dir.path(), "eve"));
    let reader = String::from_utf8(output(dir.path(), &["keys", "create", "bob", "--read-only"]).stdout).unwrap();
    let reader = server.client(reader.trim());
    let (hash, other) = ("a".repeat(64), "b".repeat(64));
    let link = |client: &Client, hash: &str| client.get(&format!("/templates/app/files/{hash}"));
    let (status, answer) = link(&client, &hash);
    assert_eq!((status, &answer["present"]), (201, &json!(false)), "{answer}");
    let url = answer["url"].as_str().unwrap().to_owned();
    assert!(url.starts_with("http://test/templates/app/files/"), "{url}");
    assert_eq!((link(&client, "../../secret").0, link(&client, "A").0), (404, 400));
    assert_eq!(link(&reader, &hash).0, 403);
    assert_eq!(reader.post("/v3/templates", &json!({"name": "app"})).0, 403);

    let (whole, out) = (tar("dir/a", "text"), tar("../a", "text"));
    let by_eve = link(&eve, &hash).1["url"].as_str().unwrap().to_owned();
    let token = |url: &str| url.split("token=").nth(1).unwrap().to_owned();
    for bad in [
        url.replace(&hash, &other),
        url.replace("until=", "until=1"),
        url.replace(&token(&url), &token(&by_eve)),
        url.split("&token").next().unwrap().to_owned(),
    ] {
        assert_eq!(put(&client, &bad, Some(whole.len()), &whole), 403, "{bad}");
    }
    assert_eq!(put(&client, &url, None, b""), 411);
    assert_eq!(put(&client, &url, Some((4 << 30) + 1), b""), 413);
    // One that goes away in the middle leaves nothing.
    let mut cut = TcpStream::connect(client.address).unwrap();
    cut.write_all(put_head(&url, Some(1 << 20)).as_bytes()).and_then(|()| cut.write_all(&[0; 1000])).unwrap();
    drop(cut);
    let end = Instant::now() + Duration::from_secs(20);
    while server_files(dir.path()).iter().any(|name| name.starts_with(".new")) && Instant::now() < end {
        std::thread::sleep(Duration::from_millis(50));
    }
    assert_eq!(link(&client, &hash).1["present"], false);
    assert_eq!(put(&client, &url, Some(whole.len()), &whole), 200);
    assert_eq!(
        (link(&client, &hash).1["present"].clone(), link(&eve, &hash).1["present"].clone()),
        (true.into(), false.into())
    );

    let url = link(&client, &other).1["url"].as_str().unwrap().to_owned();
    assert_eq!(put(&client, &url, Some(out.len()), &out), 200);
    let copy =
        |from: &str, hash: &str| json!({"steps": [{"type": "COPY", "args": [from, "/srv/"], "filesHash": hash}]});
    // Another key's files are none.
    let build = requested(&eve, "app");
    let (status, answer) = start(&build, &copy("dir", &hash));
    assert_eq!((status, answer["message"].to_string().contains("not sent")), (400, true), "{answer}");
    for (from, hash, why) in
        [(".", &other, "leads out"), ("dir/none", &hash, "dir/none"), ("../../..", &hash, "leads out")]
    {
        let build = requested(&client, "app");
        assert_eq!(start(&build, &copy(from, hash)).0, 202);
        let status = build.status();
        assert!(status.starts_with("error: ") && status.contains(why), "{status}");
        assert!(!status.contains(dir.path().to_str().unwrap()), "{status}");
        assert_eq!(build.now()["reason"]["step"], "1");
    }
    let build = requested(&client, "app");
    assert_eq!(start(&build, &copy("dir", &hash)).0, 202);
    assert_eq!(build.status(), "ready");
    let id = sandbox(&client, &json!({"template": "app"}));
    assert_eq!(run(&client, &id, "cat /srv/a; stat -c %U /srv/a").replace('\n', " "), "textuser");
    let left = server_files(dir.path());
    assert!(!left.iter().any(|name| name.starts_with("unpacked")), "{left:?}");
    server.stop();
}

#[test]
fn a_build_is_its_keys_and_one_that_makes_no_sense_is_refused() {
    if !can_run("a_build_is_its_keys_and_one_that_makes_no_sense_is_refused") {
        return;
    }
    let dir = data_dir();
    let server = Server::start(dir.path(), &["--registries", "ghcr.io,127.0.0.1:1"]);
    let client = server.client(&new_key(dir.path(), "ada"));
    let eve = server.client(&new_key(dir.path(), "eve"));
    for (name, tags, right) in [
        ("Bad Name", json!([]), 400),
        ("a/b", json!([]), 400),
        ("", json!([]), 400),
        ("app:no tag", json!([]), 400),
        ("app", json!(["a/b"]), 400),
        ("base", json!([]), 409),
    ] {
        let (status, answer) = client.post("/v3/templates", &json!({"name": name, "tags": tags}));
        assert_eq!(status, right, "{name}: {answer}");
    }
    // It would wait for its turn otherwise, and fail then.
    for size in [json!({"cpuCount": 33}), json!({"cpuCount": 0}), json!({"memoryMB": 64}), json!({"memoryMB": 65537})] {
        let mut wanted = size.clone();
        wanted["name"] = "app".into();
        let (status, answer) = client.post("/v3/templates", &wanted);
        assert!(status == 400 && answer["message"].as_str().unwrap().contains(" to "), "{size}: {answer}");
    }
    let build = requested(&client, "app:v1");
    for (recipe, why) in [
        (json!({"steps": [{"type": "VOLUME", "args": ["/x"]}]}), "step 1 (VOLUME)"),
        (json!({"steps": [{"type": "ENV", "args": ["A"]}]}), "without a value"),
        (json!({"steps": [{"type": "COPY", "args": ["a", "b"]}]}), "filesHash"),
        (json!({"steps": [{"type": "RUN", "args": []}]}), "no command"),
        (json!({"fromImage": "a", "fromTemplate": "b"}), "not with both"),
        (json!({"fromImage": "oci:/etc"}), "no image of a registry"),
        (json!({"fromImage": "evil.example/a"}), "--registries"),
        (json!({"fromImage": "ghcr.io/a/b", "fromImageRegistry": {"type": "aws", "awsRegion": "x"}}), "type aws"),
    ] {
        let (status, answer) = start(&build, &recipe);
        assert!(status == 400 && answer["message"].as_str().unwrap().contains(why), "{recipe}: {answer}");
    }
    assert_eq!(build.now()["status"], "waiting");
    // Nobody listens there.
    let image = json!({
        "fromImage": "127.0.0.1:1/a/b",
        "fromImageRegistry": {"type": "registry", "username": "u", "password": "s3cret"},
    });
    assert_eq!(start(&build, &image).0, 202);
    let status = build.status();
    assert!(status.contains("cannot be reached") && !build.now().to_string().contains("s3cret"), "{status}");
    assert_eq!((start(&build, &json!({})).0, build.now()["reason"]["step"].as_str().unwrap()), (409, "base"));
    // Another's is none.
    let at = format!("/templates/app/builds/{}", build.id);
    assert_eq!((eve.get(&format!("{at}/status")).0, eve.get(&format!("{at}/logs")).0), (404, 404));
    assert_eq!(
        (eve.get(&format!("/v1/builds/{}", build.id)).0, eve.delete(&format!("/v1/builds/{}", build.id))),
        (404, 404)
    );
    assert_eq!(client.get(&format!("/templates/other/builds/{}/status", build.id)).0, 404);

    server.stop();
}

#[test]
fn a_build_is_cancelled_and_limited_and_two_of_one_name_are_built() {
    if !can_run("a_build_is_cancelled_and_limited_and_two_of_one_name_are_built") {
        return;
    }
    let dir = data_dir();
    let server = Server::start(dir.path(), &[]);
    let client = server.client(&new_key(dir.path(), "ada"));
    let eve = server.client(&new_key(dir.path(), "eve"));
    let small = output(dir.path(), &["keys", "create", "bob", "--max-sandboxes", "1"]);
    let small = server.client(String::from_utf8(small.stdout).unwrap().trim());
    // One that is cancelled leaves nothing but the steps that were done.
    let build = begun(&client, "app", &["echo 1 > /tmp/1", "echo slow; sleep 1000"]);
    build.until(|now| now.to_string().contains("\"slow\""));
    assert_eq!(client.delete(&format!("/v1/builds/{}", build.id)), 204);
    assert_eq!(build.status(), "error: the build was cancelled");
    assert_eq!(client.get(&format!("/v1/builds/{}", build.id)).1["status"], "cancelled");
    assert_eq!(client.get("/templates/aliases/app").0, 404);
    assert_eq!(client.get("/v1/snapshots?type=build").1, json!([]));

    // A build is one of the sandboxes that its key may have.
    let id = sandbox(&small, &json!({}));
    assert!(begun(&small, "app", &["true"]).status().contains("running sandboxes"));
    assert_eq!(small.delete(&format!("/v1/sandboxes/{id}")), 204);

    // Two of one name, each with a giant log.
    let two = [1, 2].map(|number| begun(&client, "app", &[&format!("echo {number} > /tmp/it; yes x | head -n 40000")]));
    for build in &two {
        assert_eq!(build.status(), "ready");
        let (_, logs) = client.get(&format!("/v1/builds/{}/logs?offset=9990&limit=1000", build.id));
        assert!(logs.to_string().contains("the log is longer") && logs.as_array().unwrap().len() < 20, "{logs}");
    }
    let (_, app) = client.get("/templates/app");
    assert_eq!(
        (&app["buildCount"], &app["public"], &app["names"]),
        (&json!(2), &json!(false), &json!(["app"])),
        "{app}"
    );
    assert!(app["builds"].as_array().unwrap().len() == 3, "{app}");
    assert_eq!((eve.get("/templates/app").0, eve.post("/v1/sandboxes", &json!({"template": "app"})).0), (404, 404));
    let id = sandbox(&client, &json!({"template": "app"}));
    assert_eq!(client.get(&format!("/v1/sandboxes/{id}")).1["template"], "app");
    let last = two.iter().position(|build| build.id == app["buildID"].as_str().unwrap()).unwrap() + 1;
    assert_eq!(run(&client, &id, "cat /tmp/it"), last.to_string());
    assert_eq!((eve.delete("/templates/app"), client.delete("/templates/app")), (404, 204));
    assert_eq!((client.get("/templates/app").0, client.get("/templates/app/tags").0), (404, 404));
    server.stop();
}

#[test]
fn a_build_by_v1_is_of_steps_or_of_a_dockerfile() {
    if !can_run("a_build_by_v1_is_of_steps_or_of_a_dockerfile") {
        return;
    }
    let dir = data_dir();
    let server = Server::start(dir.path(), &[]);
    let client = server.client(&new_key(dir.path(), "ada"));
    for bad in [
        json!({"name": "app", "from": "base", "dockerfile": "FROM base"}),
        json!({"name": "app", "dockerfile": "FROM base", "steps": [{"type": "run", "cmd": "true"}]}),
        json!({"name": "app", "ready": {"port": 1}}),
        json!({"name": "app", "steps": [{"type": "copy", "from": "a"}]}),
        json!({"name": "app", "nonsense": 1}),
    ] {
        let (status, answer) = client.post("/v1/builds", &bad);
        assert_eq!(status, 400, "{bad}: {answer}");
    }
    let id = begin(
        &client,
        &json!({"name": "app", "dockerfile": "FROM base\nUSER root\nRUN echo docker > /made\nCOPY x /x"}),
    );
    let build = ended(&client, &id);
    assert!(build["reason"]["message"].as_str().unwrap().contains('x') && build["reason"]["step"] == "3", "{build}");
    assert!(!build.to_string().contains(dir.path().to_str().unwrap()), "{build}");
    let id = begin(&client, &json!({"name": "app", "dockerfile": "FROM nothing:here\nRUN true"}));
    assert_eq!(ended(&client, &id)["reason"]["step"], "base");
    let id = begin(&client, &json!({"name": "app", "dockerfile": "FROM base\nUSER root\nRUN echo docker > /made"}));
    assert_eq!(ended(&client, &id)["status"], "ready");
    let body = json!({
        "name": "top", "from": "app:default", "tags": ["v1"], "start": "python3 -m http.server 8000",
        "ready": {"http": {"port": 8000, "path": "/"}},
        "steps": [{"type": "env", "envs": {"A": "1"}}, {"type": "run", "cmd": "cat /made > /twice; echo $A >> /twice"}],
    });
    let id = begin(&client, &body);
    assert_eq!(ended(&client, &id)["status"], "ready", "{}", client.get(&format!("/v1/builds/{id}/logs")).1);
    let made = sandbox(&client, &json!({"template": "top:v1"}));
    assert_eq!(run(&client, &made, "cat /twice; curl -s localhost:8000 | head -c 9"), "docker\n1\n<!DOCTYPE");
    assert_eq!(client.delete(&format!("/v1/sandboxes/{made}")), 204);

    assert_eq!((client.delete("/v1/snapshots/top"), client.get("/templates/aliases/top").0), (204, 404));
    server.stop();
}

#[test]
fn a_build_that_a_kill_cut_off_leaves_its_steps_alone() {
    if !can_run("a_build_that_a_kill_cut_off_leaves_its_steps_alone") {
        return;
    }
    let dir = data_dir();
    let server = Server::start(dir.path(), &[]);
    let client = server.client(&new_key(dir.path(), "ada"));
    let steps = json!([{"type": "run", "cmd": "echo once > /tmp/1"}, {"type": "run", "cmd": "echo slow; sleep 1000"}]);
    let done = begin(&client, &json!({"name": "done", "steps": [{"type": "run", "cmd": "echo all is well"}]}));
    assert_eq!(ended(&client, &done)["status"], "ready");
    let failed = begin(&client, &json!({"name": "bad", "steps": [{"type": "run", "cmd": "echo no good; exit 3"}]}));
    assert_eq!(ended(&client, &failed)["status"], "error");
    let asked = requested(&client, "asked").id;
    let before: Vec<Value> = [&done, &failed].map(|id| client.get(&format!("/v1/builds/{id}")).1).into();
    let told: Vec<Value> = [&done, &failed].map(|id| client.get(&format!("/v1/builds/{id}/logs")).1).into();
    let id = begin(&client, &json!({"name": "cut", "steps": steps}));
    let end = Instant::now() + Duration::from_secs(120);
    while !client.get(&format!("/v1/builds/{id}/logs")).1.to_string().contains("\"slow\"") {
        assert!(Instant::now() < end, "it does not come");
        std::thread::sleep(Duration::from_millis(100));
    }
    server.kill();
    let server = Server::start(dir.path(), &[]);
    let client = Client { address: server.address, ..client };
    for (number, id) in [&done, &failed].into_iter().enumerate() {
        assert_eq!(client.get(&format!("/v1/builds/{id}")), (200, before[number].clone()));
        assert_eq!(client.get(&format!("/v1/builds/{id}/logs")), (200, told[number].clone()));
    }
    let (status, cut) = client.get(&format!("/v1/builds/{id}"));
    assert_eq!((status, &cut["status"]), (200, &json!("error")), "{cut}");
    assert!(cut.to_string().contains("the server ended"), "{cut}");
    let by_e2b = Begun { client: &client, name: "cut".to_owned(), id }.status();
    assert!(by_e2b.starts_with("error: the server ended"), "{by_e2b}");
    // One whose recipe has not come can still begin.
    let asked = Begun { client: &client, name: "asked".to_owned(), id: asked };
    assert_eq!(start(&asked, &json!({"fromTemplate": "base", "steps": []})).0, 202);
    assert_eq!(asked.status(), "ready");
    let (_, built) = client.get("/v1/snapshots?type=build");
    assert!(!built.to_string().contains("\"cut\""), "{built}");
    assert_eq!(client.get("/v1/snapshots?type=snapshot"), (200, json!([])));
    let id = begin(&client, &json!({"name": "cut", "steps": [steps[0], {"type": "run", "cmd": "cat /tmp/1"}]}));
    assert_eq!(ended(&client, &id)["status"], "ready");
    let (_, logs) = client.get(&format!("/v1/builds/{id}/logs"));
    assert!(logs.to_string().contains("CACHED RUN echo once"), "{logs}");
    server.stop();
}

/// Begins a build by `/v1`, and gives its id.
fn begin(client: &Client, body: &Value) -> String {
    let (status, build) = client.post("/v1/builds", body);
    assert_eq!(status, 202, "{build}");
    build["id"].as_str().unwrap().to_owned()
}

/// A build when it is over.
fn ended(client: &Client, id: &str) -> Value {
    let end = Instant::now() + Duration::from_secs(120);
    loop {
        let (status, build) = client.get(&format!("/v1/builds/{id}"));
        assert_eq!(status, 200, "{build}");
        if !["waiting", "building"].contains(&build["status"].as_str().unwrap()) {
            return build;
        }
        assert!(Instant::now() < end, "{build}");
        std::thread::sleep(Duration::from_millis(100));
    }
}

#[test]
fn an_image_of_a_registry_is_its_keys_alone_and_of_registries_that_the_operator_allows() {
    if !can_run("an_image_of_a_registry_is_its_keys_alone_and_of_registries_that_the_operator_allows") {
        return;
    }
    let (Some(busybox), Some(registry)) = (registry::busybox(), registry::Registry::start(Some(registry::SESAME)))
    else {
        let reason = "there is no docker-registry or no busybox: run `cargo xtask setup`";
        writeln!(std::io::stderr(), "skipped: an_image_of_a_registry_is_its_keys_alone…: {reason}")
            .expect("standard error is open");
        return;
    };
    let layout = registry::Layout::new().layer(&registry::busybox_root(&busybox).done());
    layout.config(&json!({"Env": ["PATH=/bin"]}));
    registry.push(&layout, "private/app", Some("ada:sesame"));
    let image = format!("{}/private/app:1", registry.address);
    // What is pulled is not to be the other tests'.
    let dir = tempfile::Builder::new().prefix("wrenn-test-").tempdir().unwrap();
    std::fs::create_dir(dir.path().join("images")).unwrap();
    for shared in ["images/base", "kernels"] {
        std::os::unix::fs::symlink(wrenn_core::default_data_dir().join(shared), dir.path().join(shared)).unwrap();
    }
    let (ada, eve) = (new_key(dir.path(), "ada"), new_key(dir.path(), "eve"));
    let server = Server::start(dir.path(), &["--registries", &registry.address]);
    let (ada, eve) = (server.client(&ada), server.client(&eve));
    let login = json!({"type": "registry", "username": "ada", "password": "sesame"});
    let recipe = |login: Option<&Value>| json!({"fromImage": image, "fromImageRegistry": login, "steps": [{"type": "RUN", "args": ["id -un > who; pwd >> who"]}]});
    let build = requested(&ada, "mine");
    assert_eq!(start(&build, &recipe(Some(&login))).0, 202);
    assert_eq!(build.status(), "ready");
    let id = sandbox(&ada, &json!({"template": "mine"}));
    assert_eq!(run(&ada, &id, "cat /home/user/who"), "user\n/home/user");
    // What one key has pulled, another one has not.
    let build = requested(&eve, "mine");
    assert_eq!(start(&build, &recipe(None)).0, 202);
    let status = build.status();
    assert!(status.starts_with("error") && status.contains("docker login"), "{status}");
    let names = |client: &Client| client.get("/templates").1.to_string();
    assert!(names(&ada).contains("mine") && !names(&eve).contains("mine"), "{}", names(&eve));
    assert!(!names(&eve).contains("\"i-") && !names(&ada).contains("sesame"));
    for refused in ["localhost:1/x", "docker.io/library/python:3", "dir:/etc", "oci:/etc"] {
        let build = requested(&ada, "other");
        let (status, answer) = start(&build, &json!({"fromImage": refused, "steps": []}));
        assert_eq!(status, 400, "{refused}: {answer}");
    }
    // What nobody uses for long goes, once no template needs it, and comes again.
    let pulled = || {
        let entries = std::fs::read_dir(dir.path().join("images")).unwrap().flatten();
        entries.filter(|entry| entry.file_name().to_str().unwrap().starts_with("i-")).map(|entry| entry.path()).next()
    };
    assert_eq!(ada.delete(&format!("/v1/sandboxes/{id}")), 204);
    assert_eq!(ada.delete("/v1/snapshots/mine"), 204);
    server.stop();
    let long_ago = std::time::SystemTime::now() - Duration::from_secs(48 * 3600);
    let age = |path: &Path| std::fs::File::options().write(true).open(path).unwrap().set_modified(long_ago).unwrap();
    age(&pulled().unwrap().join("image.json"));
    for records in ["booted", "steps"] {
        std::fs::read_dir(dir.path().join(records)).unwrap().for_each(|entry| age(&entry.unwrap().path()));
    }
    let server = Server::start(dir.path(), &["--registries", &registry.address, "--image-days", "1"]);
    let (ada, eve) = (Client { address: server.address, ..ada }, Client { address: server.address, ..eve });
    let end = Instant::now() + Duration::from_secs(60);
    while pulled().is_some() {
        assert!(Instant::now() < end, "it stays");
        std::thread::sleep(Duration::from_millis(100));
    }
    let build = requested(&ada, "mine");
    assert_eq!(start(&build, &recipe(Some(&login))).0, 202);
    assert_eq!(build.status(), "ready");
    assert!(pulled().is_some() && !names(&eve).contains("\"i-"));
    server.stop();
}
