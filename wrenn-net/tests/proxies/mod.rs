//! Proxies of a test's own: SOCKS5 (RFC 1928 and 1929) and HTTP's CONNECT, with TLS or without. They connect from the internet.
#![allow(dead_code, clippy::unwrap_used, reason = "tests; each file uses a part")]

use std::io;
use std::net::{SocketAddr, SocketAddrV4};
use std::sync::{Arc, Mutex};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

use crate::world::{Namespace, World};

/// What a proxy speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Speaks {
    Socks5,
    Http,
}

/// A proxy that is to be opened.
#[derive(Clone)]
pub(crate) struct Proxy {
    internet: Namespace,
    speaks: Speaks,
    /// `USERNAME:PASSWORD`.
    wants: Option<&'static str>,
    tls: Option<TlsAcceptor>,
    asked: Asked,
}

/// What a proxy was asked to connect to.
pub(crate) type Asked = Arc<Mutex<Vec<SocketAddr>>>;

impl Proxy {
    pub(crate) fn new(world: &World, speaks: Speaks) -> Self {
        Self { internet: world.internet.clone(), speaks, wants: None, tls: None, asked: Asked::default() }
    }

    pub(crate) fn wants(self, credentials: &'static str) -> Self {
        Self { wants: Some(credentials), ..self }
    }

    pub(crate) fn within(self, tls: Option<TlsAcceptor>) -> Self {
        Self { tls, ..self }
    }

    pub(crate) fn serve(self, listener: TcpListener) -> Asked {
        let asked = Arc::clone(&self.asked);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let this = self.clone();
                // Whatever goes wrong, the connection ends.
                tokio::spawn(async move {
                    match &this.tls {
                        Some(tls) => this.carry(tls.accept(stream).await?).await,
                        None => this.carry(stream).await,
                    }
                });
            }
        });
        asked
    }

    async fn carry(&self, mut client: impl AsyncRead + AsyncWrite + Unpin) -> io::Result<()> {
        let server = match self.speaks {
            Speaks::Socks5 => self.socks5(&mut client).await?,
            Speaks::Http => self.http(&mut client).await?,
        };
        if let Some(mut server) = server {
            copy_bidirectional(&mut client, &mut server).await?;
        }
        Ok(())
    }

    async fn socks5(&self, client: &mut (impl AsyncRead + AsyncWrite + Unpin)) -> io::Result<Option<TcpStream>> {
        assert_eq!(client.read_u8().await?, 5);
        let methods = pascal(client).await?;
        let method = if self.wants.is_some() { 2 } else { 0 };
        if !methods.contains(&method) {
            client.write_all(&[5, 0xff]).await?;
            return Ok(None);
        }
        client.write_all(&[5, method]).await?;
        if let Some(wants) = self.wants {
            assert_eq!(client.read_u8().await?, 1);
            let (username, password) = (pascal(client).await?, pascal(client).await?);
            let is_right = [&username[..], b":", &password].concat() == wants.as_bytes();
            client.write_all(&[1, u8::from(!is_right)]).await?;
            if !is_right {
                return Ok(None);
            }
        }
        let mut request = [0; 10];
        client.read_exact(&mut request).await?;
        assert_eq!(request[..4], [5, 1, 0, 1], "CONNECT, to an IPv4 address");
        let [.., a, b, c, d, high, low] = request;
        let dialled = self.dial(SocketAddrV4::new([a, b, c, d].into(), u16::from(high) << 8 | u16::from(low))).await;
        let reply = match dialled.as_ref().map_err(io::Error::kind) {
            Ok(_) => 0,
            Err(io::ErrorKind::NetworkUnreachable) => 3,
            Err(io::ErrorKind::ConnectionRefused) => 5,
            Err(_) => 4,
        };
        client.write_all(&[5, reply, 0, 1, 0, 0, 0, 0, 0, 0]).await?;
        Ok(dialled.ok())
    }

    async fn http(&self, client: &mut (impl AsyncRead + AsyncWrite + Unpin)) -> io::Result<Option<TcpStream>> {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(client.read_u8().await?);
        }
        let head = String::from_utf8(head).unwrap();
        let target = head.strip_prefix("CONNECT ").unwrap().split(' ').next().unwrap();
        let is_told =
            |wants: &str| head.contains(&format!("\r\nProxy-Authorization: Basic {}\r\n", STANDARD.encode(wants)));
        let answer = match self.wants {
            Some(wants) if !is_told(wants) => (Err("407 Proxy Authentication Required"), None),
            _ => match self.dial(target.parse().unwrap()).await {
                Ok(server) => (Ok("200 Connection Established"), Some(server)),
                Err(_) => (Err("503 Service Unavailable"), None),
            },
        };
        let (Ok(status) | Err(status)) = answer.0;
        client.write_all(format!("HTTP/1.1 {status}\r\nVia: test\r\n\r\n").as_bytes()).await?;
        Ok(answer.1)
    }

    async fn dial(&self, to: SocketAddrV4) -> io::Result<TcpStream> {
        self.asked.lock().unwrap().push(to.into());
        let internet = self.internet.clone();
        let dial = move || internet.run(|| std::net::TcpStream::connect(to));
        let stream = tokio::task::spawn_blocking(dial).await.unwrap()?;
        stream.set_nonblocking(true)?;
        TcpStream::from_std(stream)
    }
}

/// Bytes, after how many they are.
async fn pascal(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; stream.read_u8().await?.into()];
    stream.read_exact(&mut bytes).await?;
    Ok(bytes)
}
