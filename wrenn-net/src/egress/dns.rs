//! A guest's questions for names, whichever server it asks.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hickory_resolver::proto::op::{Message, MessageType, OpCode, Query, ResponseCode};
use hickory_resolver::proto::rr::{DNSClass, Record, RecordType};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::egress::names::{Known, address_of};
use crate::egress::shared::{Destination, Shared};
use crate::policy::{NetworkPolicy, Protocol, Refusal};

/// The answer to a question that came as a datagram; `None` if it is none.
pub(super) async fn answer_datagram(shared: &Shared, question: &[u8]) -> Option<Vec<u8>> {
    let Ok(question) = Message::from_vec(question) else { return unreadable(question)?.to_vec().ok() };
    let answer = answer(shared, &question).await?;
    let bytes = answer.to_vec().ok()?;
    match bytes.len() <= usize::from(question.max_payload()) {
        true => Some(bytes),
        // The guest asks again, over TCP.
        false => answer.truncate().to_vec().ok(),
    }
}

/// Answers the questions of a connection, until the guest closes it or says nothing for a while.
pub(super) async fn answer_connection(shared: Arc<Shared>, mut guest: TcpStream) -> io::Result<()> {
    while let Ok(Ok(len)) = timeout(IDLE_MAX, guest.read_u16()).await {
        let mut question = vec![0; len.into()];
        timeout(IDLE_MAX, guest.read_exact(&mut question)).await??;
        let Some(question) = Message::from_vec(&question).ok() else { break };
        let Some(answer) = answer(&shared, &question).await else { break };
        let bytes = answer.to_vec().map_err(io::Error::other)?;
        let len = u16::try_from(bytes.len()).map_err(io::Error::other)?;
        timeout(IDLE_MAX, guest.write_u16(len)).await??;
        timeout(IDLE_MAX, guest.write_all(&bytes)).await??;
    }
    Ok(())
}

/// The answer to a question that is none, if at least its header can be read (RFC 1035, section 4.1.1).
pub(super) fn unreadable(question: &[u8]) -> Option<Message> {
    let [high, low, flags, ..] = question.get(..HEADER_BYTES)? else { return None };
    let id = u16::from(*high) << 8 | u16::from(*low);
    (flags & ANSWER_FLAG == 0).then(|| Message::error_msg(id, OpCode::Query, ResponseCode::FormErr))
}

/// What becomes of a question.
#[derive(Debug)]
pub(super) enum Asked {
    /// It is for a name, in lower case and without the dot at its end; the answer has no records yet.
    Name { query: Query, name: String, answer: Message },
    /// That is the answer.
    Answered(Message),
}

async fn answer(shared: &Shared, question: &Message) -> Option<Message> {
    match read(question)? {
        Asked::Name { query, name, mut answer } => {
            let (code, records) = records(shared, &query, name).await;
            answer.metadata.response_code = code;
            answer.add_answers(records);
            Some(answer)
        }
        Asked::Answered(answer) => Some(answer),
    }
}

/// `None` if it is no question.
pub(super) fn read(question: &Message) -> Option<Asked> {
    if question.metadata.message_type != MessageType::Query {
        return None;
    }
    let mut answer = Message::response(question.metadata.id, question.metadata.op_code);
    answer.metadata.recursion_desired = question.metadata.recursion_desired;
    answer.metadata.recursion_available = true;
    answer.add_queries(question.queries.iter().cloned());
    answer.metadata.response_code = match (question.metadata.op_code, &question.queries[..]) {
        (OpCode::Query, [query]) if query.query_class == DNSClass::IN => {
            return Some(Asked::Name { query: query.clone(), name: text_of(query), answer });
        }
        (OpCode::Query, _) => ResponseCode::FormErr,
        _ => ResponseCode::NotImp,
    };
    Some(Asked::Answered(answer))
}

async fn records(shared: &Shared, query: &Query, name: String) -> (ResponseCode, Vec<Record>) {
    shared.counters.count_question();
    if let Some(refusal) = refusal_of(&shared.policy(), &name) {
        shared.refuse(&Destination::Name { name }, Protocol::Udp, refusal);
        return (ResponseCode::Refused, Vec::new());
    }
    match query.query_type {
        // There is no way to them.
        RecordType::AAAA if !shared.has_ipv6() => return (ResponseCode::NoError, Vec::new()),
        RecordType::ANY | RecordType::AXFR | RecordType::IXFR => return (ResponseCode::NotImp, Vec::new()),
        _ => {}
    }
    let all = match timeout(ANSWER_MAX, shared.names().look_up(query)).await {
        Ok(Known::Records(records)) => records,
        Ok(Known::Nothing(code)) => return (code, Vec::new()),
        Err(_elapsed) => return (ResponseCode::ServFail, Vec::new()),
    };
    let count = all.len();
    // A name of the public internet that leads elsewhere is one that was made to.
    let may_be_told = |record: &Record| address_of(record).is_none_or(|address| shared.may_be_meant(address));
    let told: Vec<Record> = all.into_iter().filter(may_be_told).collect();
    let until = Instant::now() + REMEMBERED;
    told.iter().filter_map(address_of).for_each(|address| shared.remember(address, &name, until));
    let has_addresses = told.iter().any(|record| address_of(record).is_some());
    if told.len() < count && !has_addresses {
        shared.refuse(&Destination::Name { name }, Protocol::Udp, Refusal::Private);
        return (ResponseCode::Refused, Vec::new());
    }
    (ResponseCode::NoError, told)
}

/// Why nobody is asked for a name.
fn refusal_of(policy: &NetworkPolicy, name: &str) -> Option<Refusal> {
    if policy.dns_servers().is_some_and(<[_]>::is_empty) {
        return Some(Refusal::NoDnsServer);
    }
    (!policy.may_ask(name)).then_some(Refusal::Name)
}

/// In lower case, and without the dot at its end.
fn text_of(query: &Query) -> String {
    query.name.to_ascii().trim_end_matches('.').to_ascii_lowercase()
}

const HEADER_BYTES: usize = 12;
const ANSWER_FLAG: u8 = 0x80;
/// Shorter than the five seconds for which resolvers in guests wait.
const ANSWER_MAX: Duration = Duration::from_millis(4500);
const IDLE_MAX: Duration = Duration::from_secs(10);
/// Programs go on with what they were told after its time is over.
const REMEMBERED: Duration = Duration::from_secs(3600);
