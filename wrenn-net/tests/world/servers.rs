//! What there is on the internet.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex};

use hickory_resolver::proto::op::{Message, OpCode, ResponseCode};
use hickory_resolver::proto::rr::rdata::{A, AAAA};
use hickory_resolver::proto::rr::{RData, Record, RecordType};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};

use super::World;

impl World {
    pub(crate) fn listen(&self, at: &str) -> TcpListener {
        let at: SocketAddr = at.parse().unwrap();
        let listener = self.internet.run(|| std::net::TcpListener::bind(at).unwrap());
        listener.set_nonblocking(true).unwrap();
        TcpListener::from_std(listener).unwrap()
    }

    pub(crate) fn receive(&self, at: &str) -> UdpSocket {
        let at: SocketAddr = at.parse().unwrap();
        let socket = self.internet.run(|| std::net::UdpSocket::bind(at).unwrap());
        socket.set_nonblocking(true).unwrap();
        UdpSocket::from_std(socket).unwrap()
    }

    /// Sends back what it gets, on each connection.
    pub(crate) fn echo(&self, at: &str) {
        let listener = self.listen(at);
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                tokio::spawn(async move {
                    let (mut read, mut write) = stream.split();
                    tokio::io::copy(&mut read, &mut write).await.ok();
                    write.shutdown().await.ok();
                });
            }
        });
    }

    /// Says who it is on each connection, at once.
    pub(crate) fn greet(&self, at: &str) {
        let (listener, name) = (self.listen(at), at.to_owned());
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                stream.write_all(name.as_bytes()).await.ok();
            }
        });
    }

    /// Says who it is once it was sent something.
    pub(crate) fn answer(&self, at: &str) {
        let (listener, name) = (self.listen(at), at.to_owned());
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let name = name.clone();
                tokio::spawn(async move {
                    if stream.read(&mut [0; 4096]).await.is_ok_and(|len| len > 0) {
                        stream.write_all(name.as_bytes()).await.ok();
                    }
                });
            }
        });
    }

    /// A web server that says where it is.
    pub(crate) fn web(&self, at: &str) {
        let (listener, name) = (self.listen(at), at.to_owned());
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let len = name.len();
                let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {len}\r\nConnection: close\r\n\r\n{name}");
                tokio::spawn(async move {
                    let mut head = Vec::new();
                    while !head.ends_with(b"\r\n\r\n") {
                        head.push(stream.read_u8().await?);
                    }
                    stream.write_all(answer.as_bytes()).await
                });
            }
        });
    }

    /// Knows these names, at 8.8.8.8, by both of its protocols. What they are can be changed.
    pub(crate) fn dns(&self, names: &[(&str, &[[u8; 4]])]) -> Arc<Mutex<HashMap<String, Vec<IpAddr>>>> {
        self.dns_at("8.8.8.8:53", names)
    }

    /// The same elsewhere.
    pub(crate) fn dns_at(&self, at: &str, names: &[(&str, &[[u8; 4]])]) -> Arc<Mutex<HashMap<String, Vec<IpAddr>>>> {
        let as_address = |addresses: &&[[u8; 4]]| addresses.iter().map(|&address| address.into()).collect();
        let names = names.iter().map(|(name, addresses)| ((*name).to_owned(), as_address(addresses)));
        let known = Arc::new(Mutex::new(names.collect::<HashMap<_, Vec<IpAddr>>>()));
        let (socket, listener) = (self.receive(at), self.listen(at));
        let names = Arc::clone(&known);
        tokio::spawn(async move {
            let mut question = [0; 4096];
            while let Ok((len, from)) = socket.recv_from(&mut question).await {
                let answer = answer(&names, &question[..len]);
                let whole = answer.to_vec().unwrap();
                let fits = whole.len() <= 512;
                let bytes = if fits { whole } else { answer.truncate().to_vec().unwrap() };
                socket.send_to(&bytes, from).await.ok();
            }
        });
        let names = Arc::clone(&known);
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let names = Arc::clone(&names);
                tokio::spawn(async move {
                    while let Ok(len) = stream.read_u16().await {
                        let mut question = vec![0; len.into()];
                        stream.read_exact(&mut question).await.unwrap();
                        let bytes = answer(&names, &question).to_vec().unwrap();
                        stream.write_u16(u16::try_from(bytes.len()).unwrap()).await.unwrap();
                        stream.write_all(&bytes).await.unwrap();
                    }
                });
            }
        });
        known
    }
}

fn answer(names: &Mutex<HashMap<String, Vec<IpAddr>>>, question: &[u8]) -> Message {
    let question = Message::from_vec(question).unwrap();
    let mut answer = Message::response(question.metadata.id, OpCode::Query);
    answer.add_queries(question.queries.iter().cloned());
    let query = &question.queries[0];
    let name = query.name.to_ascii().trim_end_matches('.').to_ascii_lowercase();
    match names.lock().unwrap().get(&name) {
        None => answer.metadata.response_code = ResponseCode::NXDomain,
        Some(addresses) => {
            let data = addresses.iter().filter_map(|address| match (address, query.query_type) {
                (IpAddr::V4(address), RecordType::A) => Some(RData::A(A(*address))),
                (IpAddr::V6(address), RecordType::AAAA) => Some(RData::AAAA(AAAA(*address))),
                _ => None,
            });
            answer.add_answers(data.map(|data| Record::from_rdata(query.name.clone(), 1, data)));
        }
    }
    answer
}

/// All that comes until the other end is closed.
pub(crate) async fn all(stream: &mut TcpStream) -> std::io::Result<String> {
    let mut text = String::new();
    stream.read_to_string(&mut text).await?;
    Ok(text)
}

/// Sends all of this and ends, and returns what came back until the other end had ended as well.
pub(crate) async fn sent_and_returned(stream: &mut TcpStream, sent: &[u8]) -> Vec<u8> {
    let (mut read, mut write) = stream.split();
    let send = async {
        write.write_all(sent).await.unwrap();
        // Each end is passed on by itself.
        write.shutdown().await.unwrap();
    };
    let mut received = Vec::new();
    tokio::join!(send, read.read_to_end(&mut received)).1.unwrap();
    received
}
