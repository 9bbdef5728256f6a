//! The guest agent: `/init` of the guest, and the server that the host talks to.

use std::{
    env,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    process,
};

use wrenn_envd::{
    AGENT_PORT,
    agent::{self, Mode},
};

fn main() -> anyhow::Result<()> {
    let Options { mode, address } = Options::parse(env::args().skip(1))?;
    Ok(agent::run(mode, address)?)
}

/// `wrenn-envd [--no-init] [--address ADDRESS] [--port PORT]`
struct Options {
    mode: Mode,
    address: SocketAddr,
}

impl Options {
    fn parse(words: impl Iterator<Item = String>) -> anyhow::Result<Self> {
        let words: Vec<String> = words.collect();
        // Init is handed the words of the kernel's command line that nobody else knows: it takes none of them.
        if process::id() == 1 && !words.iter().any(|word| word == "--no-init") {
            return Ok(Self { mode: Mode::Guest, address: (Ipv4Addr::UNSPECIFIED, AGENT_PORT).into() });
        }
        let mut words = words.into_iter();
        let (mut address, mut port) = (IpAddr::V4(Ipv4Addr::UNSPECIFIED), AGENT_PORT);
        while let Some(word) = words.next() {
            let mut value = || words.next().ok_or_else(|| anyhow::anyhow!("{word} needs a value"));
            match word.as_str() {
                "--no-init" => {}
                "--address" => address = value()?.parse()?,
                "--port" => port = value()?.parse()?,
                _ => anyhow::bail!("unknown option {word}"),
            }
        }
        Ok(Self { mode: Mode::Hosted, address: (address, port).into() })
    }
}
