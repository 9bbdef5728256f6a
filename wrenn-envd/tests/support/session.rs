//! One process, an event and a call at a time.

use connectrpc::{
    ConnectError,
    client::{CallOptions, HttpClient},
};
use futures::{
    StreamExt as _,
    stream::{self, BoxStream},
};
use wrenn_envd::proto::process::{
    ConnectRequest, ConnectResponse, ProcessClient, ProcessEvent, ProcessInput, ProcessSelector, SendInputRequest,
    SendSignalRequest, Signal, StartRequest, StartResponse, process_input::Input, process_selector::Selector,
};

use super::{Agent, Collected};

/// A stream of events, and what they have said so far. Dropping it drops the stream.
pub(crate) struct Session {
    pub(crate) client: ProcessClient<HttpClient>,
    pub(crate) seen: Collected,
    events: Events,
}

type Events = BoxStream<'static, Result<ProcessEvent, ConnectError>>;

impl Session {
    pub(crate) async fn start(agent: &Agent, request: StartRequest) -> Result<Self, ConnectError> {
        Self::start_with(agent, request, CallOptions::default()).await
    }

    pub(crate) async fn start_with(
        agent: &Agent,
        request: StartRequest,
        options: CallOptions,
    ) -> Result<Self, ConnectError> {
        let client = agent.client();
        let stream = client.start_with_options(request, options).await?;
        let events = stream::unfold(stream, |mut stream| async {
            let message = stream.message::<StartResponse>().await.transpose()?;
            Some((message.map(|message| message.to_owned_message().event), stream))
        });
        Self::begin(client, events.map(|event| Ok(event?.into_option().expect("an event"))).boxed()).await
    }

    pub(crate) async fn connect(
        agent: &Agent,
        process: ProcessSelector,
        offset: Option<u64>,
    ) -> Result<Self, ConnectError> {
        let client = agent.client();
        let stream = client.connect(ConnectRequest { process: process.into(), offset, ..Default::default() }).await?;
        let events = stream::unfold(stream, |mut stream| async {
            let message = stream.message::<ConnectResponse>().await.transpose()?;
            Some((message.map(|message| message.to_owned_message().event), stream))
        });
        Self::begin(client, events.map(|event| Ok(event?.into_option().expect("an event"))).boxed()).await
    }

    async fn begin(client: ProcessClient<HttpClient>, events: Events) -> Result<Self, ConnectError> {
        let mut session = Self { client, seen: Collected::default(), events };
        session.next().await?;
        Ok(session)
    }

    /// Takes one event; whether there was one.
    pub(crate) async fn next(&mut self) -> Result<bool, ConnectError> {
        match self.events.next().await {
            Some(event) => self.seen.add(event?),
            None => return Ok(false),
        }
        Ok(true)
    }

    /// Takes events until there is an end.
    pub(crate) async fn finish(mut self) -> Result<Collected, ConnectError> {
        while self.next().await? {}
        Ok(std::mem::take(&mut self.seen))
    }

    /// Takes events until the terminal or the output shows `text`.
    pub(crate) async fn expect(&mut self, text: &str) {
        let shows = |seen: &Collected| {
            [&seen.pty, &seen.stdout].iter().any(|bytes| String::from_utf8_lossy(bytes).contains(text))
        };
        while !shows(&self.seen) {
            let more = tokio::time::timeout(std::time::Duration::from_secs(10), self.next()).await;
            assert!(
                more.expect("it comes within 10 s").expect("no error"),
                "no {text:?} in {:?} {:?}",
                String::from_utf8_lossy(&self.seen.pty),
                self.seen.stdout_utf8()
            );
        }
    }

    pub(crate) fn selector(&self) -> ProcessSelector {
        by_pid(self.seen.pid)
    }

    pub(crate) async fn input(&self, input: Input) -> Result<(), ConnectError> {
        let input = ProcessInput { input: Some(input), ..Default::default() };
        let request = SendInputRequest { process: self.selector().into(), input: input.into(), ..Default::default() };
        self.client.send_input(request).await.map(drop)
    }

    pub(crate) async fn type_in(&self, text: &str) {
        self.input(Input::Pty(text.as_bytes().to_vec())).await.expect("the terminal takes it");
    }

    pub(crate) async fn signal(&self, signal: Signal) -> Result<(), ConnectError> {
        let request =
            SendSignalRequest { process: self.selector().into(), signal: signal.into(), ..Default::default() };
        self.client.send_signal(request).await.map(drop)
    }
}

pub(crate) fn by_pid(pid: u32) -> ProcessSelector {
    ProcessSelector { selector: Some(Selector::Pid(pid)), ..Default::default() }
}

pub(crate) fn by_tag(tag: &str) -> ProcessSelector {
    ProcessSelector { selector: Some(Selector::Tag(tag.to_owned())), ..Default::default() }
}
