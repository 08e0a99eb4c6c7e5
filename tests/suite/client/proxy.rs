//! Stands between clients and a broker and spoils the produce requests it is told to.

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

/// What happens to one produce request. Those that nothing is said about pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The broker never sees it; the connection is closed.
    LoseRequest,
    /// The broker has it; the connection is closed instead of the answer.
    LoseAnswer,
    /// The broker never sees it; the answer is this error code.
    Refuse(i16),
    /// The broker has it; the answer is this error code instead.
    Misreport(i16),
}

/// A broker is told to announce the proxy's address as its own, so that all clients come here.
pub struct Proxy {
    listener: TcpListener,
    faults: Arc<Mutex<VecDeque<Fault>>>,
}

impl Proxy {
    pub fn bind() -> Proxy {
        Proxy { listener: TcpListener::bind("127.0.0.1:0").expect("a free port"), faults: Arc::default() }
    }

    /// Where clients find it.
    pub fn address(&self) -> String {
        self.listener.local_addr().expect("bound").to_string()
    }

    /// Passes connections on from now on; the threads end with the process.
    pub fn pass_to(&self, broker: &str) {
        let (listener, faults) = (self.listener.try_clone().expect("a second handle"), Arc::clone(&self.faults));
        let broker = broker.to_owned();
        std::thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                let (faults, broker) = (Arc::clone(&faults), broker.clone());
                std::thread::spawn(move || {
                    // Either end hung up: so do we.
                    let _ = TcpStream::connect(broker).and_then(|upstream| pass(client, upstream, &faults));
                });
            }
        });
    }

    /// What happens to the next produce requests.
    pub fn spoil(&self, faults: &[Fault]) {
        self.faults.lock().extend(faults);
    }

    /// Whether all that was to be spoilt is.
    pub fn is_done(&self) -> bool {
        self.faults.lock().is_empty()
    }
}

const PRODUCE: i16 = 0;

/// One request and its answer after the other, as our client speaks.
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

/// The answer to a produce request that says this of every partition.
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
