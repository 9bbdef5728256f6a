//! What the repository's fuzzer calls: it takes any bytes as a proxy's answers, and panics where a promise is broken.

use std::net::SocketAddr;

use futures::FutureExt;
use tokio::io::{Join, Sink, join, sink};

use crate::egress::proxy::credentials::Filled;
use crate::egress::proxy::not_made::NotMade;
use crate::egress::proxy::{http, socks};

/// Panics where a promise about these answers is broken.
pub(in crate::egress) fn check_answers(bytes: &[u8]) {
    let to = SocketAddr::from(([93, 184, 216, 34], 443));
    let credentials = Filled { username: "ada".to_owned(), password: "key".to_owned() };
    for told in [None, Some(&credentials)] {
        let by_http = taken(bytes, async |stream| http::connect(stream, to, told).await);
        assert!(by_http.is_none_or(says_so), "{by_http:?} is no answer that there is a connection");
        let by_socks = taken(bytes, async |stream| socks::connect(stream, to, told).await);
        let len = by_socks.map(|taken| (taken.len(), answer_len(taken, told.is_some())));
        assert!(len.is_none_or(|(taken, answer)| Some(taken) == answer), "{len:?} bytes of {by_socks:?}");
    }
}

type Stream<'a> = Join<&'a [u8], Sink>;

/// What is read of the answers until there is a connection; `None` if there is none.
fn taken<'a>(answers: &'a [u8], connect: impl AsyncFnOnce(&mut Stream<'a>) -> Result<(), NotMade>) -> Option<&'a [u8]> {
    let mut stream = join(answers, sink());
    let made = connect(&mut stream).now_or_never().expect("all that is waited for is there");
    let rest = stream.reader().len();
    made.ok().map(|()| &answers[..answers.len() - rest])
}

/// Whether the last of some heads of HTTP is of a success.
fn says_so(heads: &[u8]) -> bool {
    let Some(heads) = heads.strip_suffix(b"\n\r\n").or_else(|| heads.strip_suffix(b"\n\n")) else { return false };
    let begin =
        (0..heads.len()).rev().find(|&at| heads[at..].starts_with(b"\n\r\n") || heads[at..].starts_with(b"\n\n"));
    let last = begin.map_or(heads, |begin| &heads[begin + 1..]).trim_ascii_start();
    let mut words = last.splitn(3, |byte| *byte == b' ');
    let (version, status) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    version.starts_with(b"HTTP/1.") && status.starts_with(b"2")
}

/// How long the answers of SOCKS5 are that begin like this and say that there is a connection.
fn answer_len(answers: &[u8], is_told: bool) -> Option<usize> {
    let (method, rest) = match answers {
        [5, 0, rest @ ..] => (2, rest),
        [5, 2, _, 0, rest @ ..] if is_told => (4, rest),
        _ => return None,
    };
    let address = match rest {
        [5, 0, _, 1, ..] => 4,
        [5, 0, _, 3, len, ..] => 1 + usize::from(*len),
        [5, 0, _, 4, ..] => 16,
        _ => return None,
    };
    Some(method + 4 + address + 2)
}
