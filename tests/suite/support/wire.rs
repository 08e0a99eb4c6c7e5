//! A connection to a broker, as raw as it goes: one request, one answer. Shares the codec of the protocol with the product, and no line of
//! code.

use std::{
    io::{Read, Write},
    net::TcpStream,
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use kafka_protocol::{
    messages::{ApiKey, RequestHeader, ResponseHeader},
    protocol::{Decodable, Encodable, HeaderVersion, Request, StrBytes},
};

/// One connection.
pub struct Wire {
    socket: TcpStream,
    correlation: i32,
}

impl Wire {
    /// Connects; an answer that does not come within 30 s fails the test.
    pub fn connect(broker: &str) -> Wire {
        let socket = TcpStream::connect(broker).expect("the broker takes connections");
        socket.set_nodelay(true).expect("a socket");
        socket.set_read_timeout(Some(Duration::from_secs(30))).expect("a socket");
        Wire { socket, correlation: 0 }
    }

    /// Sends a request and reads its answer.
    pub fn call<R: Request>(&mut self, version: i16, request: &R) -> R::Response {
        let mut body = BytesMut::new();
        request.encode(&mut body, version).expect("encodable");
        self.send(R::KEY, version, R::header_version(version), &body);
        let mut answer = self.receive(R::Response::header_version(version)).expect("an answer");
        R::Response::decode(&mut answer, version).expect("readable")
    }

    /// Sends a body that was encoded elsewhere.
    pub fn send(&mut self, key: i16, version: i16, header_version: i16, body: &[u8]) {
        self.correlation += 1;
        let header = RequestHeader::default()
            .with_request_api_key(key)
            .with_request_api_version(version)
            .with_correlation_id(self.correlation)
            .with_client_id(Some(StrBytes::from_static_str("wire")));
        let mut frame = BytesMut::from(&[0; 4][..]);
        header.encode(&mut frame, header_version).expect("encodable");
        frame.extend_from_slice(body);
        let length = i32::try_from(frame.len() - 4).expect("small");
        frame[..4].copy_from_slice(&length.to_be_bytes());
        self.socket.write_all(&frame).expect("the broker takes the request");
    }

    /// The body of the next answer; `None` when the broker has hung up.
    pub fn receive(&mut self, header_version: i16) -> Option<Bytes> {
        let mut length = [0; 4];
        self.socket.read_exact(&mut length).ok()?;
        let mut frame = vec![0; usize::try_from(i32::from_be_bytes(length)).expect("not negative")];
        self.socket.read_exact(&mut frame).expect("the whole answer");
        let mut frame = Bytes::from(frame);
        let header = ResponseHeader::decode(&mut frame, header_version).expect("a header");
        assert_eq!(header.correlation_id, self.correlation, "the answer to another request");
        Some(frame)
    }

    /// Sends what no codec encodes, and tells whether the broker hangs up.
    pub fn hangs_up_at(mut self, key: i16, version: i16) -> bool {
        let header_version = ApiKey::try_from(key).map_or(1, |key| key.request_header_version(version));
        self.send(key, version, header_version, &[0; 8]);
        self.receive(0).is_none()
    }
}
