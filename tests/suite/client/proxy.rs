//! A proxy between clients and a broker that injects faults into chosen produce requests.

use std::{
    collections::VecDeque,
    io::{self, Read, Write},
    net::{TcpListener, TcpStream},
    sync::Arc,
};

use bytes::{Buf, Bytes, BytesMut};
use kafka_protocol::{
    messages::{
        ProduceRequest, ProduceResponse, RequestHeader, ResponseHeader,
        produce_response::{PartitionProduceResponse, TopicProduceResponse},
    },
    protocol::{Decodable, Encodable},
};
use parking_lot::Mutex;

/// The fault of one produce request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The broker does not get the request; the connection is closed.
    LoseRequest,
    /// The broker gets the request; the connection is closed before the response.
    LoseAnswer,
    /// The broker does not get the request; the client gets this error code.
    Refuse(i16),
    /// The broker gets the request; the client gets this error code.
    Misreport(i16),
}

/// The broker advertises the proxy's address, so that all clients connect to the proxy.
pub struct Proxy {
    listener: TcpListener,
    faults: Arc<Mutex<VecDeque<Fault>>>,
}

impl Proxy {
    pub fn bind() -> Proxy {
        Proxy { listener: TcpListener::bind("127.0.0.1:0").expect("a free port"), faults: Arc::default() }
    }

    /// The proxy's address.
    pub fn address(&self) -> String {
        self.listener.local_addr().expect("bound").to_string()
    }

    /// Passes connections on to the broker; the threads end with the process.
    pub fn pass_to(&self, broker: &str) {
        let (listener, faults) = (self.listener.try_clone().expect("a second handle"), Arc::clone(&self.faults));
        let broker = broker.to_owned();
        std::thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                let (faults, broker) = (Arc::clone(&faults), broker.clone());
                std::thread::spawn(move || {
                    // An error means that one side closed its connection; the drop closes the other.
                    let _ = TcpStream::connect(broker).and_then(|upstream| pass(client, upstream, &faults));
                });
            }
        });
    }

    /// Sets the faults of the next produce requests, one each.
    pub fn spoil(&self, faults: &[Fault]) {
        self.faults.lock().extend(faults);
    }

    /// True when all faults have been used.
    pub fn is_done(&self) -> bool {
        self.faults.lock().is_empty()
    }
}

const PRODUCE: i16 = 0;

/// Passes one request and its response at a time, as our client sends them.
fn pass(mut client: TcpStream, mut upstream: TcpStream, faults: &Mutex<VecDeque<Fault>>) -> io::Result<()> {
    client.set_nodelay(true)?;
    upstream.set_nodelay(true)?;
    loop {
        let request = read_frame(&mut client)?;
        let produce = request.starts_with(&PRODUCE.to_be_bytes());
        let fault = if produce { faults.lock().pop_front() } else { None };
        let answer = match fault {
            Some(Fault::LoseRequest) => return Ok(()),
            Some(Fault::Refuse(code)) => refusal(request.clone(), code),
            None | Some(Fault::LoseAnswer | Fault::Misreport(_)) => {
                write_frame(&mut upstream, &request)?;
                read_frame(&mut upstream)?
            }
        };
        match fault {
            Some(Fault::LoseAnswer) => return Ok(()),
            Some(Fault::Misreport(code)) => write_frame(&mut client, &refusal(request, code))?,
            _ => write_frame(&mut client, &answer)?,
        }
    }
}

/// A produce response with this error code for every partition.
fn refusal(mut request: Bytes, code: i16) -> Bytes {
    let version = i16::from_be_bytes([request[2], request[3]]);
    let header = RequestHeader::decode(&mut request, 1).expect("a request header");
    let request = ProduceRequest::decode(&mut request, version).expect("a produce request");
    let topics = request.topic_data.into_iter().map(|topic| {
        let partitions = topic.partition_data.into_iter().map(|partition| {
            let answer = PartitionProduceResponse::default().with_index(partition.index).with_base_offset(-1);
            answer.with_error_code(code)
        });
        TopicProduceResponse::default().with_name(topic.name).with_partition_responses(partitions.collect())
    });
    let mut answer = BytesMut::new();
    ResponseHeader::default().with_correlation_id(header.correlation_id).encode(&mut answer, 0).expect("encodable");
    ProduceResponse::default().with_responses(topics.collect()).encode(&mut answer, version).expect("encodable");
    answer.freeze()
}

fn read_frame(from: &mut TcpStream) -> io::Result<Bytes> {
    let mut length = [0; 4];
    from.read_exact(&mut length)?;
    let mut frame = vec![0; usize::try_from((&length[..]).get_i32()).expect("not negative")];
    from.read_exact(&mut frame)?;
    Ok(frame.into())
}

fn write_frame(to: &mut TcpStream, frame: &[u8]) -> io::Result<()> {
    let length = i32::try_from(frame.len()).expect("small");
    to.write_all(&[&length.to_be_bytes(), frame].concat())
}
