//! Whatever a stranger sends is answered, in bounds, and takes nothing down.

mod support;

use std::{cell::Cell, fs, io, time::Duration};

use futures::{StreamExt as _, stream};
use http_body_util::StreamBody;
use hyper::{
    Request,
    body::{Bytes, Frame},
    client::conn::http2,
};
use hyper_util::rt::{TokioExecutor, TokioIo};
use proptest::prelude::*;
use support::{
    Agent,
    wire::{request, runner, send},
};
use tokio::{net::TcpStream, time::timeout};

/// What a whole answer says: its status, its headers in lower case, its body.
fn parse(answer: &[u8]) -> (u16, String, Vec<u8>) {
    let end = answer.windows(4).position(|window| window == b"\r\n\r\n").expect("a whole head");
    let head = String::from_utf8_lossy(&answer[..end]).to_lowercase();
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).expect("a status");
    (status, head, answer[end + 4..].to_vec())
}

fn get(target: &str, header: &str) -> Vec<u8> {
    format!("GET {target} HTTP/1.1\r\nhost: guest\r\nconnection: close\r\n{header}\r\n").into_bytes()
}

#[test]
fn any_query_is_answered_or_refused() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let agent = Agent::start();
    let directory = tempfile::tempdir().unwrap();
    let inside = directory.path().join("in");
    fs::create_dir(&inside).unwrap();
    let file = inside.join("file");
    fs::write(&file, "here").unwrap();
    // The directory's own path stays as it is: beside it `nobody` may make directories, which would be left there.
    let mangled = (any::<prop::sample::Index>(), "[!-~]{0,3}").prop_map(move |(at, piece)| {
        let mut head = "path=".to_owned();
        let mut tail = "/file&username=root&signature=v1_x&signature_expiration=99999999999".to_owned();
        match at.index(head.len() + tail.len()) {
            at if at < head.len() => head.replace_range(at..=at, &piece),
            at => tail.replace_range(at - head.len()..=at - head.len(), &piece),
        }
        format!("{head}{}{tail}", inside.display())
    });
    // Whatever it names, `nobody` may not overwrite it.
    let queries =
        prop_oneof!["[!-~]{0,60}", "((path|username|signature|[a-z])=(%[0-9a-fA-F]{2}|[!-~]){0,9}&){0,4}", mangled];
    let routes = prop::sample::select(vec!["/files", "/events", "/envs", "/metrics", "/nothing"]);
    let checked = runner(400).run(&(routes, queries), |(route, query)| {
        // One that waits for an event would wait long.
        prop_assume!(route != "/events" || query.contains("after="));
        let query = query.replace('#', "%23");
        let answer = runtime.block_on(send(&agent, [get(&format!("{route}?{query}"), "").as_slice()]));
        let (status, _, body) = parse(&answer);
        prop_assert!(matches!(status, 200 | 400 | 401 | 403 | 404), "{} {}", status, String::from_utf8_lossy(&body));
        let upload = request(&format!("/files?username=nobody&{query}"), "application/octet-stream", b"x");
        let (status, _, body) = parse(&runtime.block_on(send(&agent, [upload.as_slice()])));
        prop_assert!(matches!(status, 200 | 400 | 401 | 403 | 404), "{} {}", status, String::from_utf8_lossy(&body));
        Ok(())
    });
    checked.unwrap();
    assert_eq!(fs::read_to_string(file).unwrap(), "here");
    assert_eq!(runtime.block_on(agent.shell("echo up")).unwrap().stdout_utf8(), "up\n");
}

#[test]
fn any_boundary_is_taken_or_refused() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let agent = Agent::start();
    let directory = tempfile::tempdir().unwrap();
    let route = format!("/files?path={}/file", directory.path().display());
    let body = |boundary: &str| {
        let head = "content-disposition: form-data; name=\"file\"; filename=\"a\"";
        format!("--{boundary}\r\n{head}\r\n\r\nabc\r\n--{boundary}--\r\n")
    };
    let upload = |content_type: &str, boundary: &str| {
        let request = request(&route, content_type, body(boundary).as_bytes());
        parse(&runtime.block_on(send(&agent, [request.as_slice()]))).0
    };
    let written = || fs::read_to_string(directory.path().join("file")).unwrap();
    for good in ["multipart/form-data; boundary=xyz", r#"multipart/form-data; charset=utf-8; boundary="xyz""#] {
        assert_eq!((upload(good, "xyz"), written().as_str()), (200, "abc"), "{good}");
    }
    let good = r#"multipart/form-data; boundary="xyz""#;
    let mangled = (any::<prop::sample::Index>(), "[ -~\t]{0,3}").prop_map(move |(at, piece)| {
        let mut kind = good.to_owned();
        let at = at.index(kind.len());
        kind.replace_range(at..=at, &piece);
        kind
    });
    let long = (60..5000_usize).prop_map(|length| format!("multipart/form-data; boundary={}", "x".repeat(length)));
    let kinds = prop_oneof![4 => mangled, 2 => "multipart/[ -~\t]{0,40}", 2 => "multipart/form-data; boundary=[ -~]{0,20}", 1 => long];
    let (taken, refused) = (Cell::new(0), Cell::new(0));
    let checked = runner(400).run(&(kinds, prop_oneof![Just("xyz".to_owned()), "[!-~]{0,5}"]), |(kind, boundary)| {
        match upload(&kind, &boundary) {
            200 => {
                taken.update(|count| count + 1);
                // What is not said to be in parts is a file as it is.
                let written = written();
                prop_assert!(written == "abc" || written == body(&boundary), "{} by {:?}", written, kind);
            }
            400 | 415 => refused.update(|count| count + 1),
            status => prop_assert!(false, "{} to {:?}", status, kind),
        }
        Ok(())
    });
    checked.unwrap();
    assert!(taken.get() > 10 && refused.get() > 100, "{taken:?} {refused:?}");
    assert_eq!(runtime.block_on(agent.shell("echo up")).unwrap().stdout_utf8(), "up\n");
}

#[test]
fn any_range_is_a_part_of_the_file_or_the_whole_of_it_or_refused() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let agent = Agent::start();
    let directory = tempfile::tempdir().unwrap();
    let contents: Vec<u8> = (0..1000_u32).map(|at| u8::try_from(at % 251).expect("a byte")).collect();
    fs::write(directory.path().join("file"), &contents).unwrap();
    let target = format!("/files?path={}/file&username=root", directory.path().display());
    let ranges = prop_oneof![
        "bytes=[0-9]{1,3}-[0-9]{0,3}",
        "bytes=-[0-9]{1,4}",
        "bytes=[-0-9, ]{0,24}",
        "(bytes|lines)?=?[ -~]{0,24}",
        "bytes=[0-9]{18,30}-[0-9]{0,30}",
    ];
    let checked = runner(400).run(&ranges, |range| {
        let answer = runtime.block_on(send(&agent, [get(&target, &format!("range: {range}\r\n")).as_slice()]));
        let (status, head, body) = parse(&answer);
        match status {
            200 => prop_assert_eq!(body, contents.clone()),
            206 => {
                let (_, told) = head.split_once("content-range: bytes ").expect("it says which part");
                let (part, total) = told.lines().next().unwrap_or_default().split_once('/').expect("of what");
                let (first, last) = part.split_once('-').expect("two ends");
                let (first, last): (usize, usize) = (first.parse().unwrap(), last.parse().unwrap());
                prop_assert_eq!(total, "1000");
                prop_assert_eq!(body, contents[first..=last].to_vec());
            }
            416 => prop_assert!(head.contains("content-range: bytes */1000")),
            _ => prop_assert!(false, "{} to {:?}", status, range),
        }
        Ok(())
    });
    checked.unwrap();
}

#[tokio::test]
async fn an_upload_that_is_reset_leaves_the_agent_to_others() {
    let agent = Agent::start();
    let directory = tempfile::tempdir().unwrap();
    let route = format!("http://guest/files?path={}/file", directory.path().display());
    for encoding in ["identity", "gzip"] {
        let stream = TokioIo::new(TcpStream::connect(agent.address).await.unwrap());
        let (mut sender, connection) = http2::handshake(TokioExecutor::new(), stream).await.unwrap();
        tokio::spawn(connection);
        // The beginning of a gzip's header, which is a file's as well; a body that fails resets its stream.
        let begin = stream::iter([Ok(Frame::data(Bytes::from_static(&[0x1f, 0x8b, 8])))]);
        let fail = stream::once(async {
            // Until the agent waits for more: what is reset before is not begun.
            tokio::time::sleep(Duration::from_millis(300)).await;
            Err(io::Error::other("broken off"))
        });
        let request = Request::post(&route).header("content-encoding", encoding);
        let request = request.header("content-type", "application/octet-stream");
        let request = request.body(StreamBody::new(begin.chain(Box::pin(fail)))).unwrap();
        let _ = sender.send_request(request).await;
        // The connection is there, and waits for what it may be told.
        let answer = timeout(Duration::from_secs(5), agent.call("GET", "/health", &[], "")).await;
        assert_eq!(answer.expect("it answers others").status(), 204, "{encoding}");
    }
    support::eventually("no file", || fs::read_dir(directory.path()).unwrap().next().is_none()).await;
}
