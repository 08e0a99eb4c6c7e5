//! A raw connection to a broker: one request, one response. It shares only the crate `kafka_protocol` with the product.

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

/// A connection to a broker.
pub struct Wire {
    socket: TcpStream,
    correlation: i32,
}

impl Wire {
    /// Connects; a response that does not come within 30 s fails the test.
    pub fn connect(broker: &str) -> Wire {
        let socket = TcpStream::connect(broker).expect("the broker takes connections");
        socket.set_nodelay(true).expect("a socket");
        socket.set_read_timeout(Some(Duration::from_secs(30))).expect("a socket");
        Wire { socket, correlation: 0 }
    }

    /// Sends a request and reads its response.
    pub fn call<R: Request>(&mut self, version: i16, request: &R) -> R::Response {
        let mut body = BytesMut::new();
        request.encode(&mut body, version).expect("encodable");
        self.send(R::KEY, version, R::header_version(version), &body);
        let mut answer = self.receive(R::Response::header_version(version)).expect("a response");
        R::Response::decode(&mut answer, version).expect("readable")
    }

    /// Sends an encoded body.
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

    /// The body of the next response; `None` if the broker has closed the connection.
    pub fn receive(&mut self, header_version: i16) -> Option<Bytes> {
        let mut length = [0; 4];
        self.socket.read_exact(&mut length).ok()?;
        let mut frame = vec![0; usize::try_from(i32::from_be_bytes(length)).expect("not negative")];
        self.socket.read_exact(&mut frame).expect("the whole response");
        let mut frame = Bytes::from(frame);
        let header = ResponseHeader::decode(&mut frame, header_version).expect("a header");
        assert_eq!(header.correlation_id, self.correlation, "the response to another request");
        Some(frame)
    }

    /// Sends a request of this key and version with eight zero bytes; true if the broker closes the connection.
    pub fn hangs_up_at(mut self, key: i16, version: i16) -> bool {
        let header_version = ApiKey::try_from(key).map_or(1, |key| key.request_header_version(version));
        self.send(key, version, header_version, &[0; 8]);
        self.receive(0).is_none()
    }
}
