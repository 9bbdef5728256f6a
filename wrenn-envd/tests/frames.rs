//! Whatever frames a stranger sends are answered, in each protocol and codec, and take nothing down.

mod support;

use std::cell::Cell;

use proptest::{
    prelude::*,
    sample::{Index, select},
};
use support::{
    Agent,
    exchange::{Call, Kind},
    session::Session,
    start,
    wire::{frame, frames, number, runner, text},
};
use wrenn_envd::proto::process::{ListRequest, PTY};

/// The flag of a stream's last message.
const END: u8 = 2;

/// Calls that are right, of every shape: unary and streams, one frame and several, in each codec.
fn seeds() -> Vec<Call> {
    let by_tag = |tag: &str| text(1, text(2, tag));
    let stdin = text(2, text(1, "piece"));
    let unary = [
        ("process.Process/List", "{}", Vec::new()),
        (
            "process.Process/SendInput",
            r#"{"process":{"tag":"reader"},"input":{"stdin":"cGllY2U="}}"#,
            [by_tag("reader"), stdin.clone()].concat(),
        ),
        (
            "process.Process/Update",
            r#"{"process":{"tag":"terminal"},"pty":{"size":{"cols":100,"rows":40}}}"#,
            [by_tag("terminal"), text(2, text(1, [number(1, 100), number(2, 40)].concat()))].concat(),
        ),
        ("filesystem.Filesystem/Stat", r#"{"path":"/usr"}"#, text(1, "/usr")),
        ("filesystem.Filesystem/ListDir", r#"{"path":"/usr","depth":1}"#, [text(1, "/usr"), number(2, 1)].concat()),
    ];
    let streams = [
        (
            "process.Process/Start",
            vec![r#"{"process":{"cmd":"echo","args":["one"],"envs":{"A":"1"},"cwd":"/"},"stdin":false}"#],
            vec![
                [
                    text(
                        1,
                        [text(1, "echo"), text(2, "one"), text(3, [text(1, "A"), text(2, "1")].concat()), text(4, "/")]
                            .concat(),
                    ),
                    number(4, 0),
                ]
                .concat(),
            ],
        ),
        (
            "process.Process/StreamInput",
            vec![
                r#"{"start":{"process":{"tag":"reader"}}}"#,
                r#"{"data":{"input":{"stdin":"cGllY2U="}}}"#,
                r#"{"keepalive":{}}"#,
                r#"{"data":{"input":{"stdin":"cGllY2U="}}}"#,
            ],
            vec![text(1, by_tag("reader")), text(2, stdin.clone()), text(3, ""), text(2, stdin)],
        ),
        (
            "filesystem.Filesystem/WatchDir",
            vec![r#"{"path":"/usr","recursive":false}"#],
            vec![[text(1, "/usr"), number(2, 0)].concat()],
        ),
    ];
    let mut seeds = Vec::new();
    for (route, json, binary) in unary {
        seeds.push(Call::new(route, Kind::JSON, [json]));
        seeds.push(Call::new(route, Kind::PROTO, [&binary]));
        seeds.push(Call::new(route, Kind::GRPC, [&binary]));
    }
    for (route, json, binary) in streams {
        seeds.push(Call::new(route, Kind::JSON_STREAM, json));
        seeds.push(Call::new(route, Kind::PROTO_STREAM, &binary));
        seeds.push(Call::new(route, Kind::GRPC, &binary));
    }
    seeds
}

/// A process that reads for ever, and one at a terminal.
async fn companions(agent: &Agent) -> [Session; 2] {
    let mut reader = start("sh", &["-c", "exec cat >/dev/null"]);
    (reader.stdin, reader.tag) = (Some(true), Some("reader".to_owned()));
    let mut terminal = start("sleep", &["600"]);
    (terminal.pty, terminal.tag) = (PTY::default().into(), Some("terminal".to_owned()));
    let [reader, terminal] = [Session::start(agent, reader).await, Session::start(agent, terminal).await];
    [reader.expect("it starts"), terminal.expect("it starts")]
}

#[tokio::test]
async fn a_right_frame_is_taken_in_every_protocol_and_codec() {
    let agent = Agent::start();
    let _companions = companions(&agent).await;
    for seed in seeds() {
        let answer = seed.send(&agent, &seed.body()).await;
        assert_eq!(answer.and_then(|answer| answer.refusal()), Ok(None), "{seed:?}");
    }
}

/// One change of a call, somewhere in its bytes.
#[derive(Clone, Debug)]
enum Change {
    Set(Index, u8),
    Insert(Index, u8),
    Remove(Index, usize),
    Repeat(Index, usize),
}

impl Change {
    fn any() -> impl Strategy<Value = Self> {
        // Those that mean something to a codec, and any other.
        let byte = || prop_oneof![any::<u8>(), select(b"{}[]\",:0-e\\\0\x01\x08\x0a\x12\x80\xff".to_vec())];
        prop_oneof![
            3 => (any::<Index>(), byte()).prop_map(|(at, byte)| Self::Set(at, byte)),
            1 => (any::<Index>(), byte()).prop_map(|(at, byte)| Self::Insert(at, byte)),
            1 => (any::<Index>(), 1..9_usize).prop_map(|(at, count)| Self::Remove(at, count)),
            1 => (any::<Index>(), 1..40_usize).prop_map(|(at, count)| Self::Repeat(at, count)),
        ]
    }

    fn make(&self, bytes: &mut Vec<u8>) {
        if bytes.is_empty() {
            return bytes.push(b'{');
        }
        let end = |at: usize, count: usize| (at + count).min(bytes.len());
        match *self {
            Self::Set(at, byte) => {
                let at = at.index(bytes.len());
                bytes[at] = byte;
            }
            Self::Insert(at, byte) => bytes.insert(at.index(bytes.len() + 1), byte),
            Self::Remove(at, count) => {
                let at = at.index(bytes.len());
                bytes.drain(at..end(at, count));
            }
            Self::Repeat(at, count) => {
                let at = at.index(bytes.len());
                let piece = bytes[at..end(at, count)].to_vec();
                bytes.splice(at..at, piece);
            }
        }
    }
}

/// What a stranger makes of a right call.
#[derive(Clone, Debug)]
struct Mangling {
    /// Within a message, whose envelope stays true, so that the codec gets to see it.
    within: Vec<(Index, Change)>,
    /// Anywhere, envelopes too.
    anywhere: Vec<Change>,
    cut: Option<Index>,
}

impl Mangling {
    fn any() -> impl Strategy<Value = Self> {
        let within = prop::collection::vec((any::<Index>(), Change::any()), 0..4);
        let anywhere = prop_oneof![3 => Just(Vec::new()), 2 => prop::collection::vec(Change::any(), 1..4)];
        let cut = prop::option::weighted(0.15, any::<Index>());
        (within, anywhere, cut).prop_map(|(within, anywhere, cut)| Self { within, anywhere, cut })
    }

    fn body(&self, seed: &Call) -> Vec<u8> {
        let mut seed = seed.clone();
        for (message, change) in &self.within {
            let message = message.index(seed.messages.len());
            change.make(&mut seed.messages[message]);
        }
        let mut body = seed.body();
        self.anywhere.iter().for_each(|change| change.make(&mut body));
        if let Some(cut) = self.cut {
            body.truncate(cut.index(body.len() + 1));
        }
        body
    }
}

#[test]
fn no_frame_takes_the_agent_down() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let agent = Agent::start();
    let _companions = runtime.block_on(companions(&agent));
    let (taken, refused) = (Cell::new(0), Cell::new(0));
    let checked = runner(800).run(&(select(seeds()), Mangling::any()), |(seed, mangling)| {
        let answer = runtime.block_on(seed.send(&agent, &mangling.body(&seed)));
        match answer.and_then(|answer| answer.refusal()) {
            Ok(None) => taken.update(|count| count + 1),
            Ok(Some(_)) => refused.update(|count| count + 1),
            Err(malformed) => return Err(TestCaseError::fail(malformed)),
        }
        Ok(())
    });
    checked.unwrap();
    assert!(taken.get() > 100 && refused.get() > 300, "{taken:?} {refused:?}");
    let alive = runtime.block_on(agent.shell("echo up")).unwrap();
    assert_eq!((alive.stdout_utf8().as_str(), alive.exit_code()), ("up\n", 0));
    let listed = runtime.block_on(agent.client().list(ListRequest::default())).unwrap().into_owned();
    let tags: Vec<_> = listed.processes.iter().filter_map(|process| process.tag.as_deref()).collect();
    assert_eq!(tags, ["reader", "terminal"]);
}

#[tokio::test]
async fn a_broken_envelope_of_a_stream_is_refused_with_its_reason() {
    let agent = Agent::start();
    let message = br#"{"path":"/tmp"}"#;
    let whole = frame(0, message);
    let cut_off = whole[..whole.len() - 4].to_vec();
    let huge = [&[0, 0xff, 0xff, 0xff, 0xff][..], message].concat();
    for (what, body, code) in [
        ("a message that is cut off", cut_off, "invalid_argument"),
        ("a header that is cut off", whole[..3].to_vec(), "invalid_argument"),
        ("no message", Vec::new(), "unimplemented"),
        ("two messages", [whole.clone(), whole.clone()].concat(), "unimplemented"),
        ("no JSON", frame(0, b"{path"), "invalid_argument"),
        ("JSON of another shape", frame(0, br#"{"path":7}"#), "invalid_argument"),
        ("compressed with nothing", frame(1, message), "internal"),
        ("more than is taken", huge, "resource_exhausted"),
    ] {
        for route in ["/filesystem.Filesystem/WatchDir", "/process.Process/Start"] {
            let headers = [("content-type", "application/connect+json"), ("connect-protocol-version", "1")];
            let answer = agent.call("POST", route, &headers, body.clone()).await;
            let seen = frames(answer.body());
            assert_eq!((seen.len(), seen[0].0), (1, END), "{route}, {what}: {seen:?}");
            let end: serde_json::Value = serde_json::from_slice(&seen[0].1).unwrap();
            assert_eq!(end["error"]["code"], code, "{route}, {what}: {end}");
            assert!(end["error"]["message"].as_str().is_some_and(|message| !message.is_empty()), "{what}");
        }
    }
    assert_eq!(agent.shell("echo up").await.unwrap().stdout_utf8(), "up\n");
}
