//! A request may arrive in any pieces: a network cuts where it likes.

mod support;

use proptest::{
    prelude::*,
    sample::{Index, subsequence},
};
use support::{
    Agent,
    exchange::{Call, Kind},
    session::Session,
    start,
    wire::{number, request, runner, send_slowly, text},
};
use tokio::runtime::Runtime;

/// Where a request is cut, besides anywhere: in the envelope of each of its frames.
#[derive(Clone, Debug)]
struct Cuts {
    anywhere: Vec<Index>,
    /// For each frame, some of the four places within its envelope.
    in_envelopes: Vec<Vec<usize>>,
}

impl Cuts {
    fn any(frames: usize) -> impl Strategy<Value = Self> {
        let anywhere = prop::collection::vec(any::<Index>(), 0..6);
        let in_envelopes = prop::collection::vec(subsequence(vec![1, 2, 3, 4], 1..=4), frames);
        (anywhere, in_envelopes).prop_map(|(anywhere, in_envelopes)| Self { anywhere, in_envelopes })
    }

    fn pieces<'a>(&self, call: &Call, whole: &'a [u8]) -> Vec<&'a [u8]> {
        let mut cuts = vec![0, whole.len()];
        cuts.extend(self.anywhere.iter().map(|cut| cut.index(whole.len())));
        let mut envelope = whole.len() - call.body().len();
        for (message, places) in call.messages.iter().zip(&self.in_envelopes) {
            cuts.extend(places.iter().map(|place| envelope + place));
            envelope += ENVELOPE_BYTES + message.len();
        }
        cuts.sort_unstable();
        cuts.dedup();
        cuts.windows(2).map(|pair| &whole[pair[0]..pair[1]]).collect()
    }
}

const ENVELOPE_BYTES: usize = 5;

/// Sends `call` in pieces, and returns its answer.
fn send_cut(runtime: &Runtime, agent: &Agent, call: &Call, cuts: &Cuts) -> Result<String, TestCaseError> {
    let whole = request(&format!("/{}", call.route), call.kind.content_type, &call.body());
    let answer = runtime.block_on(send_slowly(agent, cuts.pieces(call, &whole)));
    let answer = String::from_utf8_lossy(&answer).into_owned();
    prop_assert!(answer.starts_with("HTTP/1.1 200") && !answer.contains("error"), "{}", answer);
    Ok(answer)
}

#[test]
fn a_start_may_be_cut_anywhere() {
    let (runtime, agent) = (Runtime::new().unwrap(), Agent::start());
    let json = r#"{"process":{"cmd":"/bin/sh","args":["-c","echo first; exit 0"]},"stdin":false}"#;
    let process = [text(1, "/bin/sh"), text(2, "-c"), text(2, "echo first; exit 0")].concat();
    let binary = [text(1, process), number(4, 0)].concat();
    let route = "process.Process/Start";
    for (call, output) in [
        (Call::new(route, Kind::JSON_STREAM, [json.as_bytes()]), r#"{"stdout":"Zmlyc3QK"}"#),
        (Call::new(route, Kind::PROTO_STREAM, [&binary]), "first\n"),
    ] {
        let checked = runner(30).run(&Cuts::any(1), |cuts| {
            let answer = send_cut(&runtime, &agent, &call, &cuts)?;
            prop_assert!(answer.contains(output) && answer.contains("exit status 0"), "{}", answer);
            Ok(())
        });
        checked.unwrap();
    }
}

#[test]
fn a_stream_of_several_frames_may_be_cut_anywhere() {
    let (runtime, agent) = (Runtime::new().unwrap(), Agent::start());
    let mut echo = start("cat", &[]);
    (echo.stdin, echo.tag) = (Some(true), Some("echo".to_owned()));
    let mut echo = runtime.block_on(Session::start(&agent, echo)).unwrap();
    let stdin = |piece: &str| text(2, text(2, text(1, piece)));
    // "one ", "two " and "three\n".
    let json = [
        r#"{"start":{"process":{"tag":"echo"}}}"#,
        r#"{"data":{"input":{"stdin":"b25lIA=="}}}"#,
        r#"{"keepalive":{}}"#,
        r#"{"data":{"input":{"stdin":"dHdvIA=="}}}"#,
        r#"{"data":{"input":{"stdin":"dGhyZWUK"}}}"#,
    ];
    let binary = [text(1, text(1, text(2, "echo"))), stdin("one "), text(3, ""), stdin("two "), stdin("three\n")];
    let route = "process.Process/StreamInput";
    let calls = [Call::new(route, Kind::JSON_STREAM, json), Call::new(route, Kind::PROTO_STREAM, binary)];
    let mut expected = String::new();
    for call in calls {
        let cases = prop::collection::vec(Cuts::any(call.messages.len()), 30);
        let checked = runner(1).run(&cases, |cases| {
            for cuts in cases {
                send_cut(&runtime, &agent, &call, &cuts)?;
            }
            Ok(())
        });
        checked.unwrap();
        expected += &"one two three\n".repeat(30);
        runtime.block_on(echo.expect(&expected));
    }
    assert_eq!(echo.seen.stdout_utf8(), expected);
}
