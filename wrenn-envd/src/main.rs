//! The guest agent: `/init` of the guest, and the server that the host talks to.

use std::{
    env,
    net::{IpAddr, Ipv4Addr},
    process,
};

use wrenn_envd::{
    AGENT_PORT,
    agent::{self, Mode, Options},
};

fn main() -> anyhow::Result<()> {
    Ok(agent::run(parse(env::args().skip(1))?)?)
}

/// `wrenn-envd [--no-init] [--address ADDRESS] [--port PORT] [--publish ADDRESS] [--cgroup DIRECTORY]
/// [--hooks DIRECTORY] [--drive DIRECTORY] [--host ADDRESS] [--mmds ADDRESS:PORT]`
fn parse(words: impl Iterator<Item = String>) -> anyhow::Result<Options> {
    let words: Vec<String> = words.collect();
    let any = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
    // Init is handed the words of the kernel's command line that nobody else knows: it takes none of them.
    if process::id() == 1 && !words.iter().any(|word| word == "--no-init") {
        return Ok(Options::new(Mode::Guest, (any, AGENT_PORT).into()));
    }
    let mut options = Options::new(Mode::Hosted, (any, AGENT_PORT).into());
    let mut words = words.into_iter();
    while let Some(word) = words.next() {
        let mut value = || words.next().ok_or_else(|| anyhow::anyhow!("{word} needs a value"));
        match word.as_str() {
            "--no-init" => {}
            "--address" => options.address.set_ip(value()?.parse()?),
            "--port" => options.address.set_port(value()?.parse()?),
            "--publish" => options.publish = Some(value()?.parse()?),
            "--hooks" => options.hooks = Some(value()?.into()),
            "--host" => options.host = Some(value()?.parse()?),
            "--drive" => options.drive = Some(value()?.into()),
            "--mmds" => options.mmds = Some(value()?.parse()?),
            "--cgroup" => options.cgroup = Some(value()?.into()),
            _ => anyhow::bail!("unknown option {word}"),
        }
    }
    Ok(options)
}
