//! Lines are told soon, and many of them at little cost.

mod support;

use std::{
    fs,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use connectrpc::ConnectError;
use support::{Agent, Collected, session::Session, start};

/// What a program did, how many pieces its output came in, and the time that it took.
async fn pieces(agent: &Agent, args: &[&str]) -> Result<(Collected, usize, Duration), ConnectError> {
    let begun = Instant::now();
    let mut session = Session::start(agent, start(args[0], &args[1..])).await?;
    let mut pieces = 0;
    loop {
        let before = session.seen.stdout.len();
        if !session.next().await? {
            break;
        }
        pieces += usize::from(session.seen.stdout.len() > before);
    }
    Ok((std::mem::take(&mut session.seen), pieces, begun.elapsed()))
}

/// What the agent has worked so far, in hundredths of a second.
fn worked(agent: &Agent) -> u64 {
    let stat = fs::read_to_string(format!("/proc/{}/stat", agent.pid())).expect("Linux says it");
    let (_, after_name) = stat.rsplit_once(") ").expect("Linux says it");
    after_name.split(' ').skip(11).take(2).map(|ticks| ticks.parse::<u64>().expect("Linux says it")).sum()
}

/// As a program in an emulated guest writes them: not many in a moment, and each with its own call.
#[tokio::test]
async fn lines_that_come_one_after_the_other_are_gathered() {
    let agent = Agent::start();
    let program =
        "import os, time\nfor number in range(4000):\n  os.write(1, b'line %d\\n' % number)\n  time.sleep(0.0004)";
    let before = worked(&agent);
    let (done, pieces, took) = pieces(&agent, &["python3", "-c", program]).await.unwrap();
    println!("measured: 4000 slow lines in {pieces} pieces, {took:?}, {} ticks", worked(&agent) - before);
    let expected: String = (0..4000).map(|number| format!("line {number}\n")).collect();
    assert_eq!(done.stdout_utf8(), expected);
    assert!(pieces < 1500, "{pieces} pieces");
}

#[tokio::test]
async fn as_many_lines_as_a_shell_can_write_are_gathered() {
    let agent = Agent::start();
    let before = worked(&agent);
    let line = "i=0; while [ $i -lt 20000 ]; do echo $i; i=$((i+1)); done";
    let (done, pieces, took) = pieces(&agent, &["sh", "-c", line]).await.unwrap();
    println!("measured: 20000 echoes in {pieces} pieces, {took:?}, {} ticks", worked(&agent) - before);
    let expected: String = (0..20_000).map(|number| format!("{number}\n")).collect();
    assert_eq!(done.stdout_utf8(), expected);
    assert!(pieces < 2000, "{pieces} pieces");
}

#[tokio::test]
async fn a_line_that_comes_alone_is_told_at_once() {
    let agent = Agent::start();
    let program = "import os, time\nfor _ in range(40):\n  os.write(1, b'%d\\n' % time.time_ns())\n  time.sleep(0.03)";
    let mut session = Session::start(&agent, start("python3", &["-c", program])).await.unwrap();
    let mut late = Vec::new();
    loop {
        let before = session.seen.stdout.len();
        if !session.next().await.unwrap() {
            break;
        }
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
        let text = String::from_utf8_lossy(&session.seen.stdout[before..]).into_owned();
        late.extend(text.lines().map(|line| now.saturating_sub(Duration::from_nanos(line.parse().unwrap()))));
    }
    late.sort();
    println!("measured: a line alone takes {:?}, and the slowest of 40 {:?}", late[20], late[39]);
    assert_eq!(late.len(), 40);
    assert!(late[20] < Duration::from_millis(20), "{late:?}");
}
