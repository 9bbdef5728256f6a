//! The guest's files, watches, terminals and ports, from the host.

mod common;

use std::collections::BTreeSet;
use std::io;
use std::time::{Duration, Instant};

use common::{run, sandbox};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use wrenn_core::{AgentError, ChangeKind, Error, Event, FileKind, PtySize, Subject};

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_is_read_during_a_pause_is_an_error_and_not_an_end() {
    vm_test_or_return!();
    let (_host, sandbox) = sandbox().await;
    run(&sandbox, "truncate -s 100M long").await;
    let mut reader = sandbox.files().open("long").await.unwrap();
    let mut writer = sandbox.files().create("half").await.unwrap();
    writer.write_all(b"half").await.unwrap();
    let paused = sandbox.pause().await.unwrap();
    let mut nowhere = tokio::io::sink();
    let rest = tokio::time::timeout(Duration::from_secs(20), tokio::io::copy(&mut reader, &mut nowhere));
    assert_eq!(rest.await.unwrap().unwrap_err().kind(), io::ErrorKind::ConnectionAborted);
    let shut = tokio::time::timeout(Duration::from_secs(20), writer.shutdown()).await;
    assert_eq!(shut.unwrap().unwrap_err().kind(), io::ErrorKind::ConnectionAborted);
    let sandbox = paused.resume().await.unwrap();
    assert!(!sandbox.files().exists("half").await.unwrap());
    sandbox.kill().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn files_are_made_looked_at_listed_renamed_and_removed() {
    vm_test_or_return!();
    let (_host, sandbox) = sandbox().await;
    let files = sandbox.files().metadata("origin", "a test");
    let name = "tree/deep/naïve file+%.txt";
    files.write(name, "contents").await.unwrap();
    files.make_dir("tree/empty").await.unwrap();
    run(&sandbox, "ln -s deep tree/link; ln -s nowhere tree/broken; chmod 640 'tree/deep/naïve file+%.txt'").await;

    let entry = files.stat(name).await.unwrap();
    assert_eq!((entry.name.as_str(), entry.kind, entry.len), ("naïve file+%.txt", FileKind::File, 8));
    assert_eq!(
        (entry.mode, entry.owner.as_str(), entry.path.as_str()),
        (0o640, "user", "/home/user/tree/deep/naïve file+%.txt")
    );
    assert_eq!(entry.metadata["origin"], "a test");
    assert!(entry.modified.unwrap().elapsed().unwrap_or_default() < Duration::from_secs(60));
    let link = files.stat("tree/link").await.unwrap();
    assert_eq!((link.kind, link.symlink_target.as_deref()), (FileKind::Directory, Some("/home/user/tree/deep")));

    let names = |entries: Vec<wrenn_core::FileEntry>| {
        entries.into_iter().map(|entry| entry.path.replace("/home/user/", "")).collect::<BTreeSet<_>>()
    };
    let one = ["tree/deep", "tree/empty", "tree/link", "tree/broken"].map(str::to_owned);
    assert_eq!(names(files.list("tree").await.unwrap()), BTreeSet::from(one.clone()));
    let two = names(files.list_levels("tree", 2).await.unwrap());
    assert_eq!(two, BTreeSet::from_iter(one.into_iter().chain([name.to_owned()])));

    files.rename(name, "elsewhere/new").await.unwrap();
    assert!(!files.exists(name).await.unwrap() && files.exists("elsewhere/new").await.unwrap());
    let mut part = String::new();
    files.open_at("elsewhere/new", 3).await.unwrap().read_to_string(&mut part).await.unwrap();
    assert_eq!(part, "tents");
    files.remove("tree").await.unwrap();
    assert!(!files.exists("tree").await.unwrap());
    files.remove("tree").await.unwrap();
    assert!(!files.read("/proc/version").await.unwrap().is_empty(), "a file that claims no length");
    sandbox.kill().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_on_files_that_cannot_be_done_says_why() {
    vm_test_or_return!();
    let (_host, sandbox) = sandbox().await;
    let files = sandbox.files();
    for missing in
        [files.read("none").await.map(drop), files.open("none").await.map(drop), files.stat("none").await.map(drop)]
    {
        assert!(matches!(&missing, Err(Error::NotFound { message, .. }) if message.contains("none")), "{missing:?}");
    }
    for invalid in [
        files.read("nul\0").await.map(drop),
        files.read("/dev/zero").await.map(drop),
        files.clone().as_user("ghost").stat("/").await.map(drop),
        files.open_at("/etc/passwd", 1 << 40).await.map(drop),
        // It does not say how long it is, and is too long to be read first.
        files.open_at("/proc/kallsyms", 5).await.map(drop),
        files.list("/etc/passwd").await.map(drop),
        files.clone().metadata("key", "né").write("x", "").await,
    ] {
        assert!(matches!(invalid, Err(Error::InvalidInput { .. })), "{invalid:?}");
    }
    let forbidden = files.write("/etc/forbidden", "").await;
    let code = |result: &Result<(), Error>| match result {
        Err(Error::Agent { source: AgentError::Refused { code, .. }, .. }) => code.clone(),
        other => panic!("{other:?}"),
    };
    assert_eq!(code(&forbidden), "403");
    assert_eq!(code(&files.make_dir("/etc").await), "already_exists");
    files.as_user("root").write("/etc/allowed", "").await.unwrap();

    // Streams say it, too, at the latest in the end.
    let refused = sandbox.files().write_from("/etc/forbidden", tokio::io::repeat(1).take(3 << 20)).await.map(drop);
    assert_eq!(code(&refused), "403");
    let full = sandbox.files().write_from("/dev/shm/full", tokio::io::repeat(1).take(1 << 30)).await.map(drop);
    assert_eq!(code(&full), "507", "a disk that is full");
    run(&sandbox, "test ! -e /dev/shm/full && test -z \"$(ls -A /dev/shm)\"").await;
    sandbox.kill().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_is_not_shut_down_stays_as_it_was() {
    vm_test_or_return!();
    let (_host, sandbox) = sandbox().await;
    let files = sandbox.files();
    files.write("kept", "before").await.unwrap();
    let mut writer = files.create("kept").await.unwrap();
    writer.write_all(&[b'x'; 700_000]).await.unwrap();
    assert_eq!(files.read("kept").await.unwrap(), "before");
    drop(writer);
    let clean =
        "for i in $(seq 100); do [ \"$(ls -A | grep -c wrenn-upload)\" = 0 ] && exit 0; sleep 0.1; done; ls -A; exit 1";
    run(&sandbox, clean).await;
    assert_eq!(files.read("kept").await.unwrap(), "before");
    let mut writer = files.create("kept").await.unwrap();
    writer.write_all(b"after").await.unwrap();
    writer.shutdown().await.unwrap();
    assert_eq!(files.read("kept").await.unwrap(), "after");
    assert!(writer.write_all(b"more").await.is_err() && writer.shutdown().await.is_err());
    sandbox.kill().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn changes_are_told_as_they_happen_and_new_directories_are_watched() {
    vm_test_or_return!();
    let (_host, sandbox) = sandbox().await;
    run(&sandbox, "mkdir -p watched/sub").await;
    let mut watcher = sandbox.watch("watched").recursive().start().await.unwrap();
    run(&sandbox, "cd watched; echo 1 > sub/a; mkdir new; echo 2 > new/b; mv sub/a sub/c; chmod 600 sub/c; rm sub/c")
        .await;
    let expected = [
        (ChangeKind::Created, "sub/a"),
        (ChangeKind::Written, "sub/a"),
        (ChangeKind::Created, "new"),
        (ChangeKind::Created, "new/b"),
        (ChangeKind::RenamedAway, "sub/a"),
        (ChangeKind::Created, "sub/c"),
        (ChangeKind::Attributes, "sub/c"),
        (ChangeKind::Removed, "sub/c"),
    ];
    let mut missing: Vec<_> = expected.map(|(kind, path)| (kind, path.to_owned())).into();
    while !missing.is_empty() {
        let change = tokio::time::timeout(Duration::from_secs(20), watcher.next()).await;
        let change = change.unwrap_or_else(|_| panic!("not told: {missing:?}")).unwrap().unwrap();
        missing.retain(|(kind, path)| (*kind, path) != (change.kind, &change.path));
    }
    run(&sandbox, "rm -r watched").await;
    let mut last = None;
    while let Some(change) = watcher.next().await.unwrap() {
        last = Some((change.kind, change.path));
    }
    assert_eq!(last, Some((ChangeKind::Removed, ".".to_owned())));
    assert!(matches!(sandbox.watch("none").start().await, Err(Error::NotFound { .. })));
    let mut watcher = sandbox.watch("/home/user").start().await.unwrap();
    let _paused = sandbox.pause().await.unwrap();
    assert!(matches!(watcher.next().await, Err(Error::InvalidState { .. })));
}

/// Reads a terminal until a text has come.
async fn until(child: &mut wrenn_core::Child, text: &str) -> String {
    let mut seen = String::new();
    while !seen.contains(text) {
        match tokio::time::timeout(Duration::from_secs(20), child.next_event()).await {
            Ok(Ok(Some(Event::Pty(bytes)))) => seen.push_str(&String::from_utf8_lossy(&bytes)),
            other => panic!("{other:?} after {seen:?}"),
        }
    }
    seen
}

#[tokio::test(flavor = "multi_thread")]
async fn a_terminal_is_typed_at_resized_and_survives_a_pause() {
    vm_test_or_return!();
    let (_host, sandbox) = sandbox().await;
    let mut shell =
        sandbox.pty(PtySize { columns: 100, rows: 40 }).env("PS1", "$ ").tag("shell").spawn().await.unwrap();
    shell.write_stdin("stty size; tty\n").await.unwrap();
    let seen = until(&mut shell, "/dev/pts/").await;
    assert!(seen.contains("40 100"), "{seen:?}");
    shell.resize(PtySize { columns: 33, rows: 11 }).await.unwrap();
    shell.write_stdin("stty size; mark=kept\n").await.unwrap();
    until(&mut shell, "11 33").await;

    let sandbox = sandbox.pause().await.unwrap().resume().await.unwrap();
    shell.reattach(&sandbox).await.unwrap();
    shell.write_stdin("echo $mark-$mark\n").await.unwrap();
    until(&mut shell, "kept-kept").await;
    // One who did not start it types as well.
    let second = sandbox.attach_from("shell", shell.offset()).await.unwrap();
    second.write_stdin("echo and-$((40+2))\n").await.unwrap();
    until(&mut shell, "and-42").await;
    shell.close_stdin().await.unwrap_err();
    shell.write_stdin("exit\n").await.unwrap();
    assert!(shell.wait().await.unwrap().success());

    let zero = sandbox.pty(PtySize { columns: 0, rows: 1 }).spawn().await;
    assert!(matches!(zero, Err(Error::InvalidInput { .. })), "{zero:?}");
    let piped = sandbox.command("cat").stdin_piped().spawn().await.unwrap();
    piped.resize(PtySize::default()).await.unwrap_err();
    let attached = sandbox.attach(piped.pid()).await.unwrap();
    attached.write_stdin("x").await.unwrap();
    let deaf = sandbox.command("sleep").arg("600").spawn().await.unwrap();
    let refused = sandbox.attach(deaf.pid()).await.unwrap().write_stdin("x").await.unwrap_err();
    let Error::Agent { source, .. } = &refused else { panic!("{refused:?}") };
    assert!(source.to_string().contains("closed"), "{source}");
    sandbox.kill().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_port_of_the_guest_is_listed_and_reached() {
    vm_test_or_return!();
    let (_host, sandbox) = sandbox().await;
    let server = "python3 -c \"
import http.server, threading
for address, port in (('127.0.0.1', 8001), ('0.0.0.0', 8002)):
    server = http.server.ThreadingHTTPServer((address, port), http.server.SimpleHTTPRequestHandler)
    threading.Thread(target=server.serve_forever).start()
print('ready', flush=True)\"";
    run(&sandbox, "mkdir www; echo hello > www/index.html").await;
    let mut server = sandbox.command("sh").args(["-c", server]).current_dir("/home/user/www").spawn().await.unwrap();
    assert!(matches!(server.next_event().await.unwrap(), Some(Event::Stdout(_))));
    let ports = sandbox.ports().await.unwrap();
    let own = |port: u16, ports: &[wrenn_core::Port]| ports.iter().find(|known| known.number == port).copied();
    assert!(own(8001, &ports).is_some() && own(49983, &ports).is_none(), "{ports:?}");
    assert!(!own(8002, &ports).unwrap().loopback_only, "{ports:?}");
    for port in [8002, 8001] {
        let deadline = Instant::now() + Duration::from_secs(10);
        let mut stream = loop {
            match sandbox.connect(port).await {
                Ok(stream) => break stream,
                Err(error) => assert!(Instant::now() < deadline, "{port}: {error:?}"),
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        };
        stream.write_all(b"GET / HTTP/1.0\r\n\r\n").await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        assert!(answer.ends_with("hello\n"), "{answer}");
    }
    let refused = sandbox.connect(8003).await.unwrap_err();
    assert!(matches!(refused, Error::NotFound { subject: Some(Subject::Port(8003)), .. }), "{refused:?}");
    sandbox.kill().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn two_hundred_commands_run_at_once_and_others_are_still_answered() {
    vm_test_or_return!();
    let (_host, sandbox) = sandbox().await;
    // Each has a connection to itself, and waits for its word.
    let mut children = Vec::new();
    for number in 0..250 {
        let echo = format!("read word; echo {number} $word");
        children.push(sandbox.command("sh").args(["-c", &echo]).stdin_piped().spawn().await.unwrap());
    }
    assert_eq!(sandbox.processes().await.unwrap().len(), 250);
    assert_eq!(run(&sandbox, "echo answered").await, "answered");
    let together = children.into_iter().enumerate().map(|(number, mut child)| {
        tokio::spawn(async move {
            child.write_stdin("word\n").await.unwrap();
            let mut out = Vec::new();
            while let Some(event) = child.next_event().await.unwrap() {
                match event {
                    Event::Stdout(bytes) => out.extend_from_slice(&bytes),
                    Event::Exit(status) => assert!(status.success(), "{status}"),
                    other => panic!("{other:?}"),
                }
            }
            assert_eq!(String::from_utf8(out).unwrap(), format!("{number} word\n"));
        })
    });
    for task in together.collect::<Vec<_>>() {
        task.await.unwrap();
    }
    let collected = (0..200).map(|number| {
        let sandbox = sandbox.clone();
        tokio::spawn(async move { (number, run(&sandbox, &format!("echo {number}")).await) })
    });
    for task in collected.collect::<Vec<_>>() {
        let (number, out) = task.await.unwrap();
        assert_eq!(out, number.to_string());
    }
    sandbox.kill().await.unwrap();
}
