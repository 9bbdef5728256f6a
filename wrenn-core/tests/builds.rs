//! Templates that are built in steps, on real virtual machines.
#![expect(clippy::unwrap_used, reason = "tests")]

mod common;

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use common::{own_data_dir, own_host, run};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use wrenn_core::{
    BuildEvent, BuildEventKind, CopyStep, Error, Host, NetworkPolicy, Ready, RunStep, Sandbox, Subject, Template,
    TemplateBuilder,
};

/// The events of a build, as they come.
type Log = Arc<Mutex<Vec<BuildEvent>>>;

fn log() -> (Log, impl FnMut(BuildEvent) + Send + 'static) {
    let log = Log::default();
    let told = Arc::clone(&log);
    (log, move |event| told.lock().unwrap().push(event))
}

/// For each step, whether it was taken from the cache.
fn cached(log: &Log) -> Vec<bool> {
    let kind = |event: &BuildEvent| match event.kind {
        BuildEventKind::Began { cached, .. } => Some(cached),
        _ => None,
    };
    log.lock().unwrap().iter().filter_map(kind).collect()
}

fn lines(log: &Log) -> Vec<String> {
    let line = |event: &BuildEvent| match &event.kind {
        BuildEventKind::Line { text, .. } => Some(text.clone()),
        _ => None,
    };
    log.lock().unwrap().iter().filter_map(line).collect()
}

/// How long each step took.
fn times(log: &Log) -> Vec<Duration> {
    let time = |event: &BuildEvent| match event.kind {
        BuildEventKind::Ended { took, .. } => Some(took),
        _ => None,
    };
    log.lock().unwrap().iter().filter_map(time).collect()
}

async fn built(host: &Host, recipe: TemplateBuilder, name: &str) -> (Log, Duration) {
    let (events, on_event) = log();
    let began = Instant::now();
    recipe.build(host, name).on_event(on_event).await.unwrap();
    (events, began.elapsed())
}

fn ten(last: &str) -> TemplateBuilder {
    let mut recipe = Template::builder("base").workdir("/home/user").env("A", "1");
    for step in 1..10 {
        recipe = recipe.run(format!("echo {step} >> log"));
    }
    recipe.run(last)
}

#[tokio::test(flavor = "multi_thread")]
async fn unchanged_steps_cost_nothing_and_a_change_costs_what_comes_after_it() {
    vm_test_or_return!();
    let dir = own_data_dir();
    let host = own_host(&dir).open().await.unwrap();
    // The boot is not the build's.
    Sandbox::create(&host, "base").await.unwrap().kill().await.unwrap();
    let (events, cold) = built(&host, ten("echo 10 >> log"), "ten").await;
    assert_eq!(cached(&events).iter().filter(|cached| !**cached).count(), 10);
    let (events, unchanged) = built(&host, ten("echo 10 >> log"), "ten").await;
    assert!(cached(&events).iter().all(|cached| *cached), "{:?}", cached(&events));
    let (events, last) = built(&host, ten("echo ten >> log"), "ten").await;
    assert_eq!(cached(&events).iter().filter(|cached| !**cached).count(), 1);
    println!("ten steps: cold {cold:?}, unchanged {unchanged:?}, last changed {last:?}");
    assert!(unchanged < common::patient(Duration::from_secs(1)), "{unchanged:?}");
    let sandbox = Sandbox::create(&host, "ten").await.unwrap();
    assert_eq!(run(&sandbox, "cat log | tr '\\n' ' '").await.trim(), "1 2 3 4 5 6 7 8 9 ten");
    // Anew from a step on, whatever was done before.
    let (events, _) = built(&host, ten("echo ten >> log").no_cache_from(11), "ten").await;
    assert_eq!(cached(&events).iter().filter(|cached| !**cached).count(), 2);
    // What nobody has used for no time at all is forgotten, and what the template needs stays.
    assert!(host.prune_steps(Duration::MAX, 3).await.unwrap() >= 8);
    assert!(host.prune_steps(Duration::ZERO, 100).await.unwrap() >= 3);
    host.collect_garbage().await.unwrap();
    assert!(host.damaged_records().await.unwrap().is_empty());
    let sandbox = Sandbox::create(&host, "ten").await.unwrap();
    assert_eq!(run(&sandbox, "wc -l < log").await, "10");
}

#[tokio::test(flavor = "multi_thread")]
async fn variables_user_and_directory_hold_for_later_steps_and_for_the_templates_sandboxes() {
    vm_test_or_return!();
    let dir = own_data_dir();
    let host = own_host(&dir).open().await.unwrap();
    let recipe = Template::builder("base")
        .env("GREETING", "good day")
        .user("root")
        .workdir("/srv/app")
        .workdir("sub")
        .run("echo $GREETING $(id -un) $PWD > /told; stat -c %U:%a /srv/app/sub >> /told")
        .run(RunStep::new("echo $GREETING $(id -un) $ONCE > /tmp/once").user("user").env("ONCE", "only here"))
        .run(RunStep::exec(["/bin/sh", "-c", "echo \"[$ONCE]\" > /tmp/again"]))
        .workdir("/made/last")
        .user("user");
    built(&host, recipe, "set").await;
    let sandbox = Sandbox::create(&host, "set").await.unwrap();
    assert_eq!(run(&sandbox, "cat /told").await, "good day root /srv/app/sub\nroot:755");
    assert_eq!(run(&sandbox, "cat /tmp/once /tmp/again").await, "good day user only here\n[]");
    assert_eq!(run(&sandbox, "echo $GREETING $(id -un) $PWD").await, "good day user /made/last");
    let templates = host.templates().await.unwrap();
    let defaults = templates.iter().find(|template| template.name().as_str() == "set").unwrap().defaults().unwrap();
    assert_eq!((defaults.user.as_deref(), defaults.workdir.as_deref()), (Some("user"), Some("/made/last")));
    assert_eq!(defaults.env["GREETING"], "good day");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_step_that_fails_is_named_and_can_be_looked_into() {
    vm_test_or_return!();
    let dir = own_data_dir();
    let host = own_host(&dir).open().await.unwrap();
    let recipe = |end: &str| {
        let end = format!("echo half > /tmp/half; echo out; echo err >&2; {end}");
        Template::builder("base").run("echo good > /tmp/good").run(end).run("touch /tmp/never")
    };
    let error = recipe("exit 7").keep_failed(true).build(&host, "failing").await.unwrap_err();
    let Error::Build(failure) = &error else { panic!("{error:?}") };
    assert_eq!((failure.step, failure.code), (2, Some(7)));
    assert!(failure.last_lines.contains(&"out".to_owned()) && failure.last_lines.contains(&"err".to_owned()));
    assert!(error.to_string().contains("step 2") && error.code() == "build_failed", "{error}");
    let sandbox = host.paused(failure.kept.as_ref().unwrap()).await.unwrap().resume().await.unwrap();
    assert_eq!(run(&sandbox, "cat /tmp/good /tmp/half").await, "good\nhalf");
    sandbox.kill().await.unwrap();
    // The last good step, without what the failed one did.
    let sandbox = recipe("exit 7").open_at(&host, 1).await.unwrap();
    assert_eq!(run(&sandbox, "cat /tmp/good; ls /tmp/half 2>&1 | wc -l").await, "good\n1");
    sandbox.kill().await.unwrap();
    // Nothing has the name, and a mended recipe goes on behind the good step.
    assert!(matches!(Sandbox::create(&host, "failing").await, Err(Error::NotFound { .. })));
    let (events, _) = built(&host, recipe("true"), "failing").await;
    assert_eq!(cached(&events), [true, false, false]);
    let limit = RunStep::new("sleep 60").limit(Duration::from_millis(500));
    let error = Template::builder("base").run(limit).build(&host, "late").await.unwrap_err();
    assert!(error.to_string().contains("limit"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn copies_keep_names_modes_and_links_and_come_again_only_when_they_change() {
    vm_test_or_return!();
    let dir = own_data_dir();
    let host = own_host(&dir).open().await.unwrap();
    let files = tempfile::tempdir().unwrap();
    let at = |path: &str| files.path().join("tree").join(path);
    std::fs::create_dir_all(at("empty")).unwrap();
    std::fs::create_dir_all(at("many")).unwrap();
    std::fs::create_dir_all(at("skip/deep")).unwrap();
    std::fs::write(at("skip/deep/x.pyc"), "x").unwrap();
    std::fs::write(at("a b'c\"ü"), "odd").unwrap();
    std::fs::write(at(&"n".repeat(200)), "long").unwrap();
    std::fs::write(at("run.sh"), "#!/bin/sh\necho ran\n").unwrap();
    std::fs::set_permissions(at("run.sh"), std::fs::Permissions::from_mode(0o750)).unwrap();
    std::os::unix::fs::symlink("run.sh", at("link")).unwrap();
    std::os::unix::fs::symlink("/nowhere", at("broken")).unwrap();
    for number in 0..2000 {
        std::fs::write(at(&format!("many/{number}")), format!("content {number}")).unwrap();
    }
    let recipe = || {
        Template::builder("base")
            .context(files.path())
            .copy_step(CopyStep::new("tree", "/srv/tree").exclude("**/*.pyc").exclude("skip/deep").owner("user"))
            .copy("tree/run.sh", "/usr/local/bin/")
            .copy_step(CopyStep::new("tree/run.sh", "/opt/new/name").mode(0o711))
            .run(RunStep::new("/usr/local/bin/run.sh > /tmp/ran").user("root"))
    };
    Sandbox::create(&host, "base").await.unwrap().kill().await.unwrap();
    let (events, cold) = built(&host, recipe(), "copied").await;
    println!("a copy of 2,000 files, two of one, and a command: {cold:?}, of these {:?}", times(&events));
    let sandbox = Sandbox::create(&host, "copied").await.unwrap();
    let script = "import os, stat\nfor p in sorted(os.listdir('/srv/tree')):\n  s = os.lstat('/srv/tree/' + p)\n  \
                  t = os.readlink('/srv/tree/' + p) if stat.S_ISLNK(s.st_mode) else ''\n  \
                  print(p[:20], oct(s.st_mode & 0o7777), s.st_uid, t)\nprint(len(os.listdir('/srv/tree/many')))\n\
                  print(open('/srv/tree/many/1999').read(), os.listdir('/srv/tree/skip'))";
    sandbox.write_file("/tmp/look.py", script).await.unwrap();
    let told = run(&sandbox, "python3 /tmp/look.py").await;
    for line in [
        "a b'c\"ü 0o644 1000 ",
        "broken 0o777 1000 /nowhere",
        "link 0o777 1000 run.sh",
        "run.sh 0o750 1000 ",
        "nnnnnnnnnnnnnnnnnnnn 0o644 1000 ",
        "empty 0o755 1000 ",
        "2000",
        "content 1999 []",
    ] {
        assert!(told.lines().any(|told| told == line), "{line:?} is not in {told}");
    }
    let stat = run(&sandbox, "stat -c '%n %a %U' /usr/local/bin/run.sh /opt/new/name /opt/new; cat /tmp/ran").await;
    assert_eq!(stat, "/usr/local/bin/run.sh 750 root\n/opt/new/name 711 root\n/opt/new 755 root\nran");
    let (events, unchanged) = built(&host, recipe(), "copied").await;
    assert!(cached(&events).iter().all(|cached| *cached));
    println!("unchanged: {unchanged:?}");
    std::fs::write(at("many/7"), "changed").unwrap();
    let (events, _) = built(&host, recipe(), "copied").await;
    assert!(cached(&events).iter().all(|cached| !*cached));
    let missing =
        Template::builder("base").context(files.path()).copy("none", "/x").build(&host, "x").await.unwrap_err();
    assert!(missing.to_string().contains("none"), "{missing}");
}

const SERVER: &str = "import http.server, time\ntime.sleep(1)\nprint('serving', flush=True)\n\
                      http.server.HTTPServer(('0.0.0.0', 8000), http.server.SimpleHTTPRequestHandler).serve_forever()";

async fn answers(sandbox: &Sandbox) -> String {
    let mut stream = sandbox.connect(8000).await.unwrap();
    stream.write_all(b"GET /hello HTTP/1.0\r\n\r\n").await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
}

#[tokio::test(flavor = "multi_thread")]
async fn a_template_with_a_start_command_answers_at_once_in_each_sandbox() {
    vm_test_or_return!();
    let dir = own_data_dir();
    let host = own_host(&dir).open().await.unwrap();
    let files = tempfile::tempdir().unwrap();
    std::fs::write(files.path().join("server.py"), SERVER).unwrap();
    std::fs::write(files.path().join("hello"), "hello").unwrap();
    let recipe = |ready| {
        let base = Template::builder("base").context(files.path()).copy(".", "/srv").workdir("/srv");
        base.start("exec python3 server.py").ready(ready)
    };
    built(&host, recipe(Ready::http(8000, "/hello")), "served").await;
    for _ in 0..2 {
        let began = Instant::now();
        let sandbox = Sandbox::create(&host, "served").await.unwrap();
        let created = began.elapsed();
        assert!(answers(&sandbox).await.ends_with("hello"));
        let answered = began.elapsed();
        let began = Instant::now();
        let plain = Sandbox::create(&host, "base").await.unwrap();
        run(&plain, "true").await;
        println!("warm: created {created:?}, answered {answered:?}; plain with a command {:?}", began.elapsed());
        assert!(sandbox.attach("start").await.is_ok());
        assert!(run(&sandbox, "pgrep -f server.py | wc -l").await.parse::<u32>().unwrap() >= 1);
    }
    // It is a step like the others.
    let (events, _) = built(&host, recipe(Ready::http(8000, "/hello")), "served").await;
    assert!(cached(&events).iter().all(|cached| *cached));
    let (_, _) = built(&host, recipe(Ready::command("test -e hello")), "by-command").await;
    let error = Template::builder("base").start("echo no; exit 3").ready(Ready::port(1)).build(&host, "x").await;
    let Err(Error::Build(failure)) = error else { panic!("{error:?}") };
    assert_eq!((failure.code, failure.last_lines.as_slice()), (Some(3), ["no".to_owned()].as_slice()));
    let never = Ready::port(9).limit(Duration::from_secs(1));
    let error = Template::builder("base").start("sleep 100").ready(never).build(&host, "x").await.unwrap_err();
    assert!(error.to_string().contains("not ready"), "{error}");
}

fn texts_below(dir: &Path) -> Vec<Vec<u8>> {
    common::files(dir)
        .into_iter()
        .filter(|path| path.extension().is_some_and(|e| e == "json"))
        .map(|path| std::fs::read(path).unwrap())
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_secret_is_in_its_step_alone() {
    vm_test_or_return!();
    let dir = own_data_dir();
    let host = own_host(&dir).open().await.unwrap();
    let recipe = |secret: &str| {
        let step =
            RunStep::new("printf \"$TOKEN\" | wc -c > /tmp/len; echo \"token is $TOKEN\"; env").secret("TOKEN", secret);
        Template::builder("base").run(step).run("env; echo [$TOKEN]")
    };
    let (events, _) = built(&host, recipe("hunter2-hunter2"), "secret").await;
    let said = lines(&events);
    assert!(said.contains(&"token is ***".to_owned()) && said.contains(&"[]".to_owned()), "{said:?}");
    assert!(!format!("{:?}", events.lock().unwrap()).contains("hunter2"));
    let found = texts_below(dir.path()).iter().any(|text| String::from_utf8_lossy(text).contains("hunter2"));
    assert!(!found, "a record has the secret");
    let sandbox = Sandbox::create(&host, "secret").await.unwrap();
    assert_eq!(run(&sandbox, "cat /tmp/len; env | grep -c TOKEN || true").await, "15\n0");
    let (events, _) = built(&host, recipe("hunter2-hunter2"), "secret").await;
    assert_eq!(cached(&events), [true, true]);
    let (events, _) = built(&host, recipe("another"), "secret").await;
    assert_eq!(cached(&events), [false, false]);
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_builds_with_the_same_steps_one_does_the_work() {
    vm_test_or_return!();
    let dir = own_data_dir();
    let (one, two) = (own_host(&dir).open().await.unwrap(), own_host(&dir).open().await.unwrap());
    let recipe = || Template::builder("base").run("sleep 1; date +%s%N > /tmp/a").run("sleep 1; cp /tmp/a /tmp/b");
    let ((first, _), (second, _)) = tokio::join!(built(&one, recipe(), "one"), built(&two, recipe(), "two"));
    let done = |log: &Log| cached(log).iter().filter(|cached| !**cached).count();
    assert_eq!(done(&first) + done(&second), 2, "{:?} {:?}", cached(&first), cached(&second));
    let (a, b) = (Sandbox::create(&one, "one").await.unwrap(), Sandbox::create(&one, "two").await.unwrap());
    assert_eq!(run(&a, "cat /tmp/b").await, run(&b, "cat /tmp/b").await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_build_that_is_cancelled_goes_on_behind_its_last_step() {
    vm_test_or_return!();
    let dir = own_data_dir();
    let host = own_host(&dir).open().await.unwrap();
    let recipe =
        |time: u32| Template::builder("base").run("touch /tmp/a").run("touch /tmp/b").run(format!("sleep {time}"));
    let (events, mut on_event) = log();
    let (began, begun) = tokio::sync::oneshot::channel();
    let mut began = Some(began);
    let build = recipe(1000).build(&host, "cancelled").on_event(move |event| {
        if event.step == Some(3)
            && let Some(began) = began.take()
        {
            began.send(()).unwrap();
        }
        on_event(event);
    });
    let building = tokio::spawn(async move { build.await });
    begun.await.unwrap();
    building.abort();
    assert!(building.await.unwrap_err().is_cancelled());
    assert_eq!(cached(&events), [false, false, false]);
    let gone = async {
        while !common::own_vmms().is_empty() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    // Other tests of this process have machines of their own.
    let _ = tokio::time::timeout(Duration::from_secs(1), gone).await;
    let (events, _) = built(&host, recipe(0), "cancelled").await;
    assert_eq!(cached(&events), [true, true, false]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dockerfile_builds_in_stages() {
    vm_test_or_return!();
    let dir = own_data_dir();
    let host = own_host(&dir).open().await.unwrap();
    let files = tempfile::tempdir().unwrap();
    std::fs::write(files.path().join("main.txt"), "main").unwrap();
    std::fs::write(files.path().join("secret.txt"), "left out").unwrap();
    std::fs::write(files.path().join(".dockerignore"), "secret.*\nDockerfile\n").unwrap();
    let text = r#"# syntax=docker/dockerfile:1
ARG BASE=base
FROM $BASE AS build
USER root
ARG VERSION=1
ENV OUT=/out
WORKDIR /src
COPY . .
RUN ls > /src/listing && mkdir -p $OUT/bin && echo "v$VERSION" > $OUT/bin/version && \
    # a comment between
    ln -s version $OUT/bin/link && chmod 750 $OUT/bin/version && chown 1000:1000 $OUT/bin/version

FROM base AS unused
RUN exit 1

FROM base
USER root
COPY --from=build /out/ /opt/
COPY --from=build --chmod=600 --chown=user:user /src/list* /src/main.txt /etc/app/
COPY <<EOF /etc/app/config
mode=${MODE:-plain}
EOF
RUN <<EOF
set -e
echo one > /root/heredoc
echo two >> /root/heredoc
EOF
SHELL ["/bin/bash", "-c"]
RUN [[ -n "$BASH_VERSION" ]] && pwd > /root/shell
HEALTHCHECK CMD true
EXPOSE 8000
ENTRYPOINT ["python3", "-m", "http.server"]
CMD ["8000"]
LABEL a=b
"#;
    let recipe = || Template::from_dockerfile_text(text, files.path()).unwrap().build_arg("VERSION", "3");
    let (events, took) = built(&host, recipe(), "staged").await;
    println!("a Dockerfile of two stages, with the boot: {took:?}");
    assert!(events.lock().unwrap().iter().any(|event| matches!(event.kind, BuildEventKind::Warning { .. })));
    let sandbox = Sandbox::create(&host, "staged").await.unwrap();
    let stat = run(&sandbox, "stat -c '%n %a %u %F' /opt/bin/* /etc/app/*; readlink /opt/bin/link").await;
    let expected = "/opt/bin/link 777 0 symbolic link\n/opt/bin/version 750 0 regular file\n\
                    /etc/app/config 644 0 regular file\n/etc/app/listing 600 1000 regular file\n\
                    /etc/app/main.txt 600 1000 regular file\nversion";
    assert_eq!(stat, expected);
    let read = run(&sandbox, "cat /opt/bin/version /etc/app/config /etc/app/listing /root/heredoc /root/shell").await;
    assert_eq!(read, "v3\nmode=plain\nlisting\nmain.txt\none\ntwo\n/");
    let (events, unchanged) = built(&host, recipe(), "staged").await;
    assert!(cached(&events).iter().all(|cached| *cached));
    println!("unchanged: {unchanged:?}");
    built(&host, recipe().start_from_image().ready(Ready::port(8000)), "started").await;
    let sandbox = Sandbox::create(&host, "started").await.unwrap();
    assert!(sandbox.connect(8000).await.is_ok());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_template_of_the_same_name_is_replaced_and_its_sandboxes_go_on() {
    vm_test_or_return!();
    let dir = own_data_dir();
    let host = own_host(&dir).open().await.unwrap();
    let recipe = |text: &str| Template::builder("base").run(format!("echo {text} > /tmp/which"));
    built(&host, recipe("old"), "named").await;
    let old = Sandbox::create(&host, "named").await.unwrap();
    built(&host, recipe("new"), "named").await;
    host.prune_steps(Duration::ZERO, 0).await.unwrap();
    host.collect_garbage().await.unwrap();
    let new = Sandbox::create(&host, "named").await.unwrap();
    assert_eq!(
        (run(&old, "cat /tmp/which").await, run(&new, "cat /tmp/which").await),
        ("old".to_owned(), "new".to_owned())
    );
    let old = old.pause().await.unwrap().resume().await.unwrap();
    assert_eq!(run(&old, "cat /tmp/which").await, "old");
    let refused = recipe("third").replace(false).build(&host, "named").await.unwrap_err();
    assert_eq!(refused.subject(), Some(Subject::Template("named".parse().unwrap())));
    assert!(matches!(recipe("image").build(&host, "base").await, Err(Error::AlreadyExists { .. })));
}

#[tokio::test(flavor = "multi_thread")]
async fn recipes_that_make_no_sense_are_refused() {
    vm_test_or_return!();
    let dir = own_data_dir();
    let host = own_host(&dir).open().await.unwrap();
    let docker = |text: &str| Template::from_dockerfile_text(text, dir.path());
    let owned = CopyStep::new("/etc/hostname", "/x").owner("nobody-here");
    let table: Vec<(wrenn_core::Result<TemplateBuilder>, &str)> = vec![
        (Ok(Template::builder("none")), "none"),
        (Ok(Template::builder("oci:/nowhere")), "could not use the image"),
        (Ok(Template::builder("base").ready(Ready::port(1))), "start command"),
        (Ok(Template::builder("base").start_from_image()), "ENTRYPOINT"),
        (Ok(Template::builder("base").env("A=B", "1")), "A=B"),
        (Ok(Template::builder("base").vcpus(0)), "vCPUs"),
        (Ok(Template::builder("base").run(RunStep::exec(Vec::<String>::new()))), "no command"),
        (Ok(Template::builder("base").run(RunStep::new("true").user("nobody-here"))), "nobody-here"),
        (Ok(Template::builder("base").copy_step(owned)), "nobody-here"),
        (docker("FROM base\nONBUILD RUN x"), "line 2"),
        (docker("FROM oci:/nowhere"), "could not use the image"),
        (docker("FROM base\nCOPY --from=oci:/later a b\n"), "could not use the image"),
        (docker("FROM base\nCOPY ../x y\n"), "leads out"),
        (docker("FROM base\nENV A=${B\n"), "line 2"),
        (docker("FROM base").map(|recipe| recipe.target("x")), "stage x"),
    ];
    for (recipe, said) in table {
        let error = match recipe {
            Ok(recipe) => recipe.network(NetworkPolicy::closed()).build(&host, "bad").await.unwrap_err(),
            Err(error) => error,
        };
        assert!(error.to_string().contains(said), "{said}: {error}");
    }
    assert!(matches!(Template::builder("base").build(&host, "No Name").await, Err(Error::InvalidInput { .. })));
    assert!(host.templates().await.unwrap().iter().all(|template| template.name().as_str() != "bad"));
}

/// The variable that has the data directory of the process which is killed.
const KILLED: &str = "WRENN_TEST_KILLED_BUILD";

#[tokio::test(flavor = "multi_thread")]
async fn a_build_whose_program_is_killed_leaves_nothing_half_made() {
    vm_test_or_return!();
    let recipe =
        |time: u32| Template::builder("base").run("touch /tmp/a").run("touch /tmp/b").run(format!("sleep {time}"));
    if let Some(dir) = std::env::var_os(KILLED) {
        let host = Host::builder().data_dir(dir).open().await.unwrap();
        recipe(1000).build(&host, "killed").on_event(|event| println!("@{event}")).await.unwrap();
        return;
    }
    let dir = own_data_dir();
    let mut child = tokio::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "a_build_whose_program_is_killed_leaves_nothing_half_made", "--nocapture"])
        .env(KILLED, dir.path())
        .stdout(std::process::Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut said = tokio::io::BufReader::new(child.stdout.take().unwrap());
    let mut line = String::new();
    while !line.contains("@[3] of 3") {
        line.clear();
        assert!(tokio::io::AsyncBufReadExt::read_line(&mut said, &mut line).await.unwrap() > 0, "it ended early");
    }
    child.kill().await.unwrap();
    let host = own_host(&dir).open().await.unwrap();
    host.collect_garbage().await.unwrap();
    assert!(host.damaged_records().await.unwrap().is_empty());
    let kept = std::fs::read_dir(dir.path().join("generations")).unwrap().flatten();
    let names: Vec<_> = kept.map(|entry| entry.file_name().into_string().unwrap()).collect();
    assert!(names.iter().all(|name| !name.starts_with("tmp-")) && names.len() <= 3, "{names:?}");
    assert!(matches!(Sandbox::create(&host, "killed").await, Err(Error::NotFound { .. })));
    let (events, _) = built(&host, recipe(0), "killed").await;
    assert_eq!(cached(&events), [true, true, false]);
}
