//! A connection to a published port, and one byte that the guest echoes on it.
//!
//! The connect alone is held against a connect to a plain listener of the host's: no guest is asked for it. The echo is held
//! against the same by `Sandbox::connect`, which goes to the guest without the listener and the carrying of bytes. What these
//! add is shown beside the echo of a plain server of the host's, as the least that a connection more costs.
//!
//! The clients of the two listeners are plain ones, on a thread that does no other work, as another program's would be.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::Instant;

use anyhow::ensure;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use wrenn_core::{Event, PublishOptions, Sandbox};

mod support;
use support::{Goal, guest, percentile, report, report_percentiles};

const ROUNDS: usize = 300;
const PORT: u16 = 9001;
const SERVER: &str = r"
import socket
listener = socket.create_server(('0.0.0.0', 9001), backlog=64)
print('ready', flush=True)
while True:
    stream, _ = listener.accept()
    stream.sendall(stream.recv(1))
    stream.close()
";

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let (_host, sandbox) = guest::sandbox().await?;
    let mut server = sandbox.command("python3").args(["-c", SERVER]).spawn().await?;
    ensure!(matches!(server.next_event().await?, Some(Event::Stdout(_))), "the server did not come up");
    let published = sandbox.publish(PORT, PublishOptions::default()).await?.address;
    let plain = plain_server()?;
    let [mut connects, mut plain_connects, mut echoes, mut plain_echoes, mut direct] = [const { Vec::new() }; 5];
    for round in 0..=ROUNDS {
        let (of_plain, of_published, of_direct) = match round % 2 {
            0 => (by_address(plain)?, by_address(published)?, by_handle(&sandbox).await?),
            // Neither is always the one that comes after the same other.
            _ => {
                let of_direct = by_handle(&sandbox).await?;
                let of_published = by_address(published)?;
                (by_address(plain)?, of_published, of_direct)
            }
        };
        if round > 0 {
            plain_connects.push(of_plain.0);
            plain_echoes.push(of_plain.1);
            connects.push(of_published.0);
            echoes.push(of_published.1);
            direct.push(of_direct);
        }
    }
    report_percentiles("publish_connect", "us", &connects, &plain_connects, [Goal::AtMost(1.2), Goal::None]);
    report_percentiles("publish_connect/echo", "us", &echoes, &direct, [Goal::AtMost(1.2), Goal::None]);
    let added = percentile(&echoes, 50) - percentile(&direct, 50);
    report("publish_connect/added", "us", added, percentile(&plain_echoes, 50), Goal::None);
    sandbox.kill().await?;
    Ok(())
}

/// How long a connect takes, and how long it takes with the echo, in us.
fn by_address(address: SocketAddr) -> anyhow::Result<(f64, f64)> {
    let begun = Instant::now();
    let mut stream = TcpStream::connect(address)?;
    let connected = us(begun);
    let mut byte = [0];
    stream.write_all(b"x")?;
    stream.read_exact(&mut byte)?;
    let echoed = us(begun);
    ensure!(byte == *b"x", "another byte came back");
    Ok((connected, echoed))
}

async fn by_handle(sandbox: &Sandbox) -> anyhow::Result<f64> {
    let begun = Instant::now();
    let mut stream = sandbox.connect(PORT).await?;
    stream.write_all(b"x").await?;
    ensure!(stream.read_u8().await? == b'x', "another byte came back");
    Ok(us(begun))
}

fn us(begun: Instant) -> f64 {
    begun.elapsed().as_secs_f64() * 1e6
}

/// A server of the host's that does what the guest's does.
fn plain_server() -> anyhow::Result<SocketAddr> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let address = listener.local_addr()?;
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let (mut stream, mut byte) = (stream?, [0]);
            stream.read_exact(&mut byte)?;
            stream.write_all(&byte)?;
        }
        std::io::Result::Ok(())
    });
    Ok(address)
}
