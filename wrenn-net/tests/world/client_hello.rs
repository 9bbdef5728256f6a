//! The first message of TLS, made by hand (RFC 8446, section 4.1.2).

/// The least that a ClientHello has, with or without a server name.
pub(crate) fn client_hello(server_name: Option<&str>) -> Vec<u8> {
    let with_length = |bytes: Vec<u8>, size: usize| {
        let len = u32::try_from(bytes.len()).expect("short").to_le_bytes();
        let mut all: Vec<u8> = len[..size].iter().rev().copied().collect();
        all.extend(bytes);
        all
    };
    let mut extensions = Vec::new();
    if let Some(name) = server_name {
        let entry = [vec![0], with_length(name.as_bytes().to_vec(), 2)].concat();
        extensions.extend([vec![0, 0], with_length(with_length(entry, 2), 2)].concat());
    }
    // Groups, signature algorithms, versions and a key share, without which it is refused.
    extensions.extend([0, 10, 0, 4, 0, 2, 0, 29, 0, 13, 0, 4, 0, 2, 8, 4, 0, 43, 0, 3, 2, 3, 4]);
    extensions.extend([vec![0, 51, 0, 38, 0, 36, 0, 29, 0, 32], vec![9; 32]].concat());
    let mut body = vec![3, 3];
    body.extend([7; 32]);
    body.extend([0, 0, 2, 0x13, 1, 1, 0]);
    body.extend(with_length(extensions, 2));
    let handshake = [vec![1], with_length(body, 3)].concat();
    [vec![0x16, 3, 1], with_length(handshake, 2)].concat()
}
