//! The embedded broker as a program.

use std::{net::SocketAddr, time::Duration};

use nix::sys::signal::Signal;

use crate::support::{
    ANY_PORT, START, admin, audit, built,
    program::{Launch, Program},
    reserved_port,
};

fn launch() -> Launch {
    Launch::new("devbroker", built("devbroker"))
}

/// Starts an embedded broker at this address; returns it and its actual address.
fn start(address: SocketAddr) -> (Program, String) {
    let broker = launch().arg("--addr").arg(address.to_string()).start();
    let address = broker.address_after("embedded broker listens on ");
    (broker, address)
}

#[test]
fn embedded_broker_keeps_data_in_memory_and_stops_at_a_signal() {
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        let port = reserved_port();
        let (mut broker, address) = start(port.address());
        broker.wait_for_line("keeps everything in memory", START);
        admin::create_topic(&address, "kept", 1, &[]);
        audit::produce(&address, "kept", &[(Some(b"a"), Some(b"1"))]);
        assert_eq!(audit::read(&address, "kept").len(), 1);
        broker.signal(signal);
        let exit = broker.wait(START);
        assert_eq!(exit.code, Some(0));
        assert!(exit.elapsed < Duration::from_secs(5), "{exit:?}");
        let _again = start(port.address());
        assert!(audit::read(&address, "kept").is_empty(), "data survived the stop");
    }
}

#[test]
fn embedded_broker_names_unsupported_options_and_exits() {
    let refused = [
        (&["--addr", "0.0.0.0:9092"][..], "DEVBROKER_ADDR: value \"0.0.0.0:9092\""),
        (&["--addr", "here"], "expected a loopback address"),
        (&["--memory", "0"], "DEVBROKER_MEMORY: value \"0\""),
        (&["--set", "group.share.max.sise=2"], "no setting group.share.max.sise"),
        (&["--pose", "4.1"], "expected 4.2, 4.3 or 4.4"),
        (&["--set", "nothing"], "expected KEY=VALUE"),
        (&["--pose", "4.2", "--set", "group.share.max.delivery.count.limit=9"], "no setting group.share.max"),
        (&["--set", "group.share.max.size=many"], "is \"many\""),
    ];
    for (arguments, told) in refused {
        let mut broker = arguments.iter().fold(launch(), |launch, argument| launch.arg(*argument)).start();
        assert_eq!(broker.wait(START).code, Some(2), "{arguments:?}");
        assert!(broker.stderr().contains(told), "{arguments:?}: {}", broker.stderr());
    }
    let (_first, address) = start(ANY_PORT);
    let mut second = launch().arg("--addr").arg(&address).start();
    assert_eq!(second.wait(START).code, Some(1));
    second.wait_for_line(&format!("cannot listen on {address}"), START);
}
