//! A step's command in the guest, with its output told line by line.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::build::event::{BuildEventKind, BuildStream};
use crate::build::failure::Failure;
use crate::build::output::{Lines, Redaction, Tail};
use crate::build::teller::Teller;
use crate::exec::event::Event;
use crate::process::command::Command;
use crate::sandbox::handle::Sandbox;

/// What a command begins with.
#[derive(Debug, Clone)]
pub(super) struct Surroundings {
    pub(super) user: Option<String>,
    pub(super) directory: Option<String>,
    pub(super) env: BTreeMap<String, String>,
}

impl Surroundings {
    pub(super) fn command(&self, sandbox: &Sandbox, words: &[String]) -> Result<Command, Failure> {
        let (program, arguments) = words.split_first().ok_or_else(|| Failure::of("there is no command"))?;
        let mut command = sandbox.command(program).args(arguments);
        for (name, value) in &self.env {
            command = command.env(name, value);
        }
        if let Some(user) = &self.user {
            command = command.user(user);
        }
        if let Some(directory) = &self.directory {
            command = command.current_dir(directory);
        }
        Ok(command)
    }
}

/// The output of a step's command on its way to who asked for the build.
#[derive(Debug)]
pub(super) struct Log<'a> {
    teller: &'a Teller,
    step: usize,
    stdout: Lines,
    stderr: Lines,
    tail: Tail,
}

impl<'a> Log<'a> {
    pub(super) fn new(teller: &'a Teller, step: usize, secrets: &Redaction) -> Self {
        Self { teller, step, stdout: Lines::new(secrets), stderr: Lines::new(secrets), tail: Tail::default() }
    }

    pub(super) fn take(&mut self, event: &Event) {
        match event {
            Event::Stdout(bytes) | Event::Pty(bytes) => {
                let lines = self.stdout.push(bytes);
                lines.iter().for_each(|line| self.line(BuildStream::Stdout, line));
            }
            Event::Stderr(bytes) => {
                let lines = self.stderr.push(bytes);
                lines.iter().for_each(|line| self.line(BuildStream::Stderr, line));
            }
            Event::Lost { bytes } => self.line(BuildStream::Stderr, &format!("[{bytes} bytes of output are lost]")),
            Event::Exit(_) => {}
        }
    }

    /// Tells what is left, and returns the last lines.
    pub(super) fn end(mut self) -> Vec<String> {
        let nothing = Lines::new(&Redaction::default());
        let stdout = std::mem::replace(&mut self.stdout, nothing).end();
        let nothing = Lines::new(&Redaction::default());
        let stderr = std::mem::replace(&mut self.stderr, nothing).end();
        stdout.iter().for_each(|line| self.line(BuildStream::Stdout, line));
        stderr.iter().for_each(|line| self.line(BuildStream::Stderr, line));
        self.tail.into_lines()
    }

    fn line(&mut self, stream: BuildStream, line: &str) {
        self.tail.push(line);
        self.teller.tell(Some(self.step), BuildEventKind::Line { stream, text: line.to_owned() });
    }
}

/// Runs a command to its end.
pub(super) async fn run(command: Command, limit: Option<Duration>, mut log: Log<'_>) -> Result<(), Failure> {
    let command = match limit {
        Some(limit) => command.timeout(limit),
        None => command,
    };
    let ended = async {
        let mut child = command.spawn().await?;
        let mut status = None;
        while let Some(event) = child.next_event().await? {
            log.take(&event);
            if let Event::Exit(exit) = event {
                status = Some(exit);
            }
        }
        Ok(status)
    };
    let ended: crate::error::Result<_> = ended.await;
    let last_lines = log.end();
    match ended {
        Ok(Some(status)) if status.success() => Ok(()),
        Ok(status) => {
            let problem = status.as_ref().map_or_else(|| "its end was not told".to_owned(), ToString::to_string);
            Err(Failure::Step { problem, code: status.and_then(|status| status.code()), last_lines, source: None })
        }
        Err(error) => Err(Failure::from(error).with_lines(last_lines)),
    }
}
